"""Averages of the weights: closed forms of their profiles, exact skips and resumes, reconstruction."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from scoregen.errors import UserError
from scoregen.training.checkpoint import load_weights, read_weights
from scoregen.training.ema import (
    EMA,
    MAX_SIGMA_REL,
    HalfLifeEMA,
    PowerEMA,
    power_coefficients,
    power_gamma,
    save_snapshot,
    snapshot_path,
)
from scoregen.training.reconstruct_ema import main, reconstruct

MAKERS: list[Callable[[], EMA]] = [lambda: HalfLifeEMA(500_000), lambda: PowerEMA((0.05, 0.1))]


class Net(nn.Module):
    """Two layers that share a weight, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("frequencies", torch.randn(5))


class Vector(nn.Module):
    """One parameter."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))


def set_parameters(module: nn.Module, value: float | Tensor) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.as_tensor(value))


def walk(module: nn.Module, ema: EMA, steps: range, batch: int = 64, **applied: Tensor) -> None:
    """A drifting random walk of the parameters, the same for the same steps, followed by the averages."""
    for i in steps:
        torch.manual_seed(i)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.01 * torch.randn_like(p) + 0.005)
        ema.update(nimg=i * batch, batch=batch, **applied)


def test_beta_of_edms_half_life() -> None:
    assert HalfLifeEMA(500_000).betas(100_000_000, 512)[0] == pytest.approx(0.99929047, abs=5e-9)


def test_half_of_the_weight_is_left_after_the_half_life() -> None:
    net = Vector(4)
    set_parameters(net, 1.0)
    ema = HalfLifeEMA(500_000).attach(net)
    set_parameters(net, 0.0)
    for i in range(200):
        ema.update(nimg=10_000_000 + 2500 * i, batch=2500)
    torch.testing.assert_close(ema.tracks()["ema"]["w"], torch.full((4,), 0.5), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("nimg", "half_life"), [(1000, 50.0), (9_999_999, 499_999.95), (20_000_000, 5e5)])
def test_the_half_life_is_a_twentieth_of_the_images_until_it_is_reached(nimg: int, half_life: float) -> None:
    assert HalfLifeEMA(500_000).betas(nimg, 64)[0] == pytest.approx(0.5 ** (64 / half_life), rel=1e-12)


def test_without_ramp_the_half_life_is_constant() -> None:
    assert HalfLifeEMA(1000, ramp=None).betas(0, 1000) == (0.5,)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("applied", [{}, {"applied": torch.tensor(1.0)}])
def test_after_the_first_step_the_average_is_the_network(make: Any, applied: dict[str, Tensor]) -> None:
    net = Net()
    ema = make().attach(net)
    walk(net, ema, range(1), **applied)
    for track in ema.tracks().values():
        assert all(torch.equal(track[name], p) for name, p in net.named_parameters())


@pytest.mark.parametrize(("sigma_rel", "gamma"), [(0.05, 16.9722), (0.10, 6.93720), (0.20, 1.82621)])
def test_published_exponents(sigma_rel: float, gamma: float) -> None:
    assert power_gamma(sigma_rel) == pytest.approx(gamma, abs=5e-5)


@given(st.floats(0.005, 0.2886))
@settings(max_examples=100, deadline=None)
def test_gamma_inverts_the_relative_width(sigma_rel: float) -> None:
    g = power_gamma(sigma_rel)
    assert g >= 0
    assert (g + 1) / ((g + 2) ** 2 * (g + 3)) == pytest.approx(sigma_rel**2, rel=1e-9)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, MAX_SIGMA_REL, 0.5])
def test_widths_out_of_range_are_refused(sigma_rel: float) -> None:
    with pytest.raises(UserError, match=r"sigma_rel=\S+ must be more than 0 and less than 0\.2887"):
        power_gamma(sigma_rel)


@pytest.mark.parametrize("widths", [(), (0.1, 0.1), (0.0505, 0.1)])
def test_tracks_have_different_names(widths: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"ema\.sigma_rels="):
        PowerEMA(widths)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_the_power_profile_has_its_closed_form_and_width(sigma_rel: float) -> None:
    steps = 400
    net = Vector(steps)
    ema = PowerEMA((sigma_rel,)).attach(net)
    for i in range(steps):  # the weights after step i are the i-th unit vector, so the average is the profile
        set_parameters(net, torch.eye(steps)[i])
        ema.update(nimg=64 * i, batch=64)
    profile = ema.tracks()["ema"]["w"].double().numpy()
    edges = np.linspace(0, 1, steps + 1) ** (power_gamma(sigma_rel) + 1)
    np.testing.assert_allclose(profile, np.diff(edges), atol=1e-6)
    time = (np.arange(steps) + 0.5) / steps
    width = np.sqrt(profile @ time**2 - (profile @ time) ** 2)
    assert width == pytest.approx(sigma_rel, rel=2e-3)


@pytest.mark.parametrize("make", MAKERS)
def test_a_skipped_step_changes_no_bit_and_an_applied_one_is_a_plain_one(make: Any) -> None:
    torch.manual_seed(0)
    plain, masked = Net(), Net()
    masked.load_state_dict(plain.state_dict())
    ema, other = make().attach(plain), make().attach(masked)
    walk(plain, ema, range(20))
    walk(masked, other, range(20), applied=torch.tensor(1.0))
    assert_same_tracks(ema, other)
    set_parameters(masked, 7.0)
    other.update(nimg=20 * 64, batch=64, applied=torch.tensor(0.0))
    assert_same_tracks(ema, other)


def assert_same_tracks(a: EMA, b: EMA) -> None:
    assert list(a.tracks()) == list(b.tracks())
    for name, track in a.tracks().items():
        assert all(torch.equal(value, b.tracks()[name][key]) for key, value in track.items())


class Operations(TorchDispatchMode):
    """Records the operations that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_an_update_reads_nothing_back_and_takes_one_operation_a_track() -> None:
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(50)))
    ema = PowerEMA((0.05, 0.1)).attach(net)
    applied = torch.tensor(1.0)
    with Operations() as operations:
        ema.update(nimg=64, batch=64, applied=applied)
    assert operations.names.count("_foreach_lerp_.List") == 2
    assert not [name for name in operations.names if "local_scalar" in name or "item" in name]
    assert len(operations.names) <= 6


@pytest.mark.parametrize("make", MAKERS)
def test_a_resumed_average_goes_on_bit_for_bit(make: Any) -> None:
    torch.manual_seed(0)
    net = Net()
    ema = make().attach(net)
    walk(net, ema, range(10))
    halfway = Net()
    halfway.load_state_dict(net.state_dict())
    saved = {name: {key: value.clone() for key, value in w.items()} for name, w in ema.weights().items()}
    resumed = make().attach(halfway)
    resumed.load(saved)
    walk(net, ema, range(10, 20))
    walk(halfway, resumed, range(10, 20))
    assert_same_tracks(ema, resumed)


def test_other_tracks_are_refused_before_anything_is_loaded() -> None:
    net = Net()
    saved = HalfLifeEMA(1000).attach(net).tracks()
    ema = PowerEMA((0.05, 0.1)).attach(net)
    walk(net, ema, range(3))
    before = [value.clone() for value in ema.tracks()["ema"].values()]
    with pytest.raises(UserError, match=r"track 'ema_0\.100'.*saved are the tracks ema\."):
        ema.load(saved)
    assert all(map(torch.equal, before, ema.tracks()["ema"].values()))


def test_files_hold_averages_and_buffers_as_they_are_and_fit_the_network() -> None:
    torch.manual_seed(0)
    net = Net()
    ema = PowerEMA((0.05, 0.1)).attach(net)
    walk(net, ema, range(5))
    set_parameters(net, 0.0)
    net.frequencies.add_(1)
    assert list(ema.weights()) == ["ema", "ema_0.100"]
    for name, tensors in ema.weights().items():
        other = Net()
        load_weights(other, tensors, name)
        assert torch.equal(other.frequencies, net.frequencies)
        assert torch.equal(other.second.weight, ema.tracks()[name]["first.weight"])


def test_averages_of_half_precision_parameters_are_float32() -> None:
    net = Vector(3).to(torch.bfloat16)
    ema = HalfLifeEMA(1000, ramp=None).attach(net)
    set_parameters(net, 1.0)
    ema.update(nimg=0, batch=1)
    torch.testing.assert_close(ema.tracks()["ema"]["w"], torch.full((3,), 1 - 0.5**0.001), rtol=1e-6, atol=0)


def test_swapped_weights_come_back_bit_for_bit_even_after_an_error() -> None:
    net = Net()
    ema = HalfLifeEMA(500_000).attach(net)
    walk(net, ema, range(5))
    own = {key: value.clone() for key, value in net.state_dict().items()}

    def look_and_fail() -> None:
        with ema.swapped(net):
            assert all(torch.equal(p, ema.tracks()["ema"][name]) for name, p in net.named_parameters())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        look_and_fail()
    assert all(torch.equal(value, own[key]) for key, value in net.state_dict().items())


# Post-hoc reconstruction


def profiles(snapshots: int, last: float = 2e8) -> tuple[list[float], list[float]]:
    """Times and exponents of widths 0.05 and 0.10 stored at regular intervals up to `last`."""
    times = [last * (i + 1) / snapshots for i in range(snapshots) for _ in range(2)]
    return times, [power_gamma(0.05), power_gamma(0.10)] * snapshots


@pytest.mark.parametrize("stored", [0, 1, 20, 63])
def test_a_stored_width_at_a_stored_time_is_that_snapshot(stored: int) -> None:
    times, gammas = profiles(32)
    coefficients = power_coefficients(times, gammas, times[stored], gammas[stored])
    np.testing.assert_allclose(coefficients, np.eye(64)[stored], atol=1e-9)


@given(st.floats(0.01, 0.28), st.floats(0.1, 1.0))
@settings(max_examples=50, deadline=None)
def test_constant_weights_are_reconstructed_for_every_target(sigma_rel: float, time: float) -> None:
    times, gammas = profiles(16)
    assert power_coefficients(times, gammas, 2e8 * time, power_gamma(sigma_rel)).sum() == pytest.approx(1)


WIDTHS = {0.05: 1e-12, 0.10: 1e-12, 0.075: 1e-4, 0.15: 1e-4, 0.02: 4e-3, 0.25: 3e-2}


def test_widths_between_the_stored_ones_are_reconstructed_to_the_stated_error() -> None:
    steps, snapshots = 4096, 32
    gammas = np.array([power_gamma(width) for width in WIDTHS])[:, None]
    rng = np.random.default_rng(0)
    weights = np.cumsum(0.01 * rng.standard_normal((steps, 64)) + 0.005, axis=0)
    tracks, stored = np.zeros((len(WIDTHS), 64)), []
    for i in range(steps):
        tracks += (1 - (i / (i + 1)) ** (gammas + 1)) * (weights[i] - tracks)
        if (i + 1) % (steps // snapshots) == 0:
            stored += [tracks[0].copy(), tracks[1].copy()]
    for track, gamma, tolerance in zip(tracks, gammas[:, 0], WIDTHS.values(), strict=True):
        coefficients = power_coefficients(*profiles(snapshots), 2e8, gamma)
        error = np.abs(coefficients @ np.array(stored) - track).max() / np.abs(track).max()
        assert error < tolerance


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with 32 snapshots of two widths, and the width between them tracked directly."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    net = Net()
    ema, direct = PowerEMA((0.05, 0.1)).attach(net), PowerEMA((0.075,)).attach(net)
    for i in range(512):
        walk(net, ema, range(i, i + 1))
        direct.update(nimg=i * 64, batch=64)
        if (i + 1) % 16 == 0:
            save_snapshot(folder, ema, ema.weights(), nimg=64 * (i + 1), metadata={"config": "seed: 0\n"})
    torch.save(direct.weights()["ema"], folder / "direct.pt")
    return folder


def test_the_command_writes_the_weights_that_direct_tracking_gives(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.safetensors"
    assert main([str(run_dir), "--sigma-rel", "0.075", "--out", str(out)]) == 0
    assert "sigma_rel 0.075 at 32,768 images from 64 snapshots" in capsys.readouterr().out
    tensors, metadata = read_weights(out)
    direct = torch.load(run_dir / "direct.pt", weights_only=True)
    assert tensors.keys() == direct.keys()
    assert torch.equal(tensors["frequencies"], direct["frequencies"])
    for key, value in direct.items():
        torch.testing.assert_close(tensors[key], value, rtol=1e-3, atol=1e-3)
    assert (metadata["nimg"], metadata["sigma_rel"], metadata["config"]) == ("32768", "0.075", "seed: 0\n")
    load_weights(Net(), tensors, "x")


@pytest.mark.parametrize("nimg", [1024, 16384])
def test_a_stored_width_comes_back_as_it_was_stored(run_dir: Path, nimg: int) -> None:
    stored = read_weights(snapshot_path(run_dir, nimg, 0.1))[0]
    tensors = reconstruct(run_dir, 0.1, nimg)[0]
    assert all(value.dtype == torch.float32 for value in tensors.values())
    for key, value in stored.items():
        torch.testing.assert_close(tensors[key], value.float(), rtol=1e-6, atol=1e-6)
    assert stored["first.weight"].dtype == torch.float16
    assert stored["frequencies"].dtype == torch.float32


def test_averages_beyond_the_range_of_float16_are_stored_in_float32(tmp_path: Path) -> None:
    net = Vector(2)
    set_parameters(net, 1e5)
    ema = PowerEMA((0.1,))
    (path,) = save_snapshot(tmp_path, ema, ema.attach(net).weights(), nimg=64, metadata={})
    assert torch.equal(read_weights(path)[0]["w"], torch.full((2,), 1e5))


@pytest.mark.parametrize(("arguments", "message"), [
    (["--sigma-rel", "0.4"], "sigma_rel=0.4 must be more than 0 and less than 0.2887"),
    (["--sigma-rel", "0.1", "--nimg", "1000"], "stored are 1024, 2048, 3072, ..., 30720, 31744, 32768"),
])  # fmt: skip
def test_wrong_input_is_told_and_writes_nothing(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    out = tmp_path / "x.safetensors"
    assert main([str(run_dir), *arguments, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_run_without_snapshots_is_told_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--sigma-rel", "0.1", "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "There are no EMA snapshots" in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, scoregen.training.reconstruct_ema as m; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
