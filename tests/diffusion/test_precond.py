import pytest
import torch

from scoregen.diffusion.noise import LogNormalSigma
from scoregen.diffusion.precond import (
    DDPMPrecond,
    EDMPrecond,
    FlowPrecond,
    IDDPMPrecond,
    VEPrecond,
    VPPrecond,
)
from scoregen.diffusion.schedules import ddpm_sigmas, iddpm_sigmas, vp_sigma, vp_time

SIGMA = torch.logspace(-3, 2, 50, dtype=torch.float64)


@pytest.mark.parametrize("sigma_data", [0.25, 0.5, 1.0])
def test_edm_input_and_target_have_unit_variance(sigma_data: float) -> None:
    c = EDMPrecond(sigma_data)(SIGMA)
    torch.testing.assert_close(c.input**2 * (sigma_data**2 + SIGMA**2), torch.ones_like(SIGMA))
    target_variance = (
        1 - c.skip
    ) ** 2 * sigma_data**2 + c.skip**2 * SIGMA**2  # of x0 - c_skip (x0 + sigma n)
    torch.testing.assert_close(target_variance / c.out**2, torch.ones_like(SIGMA))


def test_edm_skip_leaves_the_smallest_target() -> None:
    skip = torch.linspace(0, 1, 2001, dtype=torch.float64)
    for sigma in (0.05, 0.5, 2.0):
        variance = (1 - skip) ** 2 * 0.25 + skip**2 * sigma**2
        best = float(EDMPrecond()(torch.tensor(sigma)).skip)
        assert abs(best - float(skip[variance.argmin()])) < 1e-3


def test_vp_range_and_noise_label_are_the_published_ones() -> None:
    precond = VPPrecond()
    assert precond.sigma_min == pytest.approx(1.000498e-3, rel=1e-6)
    assert precond.sigma_max == pytest.approx(152.167, rel=1e-5)
    time = torch.linspace(1e-5, 1, 100, dtype=torch.float64)
    torch.testing.assert_close(precond(vp_sigma(time)).noise, 999 * time, rtol=1e-9, atol=0)


def test_vp_time_inverts_sigma_to_float32_rounding() -> None:
    time = torch.linspace(1e-5, 1, 1000, dtype=torch.float64)
    torch.testing.assert_close(vp_time(vp_sigma(time).float()).double(), time, rtol=1e-6, atol=0)


def test_ve_and_vp_outputs_are_the_noise_with_opposite_signs() -> None:
    vp, ve = VPPrecond()(SIGMA), VEPrecond()(SIGMA)
    assert torch.equal(vp.out, -SIGMA)
    assert torch.equal(ve.out, SIGMA)
    torch.testing.assert_close(ve.noise.exp() * 2, SIGMA)
    torch.testing.assert_close(vp.input, 1 / (1 + SIGMA**2).sqrt())
    assert (VEPrecond().sigma_min, VEPrecond().sigma_max) == (0.02, 100.0)


def test_a_flow_sees_the_straight_way_and_its_time() -> None:
    x0, n = torch.tensor(0.3), torch.tensor(-1.7)
    c, time = FlowPrecond()(SIGMA), SIGMA / (1 + SIGMA)
    x, z = x0 + SIGMA * n, (1 - time) * x0 + time * n
    torch.testing.assert_close(c.input * x, z)
    torch.testing.assert_close(c.skip * x + c.out * (n - x0), x0.expand(50).double())
    torch.testing.assert_close(c.noise, 1000 * time)


def test_the_logit_of_a_flows_time_is_normal_where_the_logarithm_of_sigma_is() -> None:
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    sigma = LogNormalSigma(0.4, 1.3).quantile(u)
    torch.testing.assert_close((sigma / (1 + sigma)).logit(), 0.4 + 1.3 * torch.special.ndtri(u))


def test_iddpm_levels_are_the_check_values() -> None:
    table = iddpm_sigmas()
    values = {0: 20291.17, 1: 641.662, 2: 320.830, 8: 80.2037, 999: 0.00642541, 1000: 0.0}
    assert {j: float(table[j]) for j in values} == pytest.approx(values, rel=2e-6)
    assert (IDDPMPrecond().sigma_min, IDDPMPrecond().sigma_max) == (table[999], table[0])


def test_iddpm_rounds_to_the_nearest_level_and_labels_it() -> None:
    precond, table = IDDPMPrecond(), iddpm_sigmas()
    j = torch.arange(1, 1000)
    halfway = (table[j] + table[j - 1]) / 2
    nudge = (table[j - 1] - table[j]) * 1e-3
    assert torch.equal(precond.round(halfway - nudge), table[j])
    assert torch.equal(precond.round(halfway + nudge), table[j - 1])
    assert torch.equal(precond.round(table), table)
    assert torch.equal(precond(table).noise, 999 - torch.arange(1001, dtype=torch.float64))


@pytest.mark.parametrize(
    "precond", [EDMPrecond(), VPPrecond(), VEPrecond(), IDDPMPrecond(), DDPMPrecond(), FlowPrecond()]
)
def test_coefficients_are_at_least_float32_and_agree_with_float64(precond: EDMPrecond) -> None:
    sigma = torch.tensor([0.0625, 1.0, 8.0])  # exact in bfloat16
    for narrow in (sigma.bfloat16(), sigma):
        for value, exact in zip(precond(narrow), precond(sigma.double()), strict=True):
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddpm_reads_predictions_as_diffusers_does_at_every_time_step(schedule: str, prediction: str) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        beta_schedule=schedule, prediction_type=prediction, clip_sample=False, variance_type="fixed_small"
    )
    precond = DDPMPrecond(prediction, schedule)
    x, f = torch.randn(2, 1, 64, dtype=torch.float64)
    for step in (0, 1, 250, 800, 998):
        abar = scheduler.alphas_cumprod[step].double()
        sigma = (1 / abar - 1).sqrt()
        c = precond(sigma)
        assert float(c.noise) == pytest.approx(step, abs=2e-2)  # theirs is computed in float32
        theirs = scheduler.step(f, step, x * abar.sqrt()).pred_original_sample
        torch.testing.assert_close(c.skip * x + c.out * f, theirs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(c.input, abar.sqrt(), rtol=1e-5, atol=0)


def test_ddpm_counts_fractions_of_time_steps_between_its_levels() -> None:
    precond = DDPMPrecond()
    table = ddpm_sigmas("linear", beta_start=1e-4, beta_end=0.02, levels=1000)
    between = (table[:-1] * table[1:]).sqrt()
    torch.testing.assert_close(precond(between).noise, torch.arange(999).double() + 0.5, rtol=0, atol=1e-9)
    assert (precond.sigma_min, precond.sigma_max) == (table[0], table[-1])
