import numpy as np
import pytest
import torch
from torch import Tensor

from scoregen.denoisers.gaussian import ClassGaussianDenoiser, GaussianDenoiser
from scoregen.rng import generator


def normal(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(key), dtype=torch.float64)


def level(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=torch.float64)


@pytest.fixture
def gaussian() -> GaussianDenoiser:
    """Twelve dimensions, of which six keep a variance of their own."""
    root = normal(12, 12, key="root") * torch.logspace(0, -2, 12, dtype=torch.float64)
    return GaussianDenoiser.from_covariance(normal(3, 4, key="mean"), root.T @ root, rank=6)


@pytest.mark.parametrize("sigma", [10.0, 1.0, 0.1, 0.002])
def test_the_flow_solves_the_differential_equation(gaussian: GaussianDenoiser, sigma: float) -> None:
    from scipy.integrate import solve_ivp

    x = 80 * normal(2, 3, 4)

    def slope(log_sigma: float, flat: np.ndarray) -> np.ndarray:
        now = torch.from_numpy(flat).reshape(x.shape)
        return (now - gaussian(now, level(np.exp(log_sigma)))).flatten().numpy()

    span = (np.log(80.0), np.log(sigma))
    solved = solve_ivp(slope, span, x.flatten().numpy(), method="DOP853", rtol=1e-13, atol=1e-13)
    end = torch.from_numpy(solved.y[:, -1]).reshape(x.shape)
    torch.testing.assert_close(gaussian.flow(x, level(80.0), level(sigma)), end, rtol=0, atol=1e-10)


def test_two_jumps_are_one(gaussian: GaussianDenoiser) -> None:
    x = 80 * normal(5, 3, 4)
    halfway = gaussian.flow(x, level(80.0), level(7.0))
    twice, once = (
        gaussian.flow(halfway, level(7.0), level(0.1)),
        gaussian.flow(x, level(80.0), level(0.1)),
    )
    torch.testing.assert_close(twice, once, rtol=1e-14, atol=1e-13)


def test_the_denoiser_is_the_end_of_each_direction(gaussian: GaussianDenoiser) -> None:
    """The flow's slope is epsilon: x_sigma' = x + (sigma' - sigma) (x - D) / sigma + O(step^2)."""
    x, sigma, step = 3 * normal(4, 3, 4), 2.0, 1e-5
    moved = gaussian.flow(x, level(sigma), level(sigma + step)) - gaussian.flow(
        x, level(sigma), level(sigma - step)
    )
    slope = (x - gaussian(x, level(sigma))) / sigma
    torch.testing.assert_close(moved / (2 * step), slope, rtol=1e-8, atol=1e-9)


def test_the_mean_variance_of_the_tail_beats_none() -> None:
    root = normal(12, 12, key="root") * torch.logspace(0, -1, 12, dtype=torch.float64)
    full = GaussianDenoiser.from_covariance(normal(12, key="mean"), root.T @ root)
    low = GaussianDenoiser.from_covariance(full.mean, root.T @ root, rank=6)
    bare = GaussianDenoiser(full.mean, low.variances, eigenvectors=low.eigenvectors)
    x = 80 * normal(4000, 12)
    for sigma in (10.0, 1.0, 0.3):
        exact = full.flow(x, level(80.0), level(sigma))
        error, without = (
            (g.flow(x, level(80.0), level(sigma)) - exact).square().mean().sqrt() for g in (low, bare)
        )
        assert error < 0.85 * without


def test_every_class_flows_on_its_own(gaussian: GaussianDenoiser) -> None:
    other = GaussianDenoiser(normal(3, 4, key="other"), level(2.0))
    both = ClassGaussianDenoiser([gaussian, other], other)
    x, sigma = 5 * normal(4, 3, 4), torch.linspace(5, 8, 4, dtype=torch.float64)
    flowed = both.flow(x, sigma, level(1.0), torch.tensor([0, 1, 0, 2]))
    torch.testing.assert_close(flowed[::2], gaussian.flow(x[::2], sigma[::2], level(1.0)))
    torch.testing.assert_close(flowed[1::2], other.flow(x[1::2], sigma[1::2], level(1.0)))
    torch.testing.assert_close(both.flow(x, sigma, level(1.0)), other.flow(x, sigma, level(1.0)))


def test_without_noise_the_denoiser_projects_on_the_data(gaussian: GaussianDenoiser) -> None:
    flat = GaussianDenoiser(gaussian.mean, gaussian.variances, eigenvectors=gaussian.eigenvectors)
    x = normal(3, 3, 4)
    centred, basis = (x - flat.mean).flatten(1), flat.eigenvectors
    expected = flat.mean + ((centred @ basis) @ basis.T).view_as(x)
    torch.testing.assert_close(flat(x, level(0.0)), expected)
