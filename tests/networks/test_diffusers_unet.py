import pytest
import torch

from scoregen.errors import UserError
from scoregen.networks import DiffusersUNet

SMALL = {
    "resolution": 8,
    "channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_resolutions": (4,),
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}


@pytest.fixture
def network() -> DiffusersUNet:
    torch.manual_seed(0)
    return DiffusersUNet(num_classes=3, **SMALL).eval()


X, T = torch.linspace(-1, 1, 2 * 192).view(2, 3, 8, 8), torch.tensor([-1.2, 0.9])


def test_it_is_the_wrapped_module(network):
    cond = torch.tensor([2, 0])
    with torch.no_grad():
        assert torch.equal(network(X, T, cond), network.unet(X, T, class_labels=cond).sample)


def test_negative_noise_labels_are_told_apart(network):
    with torch.no_grad():
        low, high = network(X, T - 1), network(X, T)
    assert low.isfinite().all()
    assert (low - high).abs().max() > 1e-4


def test_the_null_class_adds_nothing_and_is_never_trained(network):
    null = torch.full((2,), 3)
    with torch.no_grad():
        plain = network(X, T)
        assert torch.equal(network(X, T, null), plain)
        emb = network.unet.class_embedding(null)
    assert not emb.any()
    network(X, T, torch.tensor([3, 1])).square().sum().backward()
    grad = network.unet.class_embedding.weight.grad
    assert grad[1].any()
    assert not grad[3].any()


def test_it_attends_at_the_given_resolutions(network):
    kinds = [type(block).__name__ for block in (*network.unet.down_blocks, *network.unet.up_blocks)]
    assert kinds == ["DownBlock2D", "AttnDownBlock2D", "AttnUpBlock2D", "UpBlock2D"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augment_dim": 9}, "9 augmentation labels"),
        ({"block_out_channels": (8, 18)}, r"\[18\]"),
        ({"attention_resolutions": (3,)}, r"\[3\].*\[8, 4\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        DiffusersUNet(**{**SMALL, **change})
