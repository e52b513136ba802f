"""Laws of the multiplicative loss; published numbers for ln X_0 ~ N(0.3, 0.2^2), s = 0.8, mu = s^2 / 2."""

from math import sqrt

import pytest
import torch
from torch import Tensor, nn

from scoregen.denoisers.base import Cond, expand, score
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.hyvarinen import HyvarinenDenoiser
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.precond import HyvarinenPrecond, LogPrecond
from scoregen.networks.mlp import MLP
from scoregen.objectives.base import Loss
from scoregen.objectives.multiplicative import MultiplicativeLoss
from scoregen.rng import BatchRng, generator

MEAN, STD, VOLATILITY = 0.3, 0.2, 0.8
DRIFT = VOLATILITY**2 / 2
EXACT = GaussianDenoiser(torch.tensor([MEAN], dtype=torch.float64), torch.tensor(STD**2, dtype=torch.float64))


def logarithms(count: int) -> Tensor:
    return MEAN + STD * torch.randn(count, 1, generator=generator("data"), dtype=torch.float64)


def at_time(t: float, weight: str = "paper") -> MultiplicativeLoss:
    """The loss at one time of the process."""
    sigma = VOLATILITY * sqrt(t)
    return MultiplicativeLoss(sigma * (1 - 1e-9), sigma, weight)


def evaluate(loss: MultiplicativeLoss, denoiser: nn.Module, u0: Tensor) -> Loss:
    return loss(denoiser, u0, None, BatchRng("multiplicative", size=len(u0)))


class Recorder(nn.Module):
    """Notes what it is asked; answers with something that is no posterior mean."""

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        self.x, self.sigma, self.denoised = x, sigma, (3 * x).sin() + expand(sigma, x)
        return self.denoised


def test_data_are_noised_to_the_marginal_of_ito_paths() -> None:
    count, steps = 40_000, 1000
    paths, g = logarithms(count).exp(), generator("paths")
    for _ in range(steps):
        dw = torch.randn(count, 1, generator=g, dtype=torch.float64) / sqrt(steps)
        paths = paths * (1 + DRIFT / steps + VOLATILITY * dw)
    recorder = Recorder()
    evaluate(at_time(1.0), recorder, logarithms(count))
    for u in (paths.log(), recorder.x):
        assert float(u.mean()) == pytest.approx(0.3, abs=4 * 0.825 / sqrt(count))
        assert float(u.std()) == pytest.approx(0.82462, abs=4 * 0.825 / sqrt(2 * count))


@pytest.mark.parametrize("weight", ["paper", "variance"])
def test_the_loss_is_the_published_one_of_the_hyvarinen_score(weight: str) -> None:
    u0, recorder = logarithms(500), Recorder()
    loss = evaluate(MultiplicativeLoss(0.01, 2.0, weight), recorder, u0)
    sigma = recorder.sigma[:, None]
    t, n = sigma**2 / VOLATILITY**2, (recorder.x - u0) / sigma
    h = (recorder.denoised - recorder.x) / sigma**2 - 1
    published = VOLATILITY**2 * t * h + recorder.x - u0 - DRIFT * t + 1.5 * VOLATILITY**2 * t
    torch.testing.assert_close(published, sigma**2 * (h + 1) + sigma * n, rtol=0, atol=4e-15)
    h_cond = -1 - n / sigma
    torch.testing.assert_close(published**2, sigma**4 * (h - h_cond) ** 2, rtol=1e-9, atol=1e-14)
    factor = {"paper": 1.0, "variance": sigma**-2}[weight]
    torch.testing.assert_close(loss.value, (factor * published**2).mean(1), rtol=1e-9, atol=1e-14)


def test_times_are_uniform() -> None:
    sigma = evaluate(MultiplicativeLoss(), Recorder(), logarithms(1000)).sigma
    t = (sigma**2 - 0.0253**2) / (0.8**2 - 0.0253**2)
    assert torch.equal((t * 1000).long().clamp(0, 999).sort().values, torch.arange(1000))


@pytest.mark.parametrize(
    ("t", "offset", "slope"), [(0.01, 5.466, -21.552), (0.1, 1.885, -9.615), (1.0, -0.5588, -1.4706)]
)
def test_the_best_hyvarinen_score_is_the_known_line(t: float, offset: float, slope: float) -> None:
    u = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    h = score(EXACT, u, torch.tensor(VOLATILITY * sqrt(t), dtype=torch.float64)) - 1
    torch.testing.assert_close(h, offset + slope * u, rtol=2e-4, atol=5e-4)


@pytest.mark.parametrize(
    ("t", "of_h", "least"),
    [(0.01, 134.70, 0.00552), (0.1, 6.010, 0.02462), (0.3, None, 0.03310), (1.0, 0.0919, 0.03765)],
)
def test_the_exact_model_reaches_the_known_minimum_and_no_other_does(
    t: float, of_h: float | None, least: float
) -> None:
    """With the weight of the paper that is the error of the posterior mean of the logarithm."""
    u0, sigma = logarithms(100_000), VOLATILITY * sqrt(t)
    value = evaluate(at_time(t), EXACT, u0).value
    error = 4 * float(value.std()) / sqrt(len(value))
    assert error < 0.02 * least
    assert float(value.mean()) == pytest.approx(least, abs=error + 5e-6)
    if of_h is not None:
        assert float(value.mean()) / sigma**4 == pytest.approx(of_h, abs=(error + 5e-6) / sigma**4)
    variance = evaluate(at_time(t, "variance"), EXACT, u0).value
    torch.testing.assert_close(variance, value / sigma**2, rtol=1e-7, atol=0)
    for factor in (0.9, 1.1):
        worse = evaluate(at_time(t), lambda x, s, c, k=factor: MEAN + k * (EXACT(x, s) - MEAN), u0).value
        assert worse.mean() > value.mean()


class ExactScore(nn.Module):
    """sigma grad_y log p(y; sigma) of log-normal data, from what the network is given."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(MEAN, dtype=torch.float64))

    def forward(self, x: Tensor, noise_labels: Tensor, cond: Cond, augment_labels: Tensor | None) -> Tensor:
        sigma = expand((4 * noise_labels).exp(), x)
        y = x * (sigma**2).exp()
        return sigma * (-1 - (y.log() - self.mean) / (STD**2 + sigma**2)) / y


def test_the_score_of_the_values_makes_the_denoiser_of_their_logarithms() -> None:
    denoiser = HyvarinenDenoiser(ExactScore(), HyvarinenPrecond(), shape=(1,))
    sigma = torch.tensor([0.0253, 0.2, 0.8, 3.0], dtype=torch.float64)
    u = torch.tensor([-1.0, 0.2, 0.7, 4.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(denoiser(u, sigma), EXACT(u, sigma), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("build", [(NetworkDenoiser, LogPrecond), (HyvarinenDenoiser, HyvarinenPrecond)])
@pytest.mark.parametrize("weight", ["paper", "variance"])
def test_the_gradient_is_that_of_finite_differences(build: tuple, weight: str) -> None:
    wrap, precond = build
    network = MLP(resolution=3, channels=3, width=16, depth=2).double()
    denoiser = wrap(network, precond(), shape=(3,))
    parameters = list(denoiser.parameters())
    direction = [torch.randn_like(p) for p in parameters]

    def moved(step: float) -> Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=step)
        return evaluate(MultiplicativeLoss(weight=weight), denoiser, logarithms(24).view(8, 3)).value.mean()

    gradient = torch.autograd.grad(moved(0.0), parameters)
    slope = torch.stack([(g * d).sum() for g, d in zip(gradient, direction, strict=True)]).sum()
    with torch.no_grad():
        difference = (moved(1e-5) - moved(-2e-5)) / 2e-5
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-9)
    assert abs(float(slope)) > 1e-3
