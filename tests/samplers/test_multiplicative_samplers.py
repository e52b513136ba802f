"""Laws of the multiplicative samplers; published numbers for ln X_0 ~ N(0.3, 0.2^2) and volatility 0.8."""

from math import sqrt
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset, to_model_range
from scoregen.data.codec import LogCodec
from scoregen.data.digits import load_digits
from scoregen.denoisers.base import Cond
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.moments import measure_gaussian, pooled
from scoregen.diffusion.grids import BrownianGrid
from scoregen.errors import UserError
from scoregen.rng import BatchRng, SampleRng, generator
from scoregen.samplers import SAMPLERS
from scoregen.samplers.consistency import ConsistencySampler
from scoregen.samplers.edm import HeunSampler
from scoregen.samplers.fit import fit_sampler
from scoregen.samplers.generate import generate
from scoregen.samplers.langevin import LangevinSampler
from scoregen.samplers.multiplicative import (
    LOG_FLOOR,
    MultiplicativeSampler,
    UnconstrainedMultiplicativeSampler,
)
from scoregen.samplers.one_step import OneStepSampler
from scoregen.samplers.teleport import TeleportSampler

MEAN, STD, VOLATILITY = 0.3, 0.2, 0.8
EXACT = GaussianDenoiser(torch.tensor([MEAN], dtype=torch.float64), torch.tensor(STD**2, dtype=torch.float64))
GRID = BrownianGrid(0.0253, VOLATILITY)
NAMES = ("multiplicative", "multiplicative_unconstrained")


def final_logarithms(name: str, steps: int, count: int) -> Tensor:
    """Where N published steps, with noise in all of them, bring draws of the exact marginal."""
    sampler = SAMPLERS[name](steps, BrownianGrid(1e-3, VOLATILITY), "float64")
    sigmas = [*sampler.sigmas(EXACT)[:-1], 1e-12]  # a level above 0 keeps the noise of the last step
    n = torch.randn(count, 1, generator=generator("start"), dtype=torch.float64)
    *_, last = sampler.integrate(
        EXACT, MEAN + sqrt(STD**2 + VOLATILITY**2) * n, sigmas, rng=BatchRng("steps", size=count)
    )
    return last.x


@pytest.mark.parametrize(
    ("name", "steps", "mean", "std", "count"),
    [
        ("multiplicative", 1000, 0.299, 0.201, 50_000),
        ("multiplicative", 100, 0.300, 0.208, 200_000),
        ("multiplicative_unconstrained", 1000, 0.299, 0.201, 50_000),
        ("multiplicative_unconstrained", 100, 0.297, 0.209, 200_000),
    ],
)
def test_log_normal_data_come_out_with_the_known_moments(
    name: str, steps: int, mean: float, std: float, count: int
) -> None:
    u = final_logarithms(name, steps, count)
    assert float(u.mean()) == pytest.approx(mean, abs=0.001 + 3 * STD / sqrt(count))
    assert float(u.std()) == pytest.approx(std, abs=0.0005 + 3 * STD / sqrt(2 * count))
    assert float(u.min()) > LOG_FLOOR  # no value became negative


@pytest.mark.parametrize("name", NAMES)
def test_the_error_of_the_moments_falls_with_the_length_of_the_steps(name: str) -> None:
    errors = [float(final_logarithms(name, steps, 200_000).std()) - STD for steps in (25, 50, 100)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.35)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.35)


def test_equal_steps_of_time_lead_from_the_end_to_zero() -> None:
    sigmas = BrownianGrid(1e-3, VOLATILITY)(40)
    torch.testing.assert_close(
        sigmas.square(), VOLATILITY**2 * (1 - torch.arange(41, dtype=torch.float64) / 40), rtol=0, atol=1e-14
    )
    assert float(BrownianGrid(0.5, VOLATILITY)(40)[-2]) == 0.5


class Still(GaussianDenoiser):
    """A denoiser with a score of zero: only the noise moves x."""

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        return x


@pytest.mark.parametrize(("damping", "repeats", "scale"), [(1.0, 1, 1.0), (0.9, 1, 0.6), (0.95, 3, 1.4678)])
def test_damping_repeats_and_scale_are_those_of_the_published_runs(
    damping: float, repeats: int, scale: float
) -> None:
    sampler = MultiplicativeSampler(20, damping=damping, repeats=repeats, step_scale=scale)
    sigmas = BrownianGrid(1e-3, VOLATILITY)(20).tolist()
    still = Still(torch.zeros(1, dtype=torch.float64), torch.ones((), dtype=torch.float64))
    x = torch.zeros(100_000, 1, dtype=torch.float64)
    *_, last = sampler.integrate(still, x, sigmas, rng=BatchRng("still", size=len(x)))
    delta = VOLATILITY**2 / 20
    variance = repeats * scale * delta * sum(damping ** (2 * k) for k in range(19))
    assert float(last.x.var()) == pytest.approx(variance, rel=4 * sqrt(2 / len(x)))
    assert sampler.nfe() == repeats * 19 + 1


def test_a_value_that_becomes_negative_goes_on_at_the_floor() -> None:
    sampler = UnconstrainedMultiplicativeSampler()
    x, noise = torch.zeros(3, 1), torch.tensor([[-1.0], [-5.0], [0.25]])
    moved = sampler.move(x, 0.5, torch.full_like(x, -0.5), noise)  # factors 1 + noise
    assert moved.flatten().tolist() == pytest.approx([LOG_FLOOR, LOG_FLOOR, 0.22314355])


def seen_logarithms() -> Tensor:
    return LogCodec().encode(to_model_range(load_digits().x)).double()


class FirstCall(GaussianDenoiser):
    """Notes the first state that it is asked about."""

    codec = LogCodec()

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        self.first = getattr(self, "first", x)
        return super().forward(x, sigma, cond)


def start_of(prior: str, count: int = 20_000) -> Tensor:
    model = FirstCall(torch.zeros(1, 8, 8), torch.tensor(1.0))
    sampler = MultiplicativeSampler(1, GRID, prior=prior)
    fitted = fit_sampler(sampler, model, load_digits, None)
    fitted(
        model, torch.randn(count, 1, 8, 8, generator=generator("noise")), rng=BatchRng("prior", size=count)
    )
    return model.first.double()


def test_the_prior_has_the_moments_of_the_noisy_logarithms_of_the_data() -> None:
    u, x = seen_logarithms().flatten(1), start_of("covariance").flatten(1)
    expected = u.T.cov() + VOLATILITY**2 * torch.eye(64, dtype=torch.float64)
    assert float((x.mean(0) - u.mean(0)).abs().max()) < 4.5 * sqrt(0.9 / len(x))
    assert float((x.T.cov() - expected).abs().max()) < 4.5 * sqrt(2 / len(x)) * float(expected.max())


def test_the_published_prior_has_one_mean_and_variance_for_all_pixels() -> None:
    u, x = seen_logarithms(), start_of("channel")
    total = float(u.var()) + VOLATILITY**2
    assert float(x.mean()) == pytest.approx(float(u.mean()), abs=4 * sqrt(total / x.numel()))
    assert float(x.var()) == pytest.approx(total, rel=4 * sqrt(2 / x.numel()))
    assert float((x.flatten(1).T.cov() - total * torch.eye(64)).abs().max()) < 4.5 * total * sqrt(2 / len(x))


def test_pooled_moments_are_those_of_all_elements_of_a_channel() -> None:
    x = torch.randn(500, 3, 4, 5, generator=generator("pool")).double() * torch.rand(3, 4, 5) + torch.rand(
        3, 4, 5
    )
    data = ArrayDataset("colours", x, torch.arange(500) % 2)
    for gaussian, rows in ((measure_gaussian(data), x), (pooled(measure_gaussian(data)), x)):
        white = pooled(gaussian)
        channel = rows.transpose(0, 1).flatten(1)
        torch.testing.assert_close(white.mean[:, 0, 0].double(), channel.mean(1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            white.variances.view(3, 20)[:, 0].double(), channel.var(1), rtol=0.005, atol=1e-5
        )
    by_class = pooled(measure_gaussian(data, per_class=True))
    first = by_class.members[0].mean[:, 0, 0].double()
    torch.testing.assert_close(first, x[::2].transpose(0, 1).flatten(1).mean(1), rtol=1e-5, atol=1e-5)


def test_chains_from_data_start_at_logarithms() -> None:
    model = FirstCall(torch.zeros(1, 8, 8), torch.tensor(1.0))
    sampler = fit_sampler(LangevinSampler(1, GRID, init="data"), model, load_digits, None)
    sampler(model, torch.zeros(4, 1, 8, 8), None, SampleRng([1, 2, 3, 4]))
    distances = torch.cdist(model.first.double().flatten(1), seen_logarithms().flatten(1))
    assert float(distances.amin(1).max()) < 1e-6


@pytest.mark.parametrize("name", [*NAMES, "heun"])
def test_samples_are_images_again(name: str) -> None:
    """A model that is sure of one image draws that image, whatever the space it works in."""
    image = load_digits().x[3:4]
    model = FirstCall(LogCodec().encode(to_model_range(image))[0], torch.tensor(1e-12))
    (samples,) = generate(model, SAMPLERS[name](6, GRID), range(3), batch=3, device="cpu")
    assert torch.equal(samples.images, image.expand(3, -1, -1, -1))


def test_moments_are_kept_apart_from_those_of_other_spaces(tmp_path: Path) -> None:
    model = FirstCall(torch.zeros(1, 8, 8), torch.tensor(1.0))
    plain = GaussianDenoiser(torch.zeros(1, 8, 8), torch.tensor(1.0))
    files = {fit_sampler(MultiplicativeSampler(), m, load_digits, tmp_path).moments for m in (model, plain)}
    assert len(files) == 2
    small = GaussianDenoiser(torch.zeros(1, 2, 2), torch.tensor(1.0))
    for sampler in (MultiplicativeSampler, TeleportSampler):
        with pytest.raises(
            UserError, match=r"samples of shape \(1, 8, 8\), the model's have shape \(1, 2, 2\)"
        ):
            sampler(moments=files.pop())(small, torch.zeros(1, 1, 2, 2))


def test_a_start_from_noise_alone_is_warned_of_where_data_show(recwarn: pytest.WarningsRecorder) -> None:
    model = FirstCall(torch.zeros(1, 8, 8), torch.tensor(1.0))
    for sampler in (HeunSampler(), MultiplicativeSampler(), OneStepSampler()):
        fit_sampler(sampler, model, load_digits, None)
    model.sigma_max = VOLATILITY
    jump = TeleportSampler(sigma_skip=VOLATILITY, protocol="regrid")
    for sampler in (MultiplicativeSampler(), OneStepSampler(), ConsistencySampler(), jump):
        fitted = fit_sampler(sampler, model, load_digits, None)
    fitted(model, torch.zeros(1, 1, 8, 8))
    assert not recwarn.list
    with pytest.warns(
        UserWarning, match="HeunSampler starts .* sigma=0.8.* --sampler teleport sigma_skip=0.8"
    ):
        fit_sampler(HeunSampler(), model, load_digits, None)
