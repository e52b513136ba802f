"""Laws of the Frechet distance and of its moments (F1, F2, F3, F5, F7)."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from scoregen.errors import UserError
from scoregen.evaluation.frechet import Gaussian, Moments, finite_sample_bias, frechet_distance

F64 = torch.float64


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def orthogonal(dim: int, seed: int = 7) -> Tensor:
    return torch.linalg.qr(normals(dim, dim, seed=seed))[0]


def gaussian_of(features: Tensor) -> Gaussian:
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments.summary()


def with_sqrtm(a: Gaussian, b: Gaussian) -> float:
    """The definition, with SciPy's matrix square root."""
    root = sqrtm((a.cov @ b.cov).numpy()).real
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * np.trace(root))


@pytest.mark.parametrize("dim", [1, 2, 33, 300])
def test_isotropic_gaussians_have_the_closed_form(dim: int) -> None:
    means, s, t = normals(2, dim), 0.7, 1.9
    eye = torch.eye(dim, dtype=F64)
    value = frechet_distance(Gaussian(means[0], s**2 * eye), Gaussian(means[1], t**2 * eye))
    exact = (means[0] - means[1]).square().sum() + dim * (s - t) ** 2
    assert value == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize("decades", [0, 3, 9])
def test_commuting_covariances_have_the_closed_form(decades: int) -> None:
    dim, basis, means = 300, orthogonal(300), normals(2, 300)
    first = torch.logspace(0, -decades, dim, dtype=F64)
    second = first.flip(0) + 0.01 * first
    a, b = (Gaussian(m, (basis * v) @ basis.T) for m, v in zip(means, (first, second), strict=True))
    exact = (means[0] - means[1]).square().sum() + (first.sqrt() - second.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize(("n_a", "n_b"), [(200, 300), (20, 300), (300, 20), (20, 30)])
def test_every_route_agrees_with_the_matrix_square_root(n_a: int, n_b: int) -> None:
    mixing = normals(60, 60, seed=3) / 8
    a = gaussian_of(normals(n_a, 60, seed=1) @ mixing)
    b = gaussian_of(1.2 * normals(n_b, 60, seed=2) @ mixing + 0.1)
    assert frechet_distance(a, b) == pytest.approx(with_sqrtm(a, b), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


@pytest.mark.parametrize(("n_a", "n_b"), [(20, 30), (20, 300)])
def test_fewer_samples_than_features_is_the_nuclear_norm_of_the_centred_samples(n_a: int, n_b: int) -> None:
    x, y = normals(n_a, 60, seed=1), 1.3 * normals(n_b, 60, seed=2)
    f, g = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    cross = torch.linalg.svdvals(f @ g.T).sum()
    exact = (x.mean(0) - y.mean(0)).square().sum() + f.square().sum() + g.square().sum() - 2 * cross
    assert frechet_distance(gaussian_of(x), gaussian_of(y)) == pytest.approx(float(exact), rel=1e-9)


def test_features_that_never_vary_do_not_count() -> None:
    x, y = normals(300, 20, seed=1), normals(400, 20, seed=2) + 0.2
    dead = torch.zeros(1, 15, dtype=F64)
    widened = [gaussian_of(torch.cat([z, dead.expand(len(z), -1)], 1)) for z in (x, y)]
    assert frechet_distance(*widened) == pytest.approx(
        frechet_distance(gaussian_of(x), gaussian_of(y)), rel=1e-9
    )


def test_rotations_change_nothing() -> None:
    x, y, rotation = normals(500, 40, seed=1), normals(400, 40, seed=2) * 1.1 + 0.3, orthogonal(40)
    plain = frechet_distance(gaussian_of(x), gaussian_of(y))
    turned = frechet_distance(gaussian_of(x @ rotation), gaussian_of(y @ rotation))
    assert turned == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("n", [30, 500])
def test_the_distance_to_itself_is_zero_and_never_negative(n: int) -> None:
    a = gaussian_of(normals(n, 40) * torch.logspace(0, -3, 40, dtype=F64))
    assert 0.0 <= frechet_distance(a, a) <= 2e-7


def test_the_bias_at_n_samples_is_the_expected_distance_of_the_truth_to_itself() -> None:
    spectrum = torch.linspace(0.2, 2.0, 12, dtype=F64)
    truth = Gaussian(torch.zeros(12, dtype=F64), torch.diag(spectrum))
    n, repeats = 400, 1000
    scores = torch.tensor(
        [
            frechet_distance(gaussian_of(normals(n, 12, seed=k) * spectrum.sqrt()), truth)
            for k in range(repeats)
        ]
    )
    assert finite_sample_bias(truth, n) == pytest.approx(float(scores.mean()), rel=0.02)
    assert float(scores.std()) / repeats**0.5 < 0.006 * float(scores.mean())


def test_a_small_spread_around_a_large_mean_survives() -> None:
    features = (100 + 0.01 * normals(4000, 3)).float()
    covariance = gaussian_of(features).cov
    exact = torch.from_numpy(np.cov(features.double().numpy().T))
    assert torch.allclose(covariance, exact, rtol=1e-4, atol=1e-9)
    assert torch.allclose(covariance.diagonal(), torch.full((3,), 1e-4, dtype=F64), rtol=0.1)


def test_moments_of_uneven_parts_merge_to_those_of_the_whole() -> None:
    features = 3 + normals(1000, 16)
    parts = [Moments(16) for _ in range(4)]
    for part, block in zip(parts, features.split([1, 0, 699, 300]), strict=True):
        for batch in block.split(128):
            part.update(batch)
    left = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    right = parts[0].merge(parts[1].merge(parts[2].merge(parts[3])))
    whole = gaussian_of(features)
    for merged in (left.summary(), right.summary()):
        assert merged.n == 1000
        assert torch.allclose(merged.mean, whole.mean, rtol=1e-9, atol=0)
        assert torch.allclose(merged.cov, whole.cov, rtol=1e-9, atol=1e-12)
        assert torch.allclose(merged.cov, torch.cov(features.T), rtol=1e-9, atol=1e-12)


def test_the_reference_is_factored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    factor = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda m: (calls.append(len(m)), factor(m))[1])
    reference = gaussian_of(normals(100, 8))
    values = [frechet_distance(gaussian_of(normals(100, 8, seed=k) * (1 + k)), reference) for k in (1, 2, 3)]
    assert calls == [8]
    assert all(low < high for low, high in pairwise(values))


@pytest.mark.parametrize("n", [0, 1])
def test_a_covariance_needs_two_images(n: int) -> None:
    with pytest.raises(UserError, match=f"at least 2 images on each side, not {n}"):
        gaussian_of(normals(n, 3))


def test_a_feature_that_is_not_finite_is_not_hidden() -> None:
    with pytest.raises(ValueError, match="not finite"):
        gaussian_of(torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]))
