from collections.abc import Callable

import pytest
import torch
from torch import nn

from scoregen.networks import NETWORKS

TINY = {
    "ddpmpp": {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 2},
    "ncsnpp": {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 2},
    "adm": {"model_channels": 64, "channel_mult": (1, 2), "num_blocks": 1},
}


def _build(name: str, *, perturbed: bool = True, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    arguments = {"resolution": 8, "channels": 3, "num_classes": 5, "augment_dim": 9}
    network = NETWORKS[name](
        **{**arguments, **TINY[name], "attention_resolutions": (4,), "dropout": 0.0, **changes}
    )
    if perturbed:  # the last convolutions start at about zero, which would hide what lies before them
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p), alpha=0.05)
    return network.eval()


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """Build a tiny U-Net by name; `perturbed` moves every weight away from its initial value."""
    return _build


@pytest.fixture(params=TINY)
def name(request: pytest.FixtureRequest) -> str:
    """The name of each U-Net in turn."""
    return request.param
