"""Learning rates are functions of the images seen and of nothing else; published values; the config files."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from scoregen import config
from scoregen.training.schedules import Constant, Cosine, InverseSqrt, RampUp, Schedule

SCHEDULES: list[Schedule] = [
    Constant(),
    RampUp(),
    RampUp(0),
    InverseSqrt(),
    Cosine(1000),
    Cosine(10**8, 10**6),
]


@pytest.mark.parametrize(("nimg", "lr"), [(5e6, 0.005), (1e7, 0.01), (7.168e7, 0.01), (2.8672e8, 0.005)])
def test_published_rates_of_edm2(nimg: float, lr: float) -> None:
    schedule = InverseSqrt(flat=35_000 * 2048, rampup=10_000_000)
    assert 0.01 * schedule(int(nimg)) == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(
    ("nimg", "factor"), [(0, 0.0), (512, 5.12e-5), (5_000_000, 0.5), (10**7, 1.0), (2 * 10**8, 1.0)]
)
def test_edm_ramps_up_over_ten_million_images_from_zero(nimg: int, factor: float) -> None:
    assert RampUp()(nimg) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("nimg", "factor"), [(0, 1), (250, 0.5 + 0.5**1.5), (500, 0.5), (1000, 0), (5000, 0)]
)
def test_cosine_falls_to_zero_at_the_total_and_stays(nimg: int, factor: float) -> None:
    assert Cosine(1000)(nimg) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_factor_depends_on_the_images_alone(schedule: Schedule) -> None:
    times = list(range(0, 3 * 10**8, 10**7 + 7))
    in_order = {nimg: schedule(nimg) for nimg in times}
    random.Random(0).shuffle(times)
    assert {nimg: schedule(nimg) for nimg in times} == in_order


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(nimg=st.integers(0, 10**9))
@settings(max_examples=50, deadline=None)
def test_the_factor_is_in_the_unit_interval(schedule: Schedule, nimg: int) -> None:
    assert 0 <= schedule(nimg) <= 1


def build(group: str, choice: str, **arguments: Any) -> Any:
    """What conf/<group>/<choice>.yaml builds within a run of 4096 images."""
    cfg = OmegaConf.create({"trainer": {"total": 4096}})
    cfg[group] = OmegaConf.load(Path(config.conf_dir()) / group / f"{choice}.yaml")
    return config.instantiate(cfg[group], **arguments)


@pytest.mark.parametrize(("choice", "expected"), [
    ("constant", Constant()), ("rampup", RampUp()), ("edm2", InverseSqrt()), ("cosine", Cosine(4096)),
])  # fmt: skip
def test_the_config_files_build_the_published_schedules(choice: str, expected: Schedule) -> None:
    assert build("schedule", choice) == expected


@pytest.mark.parametrize("choice", ["adam", "adamw"])
def test_the_optimizer_files_leave_the_parameters_to_the_framework_and_can_skip_a_step(choice: str) -> None:
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = build("optimizer", choice, params=[w])
    assert "params" not in OmegaConf.load(Path(config.conf_dir()) / "optimizer" / f"{choice}.yaml")
    (group,) = optimizer.param_groups
    assert (group["lr"], tuple(group["betas"]), group["eps"]) == (1e-3, (0.9, 0.999), 1e-8)
    w.grad = torch.full((2,), torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(w, torch.ones(2))


def test_the_epsilon_of_a_summed_loss_is_d_times_that_of_its_mean() -> None:
    d = 3072
    torch.manual_seed(0)
    start, grads = torch.randn(d), 1e-5 * torch.randn(20, d)  # so small that epsilon matters
    results = []
    for scale, eps in ((1.0, 1e-8), (1 / d, 1e-8 / d)):
        w = torch.nn.Parameter(start.double())
        optimizer = torch.optim.Adam([w], lr=1e-2, eps=eps)
        for grad in grads:
            w.grad = grad.double() * scale
            optimizer.step()
        results.append(w.detach())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)
