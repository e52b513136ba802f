"""EDM2's network: it keeps magnitudes, is its equations, and its weights have no length of their own."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from scoregen.cli.train import main as train
from scoregen.errors import UserError
from scoregen.networks import EDM2
from scoregen.networks.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum
from scoregen.training.weights import read_weights
from tests.export.originals import EDM2Equations, edm2_tensors

TINY = {"model_channels": 64, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)}


def build(*, classes: int = 5, **changes: object) -> EDM2:
    network = EDM2(resolution=8, channels=3, num_classes=classes, **{**TINY, **changes})
    if not changes:
        network.load_state_dict(edm2_tensors(classes=classes))
    return network.eval()


@pytest.mark.parametrize("classes", [0, 5])
def test_the_network_computes_its_published_equations(classes: int) -> None:
    network = build(classes=classes).double()
    x, t = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([-1.3, 0.4, 0.9], dtype=torch.float64)
    cond = torch.tensor([0, 4, 5]) if classes else None
    one_hot = F.one_hot(cond, 6)[:, :5].double() if classes else None
    expected = EDM2Equations(network.state_dict())(x, t, one_hot)
    with torch.no_grad():
        torch.testing.assert_close(network(x, t, cond), expected, atol=1e-10, rtol=1e-10)
    assert expected.std() > 0.1


@pytest.mark.parametrize(("width", "millions"), [(128, 124.7), (192, 280.2)])
def test_the_published_sizes_have_their_parameter_count(width: int, millions: float) -> None:
    with torch.device("meta"):
        network = EDM2(resolution=64, channels=3, num_classes=1000, model_channels=width)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions


def test_every_layer_keeps_the_second_moment_of_white_noise() -> None:
    a, b = torch.randn(2, 200_000, 4, dtype=torch.float64).unbind()
    linear, fourier = MPConv(4, 6, 0).double(), MPFourier(4000).double()
    cases = {
        "silu": mp_silu(a),
        "sum": mp_sum(a, b, 0.3),
        "linear": linear(a).detach(),
        "fourier": fourier(torch.linspace(-1, 1, 7, dtype=torch.float64)),
    }
    for name, y in cases.items():
        assert y.square().mean() == pytest.approx(1, abs=0.02), name
    joined = mp_cat(a, b[:, :1])
    assert joined.square().mean() == pytest.approx(1, abs=0.02)
    assert joined[:, :4].square().sum() == pytest.approx(joined[:, 4:].square().sum().item(), rel=0.02)


def test_activations_stay_at_unit_magnitude_through_a_new_network() -> None:
    network = EDM2(
        resolution=16, channels=3, model_channels=64, channel_mult=(1, 2), attention_resolutions=(8,)
    )
    squares = {}
    blocks = {id(block): block for half in (network.enc, network.dec) for block in half.values()}
    for name, block in blocks.items():
        block.register_forward_hook(lambda _m, _i, y, name=name: squares.update({name: y.square().mean()}))
    with torch.no_grad():
        network(torch.randn(64, 3, 16, 16), torch.randn(64))
    assert len(squares) == len(blocks) == 19
    # Zeros around the images and averages over pixels take from it, more the deeper.
    assert all(0.5 < square < 1.2 for square in squares.values()), squares


def test_training_normalises_the_weights_and_nothing_else_does() -> None:
    network, x, t = build(), torch.randn(2, 3, 8, 8), torch.randn(2)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, MPConv):
                layer.weight.mul_(3)
        kept, before = {k: v.clone() for k, v in network.state_dict().items()}, network(x, t)
    assert all(torch.equal(network.eval().state_dict()[key], value) for key, value in kept.items())
    network.train()
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, MPConv)}
    for name, layer in layers.items():
        rms = layer.weight.detach().flatten(1).square().mean(1).sqrt()
        torch.testing.assert_close(rms, torch.ones_like(rms), atol=1e-3, rtol=0, msg=name)
    for key in kept.keys() - {f"{name}.weight" for name in layers}:
        assert torch.equal(network.state_dict()[key], kept[key])
    torch.testing.assert_close(network(x, t), before, atol=2e-2, rtol=1e-2)  # up to the 1e-4 in each norm


def test_gradients_reach_every_parameter_and_are_orthogonal_to_the_weights() -> None:
    network = build().double().train()
    network(
        torch.randn(2, 3, 8, 8).double(), torch.randn(2).double(), torch.tensor([1, 2])
    ).square().sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name
        if p.ndim:
            along = (p.grad * p.detach()).flatten(1).sum(1) / (
                p.grad.flatten(1).norm(dim=1) * p.flatten(1).norm(dim=1)
            )
            assert along.abs().max() < 1e-3, name


def test_averages_keep_the_length_that_averaging_gave_them(tmp_path: Path) -> None:
    sizes = ["network.model_channels=64", "network.channel_mult=[1]", "network.attention_resolutions=[]"]
    run = [
        "network=edm2",
        *sizes,
        "network.num_blocks=1",
        "ema=power",
        "ema.sigma_rels=[0.25]",
        "trainer.batch=32",
        "optimizer.lr=0.5",
    ]
    quiet = ["hooks.grid.every=null", "hooks.heldout.every=null"]
    for folder, totals in {"whole": (160,), "halves": (64, 160)}.items():
        for total in totals:
            assert train([*run, *quiet, f"run_dir={tmp_path / folder}", f"trainer.total={total}"]) == 0
    read = [
        read_weights(tmp_path / folder / "checkpoints" / "000000000160" / f"{file}.safetensors")[0]
        for folder in ("whole", "halves")
        for file in ("model", "ema")
    ]
    assert all(torch.equal(read[0][key], read[2][key]) for key in read[0])  # resumed bit by bit
    assert all(torch.equal(read[1][key], read[3][key]) for key in read[1])
    key = "network.enc.8x8_block0.conv_res0.weight"
    model, averaged = (tensors[key].square().mean().sqrt() for tensors in read[:2])
    assert model == pytest.approx(math.hypot(1, 0.5), rel=0.1)  # a step of Adam from a normalised weight
    assert averaged < 0.97 * model  # of directions that turned


def test_compiling_and_bfloat16_change_no_number_beyond_their_resolution() -> None:
    network = build(channel_mult=(1,), attention_resolutions=())  # the bottleneck attends
    torch.nn.init.ones_(network.out_gain)
    arguments = torch.randn(2, 3, 8, 8), torch.randn(2), torch.tensor([1, 5])
    torch._dynamo.reset()
    expected = network(*arguments)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), expected)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert (network(*arguments) - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"augment_dim": 9}, "no input for 9 augmentation labels"),
        ({"model_channels": 48}, "heads of 64"),
        ({"channel_mult": ()}, "levels of channel_mult"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EDM2(resolution=8, channels=3, **{**TINY, **arguments})
