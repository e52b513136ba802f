from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from scoregen.denoisers.base import Denoiser, expand, score
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.denoisers.training_set import TrainingSetDenoiser
from scoregen.errors import UserError
from scoregen.rng import generator

SIGMAS = [0.002, 0.1, 1.0, 80.0]


def normal(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(key), dtype=torch.float64)


def score_of(log_density, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(log_density(x).sum(), x)[0]


def points_of_a_mixture(data: Tensor) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(data, torch.zeros(()).double())


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_gaussian_score_is_the_gradient_of_its_log_density(sigma: float) -> None:
    root = normal(12, 12, key="root")
    mean, covariance = normal(3, 2, 2, key="mean"), root @ root.T
    x = 3 * normal(5, 3, 2, 2)
    noisy = MultivariateNormal(mean.flatten(), covariance + sigma**2 * torch.eye(12))
    expected = score_of(lambda x: noisy.log_prob(x.flatten(1)), x)
    denoiser = GaussianDenoiser.from_covariance(mean, covariance)
    torch.testing.assert_close(
        score(denoiser, x, torch.tensor(sigma, dtype=torch.float64)), expected, rtol=1e-7, atol=1e-9
    )


def test_a_diagonal_gaussian_is_the_full_one_in_the_standard_basis() -> None:
    mean, variances, x = normal(2, 3, key="mean"), normal(2, 3, key="v").square(), normal(5, 2, 3)
    sigma = torch.linspace(0.1, 2, 5, dtype=torch.float64)
    diagonal = GaussianDenoiser(mean, variances)
    full = GaussianDenoiser.from_covariance(mean, variances.flatten().diag())
    torch.testing.assert_close(diagonal(x, sigma), full(x, sigma))


def test_directions_outside_the_eigenvectors_carry_no_variance() -> None:
    basis = torch.linalg.qr(normal(6, 6, key="q")).Q
    full = GaussianDenoiser(torch.zeros(6), torch.tensor([2.0, 1.0, 0, 0, 0, 0]), eigenvectors=basis)
    low_rank = GaussianDenoiser(torch.zeros(6), torch.tensor([2.0, 1.0]), eigenvectors=basis[:, :2])
    x, sigma = normal(4, 6), torch.tensor(0.7)
    torch.testing.assert_close(low_rank(x, sigma), full(x, sigma))


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("members", [[0], [1, 2], [0, 1, 2]])
def test_the_mixture_score_is_the_gradient_of_its_log_density(
    mixture: GaussianMixtureDenoiser, sigma: float, members: list[int]
) -> None:
    weights = Categorical(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)[members])
    scale = (mixture.variances[members] + sigma**2).sqrt()[:, None].expand(-1, 2)
    noisy = MixtureSameFamily(weights, Independent(Normal(mixture.means[members], scale), 1))
    x = 2 * normal(7, 2)
    cond = torch.full((7,), {1: 0, 2: 1, 3: 2}[len(members)])  # class 0, class 1, the null class
    actual = score(mixture, x, torch.tensor(sigma, dtype=torch.float64), cond)
    torch.testing.assert_close(actual, score_of(noisy.log_prob, x), rtol=1e-7, atol=1e-9)


def test_a_mixture_of_points_is_the_empirical_denoiser() -> None:
    data, x, sigma = normal(9, 3, key="data"), normal(5, 3), torch.linspace(0.1, 3, 5, dtype=torch.float64)
    points = GaussianMixtureDenoiser(data, torch.zeros(9, dtype=torch.float64))
    torch.testing.assert_close(EmpiricalDenoiser(data)(x, sigma), points(x, sigma))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_empirical_score_is_the_gradient_of_its_log_density(sigma: float) -> None:
    data, x = normal(20, 2, 3, key="data"), normal(4, 2, 3)
    x[0] = data[3] + sigma * x[0]

    def log_density(x: Tensor) -> Tensor:
        return (-(x[:, None] - data).square().flatten(2).sum(2) / (2 * sigma**2)).logsumexp(1)

    actual = score(EmpiricalDenoiser(data), x, torch.tensor(sigma, dtype=torch.float64))
    torch.testing.assert_close(actual, score_of(log_density, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 1e-14, 1e-6, 1e-3])
def test_as_sigma_vanishes_the_empirical_denoiser_is_the_nearest_neighbour(sigma: float) -> None:
    data, x = normal(50, 8, key="data"), normal(10, 8)
    nearest = data[(x[:, None] - data).square().sum(2).argmin(1)]
    torch.testing.assert_close(
        EmpiricalDenoiser(data)(x, torch.tensor(sigma)), nearest, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("kind", [EmpiricalDenoiser, TrainingSetDenoiser, points_of_a_mixture])
def test_without_noise_a_finite_set_is_its_nearest_member(kind: Callable[[Tensor], Denoiser]) -> None:
    data, x = normal(20, 3, key="data"), normal(7, 3)
    nearest = data[torch.cdist(x, data).argmin(1)]
    torch.testing.assert_close(kind(data)(x, torch.zeros(7, dtype=torch.float64)), nearest)


def test_as_sigma_grows_the_empirical_denoiser_is_the_mean() -> None:
    data, x = normal(50, 8, key="data"), normal(10, 8)
    error = [(EmpiricalDenoiser(data)(x, torch.tensor(s)) - data.mean(0)).abs().max() for s in (1e3, 1e4)]
    assert error[0] < 1e-4
    assert error[1] / error[0] == pytest.approx(0.01, rel=0.02)  # the covariance over sigma^2


@pytest.mark.parametrize("numbers", [1, 200, 3000])
def test_little_memory_does_not_show(numbers: int) -> None:
    data, x = normal(50, 8, key="data"), normal(10, 8)
    labels = torch.arange(50) // 17  # classes that are missing from many chunks
    cond, sigma = torch.arange(10) % 4, torch.logspace(-3, 2, 10)
    whole = EmpiricalDenoiser(data, labels)(x, sigma, cond)
    torch.testing.assert_close(
        EmpiricalDenoiser(data, labels, memory=numbers * 8 / 2**20)(x, sigma, cond), whole, rtol=1e-10, atol=0
    )


def test_a_class_is_the_denoiser_of_its_own_data() -> None:
    data, x, sigma = normal(30, 4, key="data"), normal(8, 4), torch.logspace(-2, 1, 8)
    labels, cond = torch.arange(30) % 3, torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    denoiser = EmpiricalDenoiser(data, labels)
    assert denoiser.num_classes == 3
    subsets = [*(EmpiricalDenoiser(data[labels == k]) for k in range(3)), EmpiricalDenoiser(data)]
    expected = torch.stack([subsets[k](x[i : i + 1], sigma[i])[0] for i, k in enumerate(cond.tolist())])
    torch.testing.assert_close(denoiser(x, sigma, cond), expected)
    torch.testing.assert_close(denoiser(x, sigma), subsets[3](x, sigma))


def test_small_noise_on_image_sized_data_is_exact_in_float32_too() -> None:
    data = (normal(200, 3, 32, 32, key="data") / 2).float()
    data[1] = data[0] + 1e-4  # neighbours that the rounding of the expanded square would confuse
    x, sigma = data[:2].clone(), torch.tensor(0.002)
    direct = (x[:, None].double() - data.double()).square().flatten(2).sum(2)
    expected = torch.einsum("bn,nchw->bchw", (-direct / (2 * 0.002**2)).softmax(1), data.double())
    actual = EmpiricalDenoiser(data)(x, sigma)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "empirical"])
def test_one_sigma_for_all_is_the_same_sigma_for_each(kind: str, mixture: GaussianMixtureDenoiser) -> None:
    data = normal(20, 2, key="data")
    denoiser: Denoiser = {
        "gaussian": GaussianDenoiser(data.mean(0), data.var(0)),
        "mixture": mixture,
        "empirical": EmpiricalDenoiser(data),
    }[kind]
    x, sigma = normal(6, 2), torch.tensor(0.3, dtype=torch.float64)
    together = denoiser(x, sigma)
    assert torch.equal(together, denoiser(x, sigma.expand(6)))
    noise = expand(torch.linspace(0.1, 1, 6, dtype=torch.float64), x)
    each = torch.cat([denoiser(x[i : i + 1], noise[i].flatten()) for i in range(6)])
    torch.testing.assert_close(denoiser(x, noise.flatten()), each, rtol=1e-12, atol=1e-14)


def test_impossible_parameters_are_refused() -> None:
    with pytest.raises(UserError, match="a variance is negative: -1"):
        GaussianDenoiser(torch.zeros(2), torch.tensor(-1.0))
    with pytest.raises(UserError, match=r"eigenvectors of shape \(3, 2\) do not fit 2 elements"):
        GaussianDenoiser(torch.zeros(2), torch.ones(2), eigenvectors=torch.zeros(3, 2))
    with pytest.raises(UserError, match="must not be negative"):
        GaussianMixtureDenoiser(torch.zeros(2, 1), torch.tensor(-1.0))
    with pytest.raises(UserError, match="every class needs a component of weight above 0"):
        GaussianMixtureDenoiser(
            torch.zeros(2, 1), torch.tensor(1.0), weights=torch.tensor([1.0, 0.0]), labels=torch.arange(2)
        )
    with pytest.raises(UserError, match="every class id"):
        EmpiricalDenoiser(torch.zeros(2, 1), torch.tensor([0, 2]))
