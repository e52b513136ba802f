"""Laws of the absolute noise loss: its minimum on Gaussian data is that of squares."""

from dataclasses import dataclass
from math import pi, sqrt

import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Cond, Denoise
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.network import NetworkDenoiser
from scoregen.diffusion.wavegrad import WaveGradPrecond
from scoregen.networks.mlp import MLP
from scoregen.objectives.absolute import AbsoluteNoiseLoss
from scoregen.objectives.base import Loss
from scoregen.objectives.denoising import DenoisingLoss, InverseVarianceWeight
from scoregen.rng import BatchRng, generator

V, COUNT = 0.04, 100_000


@dataclass(frozen=True)
class OneAmplitude:
    """The noise level of an amplitude."""

    amplitude: float

    def quantile(self, u: Tensor) -> Tensor:
        return torch.full_like(u, sqrt(1 - self.amplitude**2) / self.amplitude)


def exact(scale: float = 1.0) -> Denoise:
    """The exact denoiser of N(0, V), its noise prediction scaled."""
    gaussian = GaussianDenoiser(torch.zeros(1).double(), torch.tensor(V).double())

    def denoiser(x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        return x - scale * (x - gaussian(x, sigma))

    return denoiser


def losses(amplitude: float, denoiser: Denoise) -> tuple[Tensor, Tensor]:
    """Absolute and squared errors with the same draws."""
    sigma = OneAmplitude(amplitude)
    x0 = sqrt(V) * torch.randn(COUNT, 1, generator=generator("data"), dtype=torch.float64)

    def of(objective: AbsoluteNoiseLoss | DenoisingLoss) -> Loss:
        return objective(denoiser, x0, None, BatchRng("w1", size=COUNT))

    return of(AbsoluteNoiseLoss(sigma)).value, of(DenoisingLoss(sigma, InverseVarianceWeight())).value


@pytest.mark.parametrize(
    ("amplitude", "absolute", "square"), [(0.9, 0.30454, 0.14568), (0.5, 0.09152, 0.01316)]
)
def test_the_exact_noise_of_a_gaussian_has_the_least_of_both_losses(
    amplitude: float, absolute: float, square: float
) -> None:
    """sqrt(2 V / pi) and V, V = l^2 v / (l^2 v + 1 - l^2); any other scale has more of both."""
    rest = amplitude**2 * V / (amplitude**2 * V + 1 - amplitude**2)
    assert (sqrt(2 * rest / pi), rest) == pytest.approx((absolute, square), abs=5e-6)
    at_optimum = losses(amplitude, exact())
    for value, expected in zip(at_optimum, (absolute, square), strict=True):
        assert float(value.mean()) == pytest.approx(expected, abs=4 * float(value.std()) / COUNT**0.5)
    for scale in (0.9, 1.1):
        for value, least in zip(losses(amplitude, exact(scale)), at_optimum, strict=True):
            excess = value - least
            assert float(excess.mean()) > 4 * float(excess.std()) / COUNT**0.5


def test_its_gradient_is_the_finite_difference() -> None:
    network = MLP(resolution=2, channels=2, width=8, depth=1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn(p.shape, generator=generator("p")), alpha=0.2)
    denoiser = NetworkDenoiser(network, WaveGradPrecond(), shape=(2,)).double()
    x0 = torch.randn(5, 2, generator=generator("x0"), dtype=torch.float64)

    def value() -> Tensor:
        return AbsoluteNoiseLoss(OneAmplitude(0.7))(denoiser, x0, None, BatchRng("g", size=5)).value.sum()

    parameters = list(denoiser.parameters())
    gradients = torch.autograd.grad(value(), parameters)
    for p, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(p.shape, generator=generator("d"), dtype=torch.float64)
        sides = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                p.add_(direction, alpha=sign * 1e-6)
            sides.append(float(value().detach()))
        slope = float((gradient * direction).sum())
        assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(slope, rel=1e-5, abs=1e-8)
