"""Laws of activation checkpointing: the same steps to the bit, with less kept for the backward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.checkpointing import megabytes
from scoregen.errors import UserError
from scoregen.training.trainer import Trainer

Build = Callable[..., Trainer]

SMALL = ["network.model_channels=8", "network.num_blocks=1", "network.channel_mult=[1,2]"]
SMALL += ["network.attention_resolutions=[4]"]
RUNS = [
    [],
    ["network.dropout=0.3", "augment=edm", "trainer.microbatch=4"],
    ["network=ncsnpp", *SMALL],
    ["network=adm", *SMALL, "network.model_channels=32"],
    ["objective=lcss"],
]


def stepped(trainer: Trainer) -> tuple[list[Tensor], float]:
    """The parameters after two steps, and the megabytes kept for the backward of the second."""
    trainer.train_step()
    kept = megabytes(trainer)
    return [p.detach() for p in trainer.method.parameters()], kept


@pytest.mark.parametrize("options", RUNS, ids=lambda options: options[0] if options else "default")
def test_recomputed_activations_give_the_same_step_and_are_not_kept(build: Build, options: list[str]) -> None:
    kept, before = stepped(build(*options, run="kept"))
    recomputed, after = stepped(build(*options, "trainer.checkpointing=true", run="recomputed"))
    torch.testing.assert_close(kept, recomputed, rtol=0, atol=0)
    assert after < 0.6 * before


def test_second_derivatives_are_refused(build: Build) -> None:
    with pytest.raises(UserError, match=r"trainer\.checkpointing.* second derivatives"):
        build("objective=ssm_vr", "trainer.checkpointing=true")
