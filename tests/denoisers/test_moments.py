from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset, to_model_range
from scoregen.data.digits import load_digits
from scoregen.denoisers import moments
from scoregen.denoisers.gaussian import ClassGaussianDenoiser, GaussianDenoiser
from scoregen.denoisers.moments import cached_gaussian, load_gaussian, measure_gaussian, save_gaussian
from scoregen.errors import UserError
from scoregen.rng import generator

SIGMA = torch.tensor(0.7)


@dataclass
class Covariance:
    mean: Tensor
    matrix: Tensor

    @classmethod
    def of(cls, gaussian: GaussianDenoiser) -> "Covariance":
        basis = gaussian.eigenvectors
        rest = torch.eye(len(basis)) - basis @ basis.T
        return cls(gaussian.mean.flatten(), basis * gaussian.variances @ basis.T + gaussian.tail * rest)


def levels(count: int = 300) -> Tensor:
    return torch.randint(0, 256, (count, 3, 4, 4), generator=generator("levels"), dtype=torch.uint8)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("flips", [False, True])
def test_moments_of_levels_are_those_of_the_images_in_the_models_range(fast, flips, monkeypatch) -> None:
    fast_here = moments.has_fast_int8()
    monkeypatch.setattr(moments, "has_fast_int8", lambda: fast and fast_here)
    monkeypatch.setattr(moments, "CHUNK", 128)
    x = levels()
    found = Covariance.of(measure_gaussian(ArrayDataset("levels", x), flips=flips))
    images = to_model_range(torch.cat([x, x.flip(-1)]) if flips else x).flatten(1).double()
    torch.testing.assert_close(found.mean.double(), images.mean(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.matrix.double(), images.T.cov(), rtol=0, atol=2e-6)


def test_moments_of_points_far_from_zero_keep_their_digits() -> None:
    x = 100 + 0.01 * torch.randn(2000, 3, generator=generator("points"))
    found = measure_gaussian(ArrayDataset("points", x))
    expected = torch.linalg.eigvalsh(x.double().T.cov())
    torch.testing.assert_close(found.variances.double(), expected, rtol=1e-4, atol=0)


def test_each_class_has_the_moments_of_its_own_samples_and_the_null_class_those_of_all() -> None:
    data = load_digits()
    gaussian = measure_gaussian(data, per_class=True)
    assert gaussian.num_classes == 10
    x = torch.randn(4, 1, 8, 8, generator=generator("x"))
    for label in (0, 7):
        alone = measure_gaussian(data.select((data.label == label).nonzero().flatten()))
        cond = torch.full((4,), label)
        torch.testing.assert_close(gaussian(x, SIGMA, cond), alone(x, SIGMA), rtol=0, atol=1e-5)
    whole = measure_gaussian(data)
    for cond in (None, torch.full((4,), 10)):
        torch.testing.assert_close(gaussian(x, SIGMA, cond), whole(x, SIGMA), rtol=0, atol=1e-5)
    mixed = gaussian(x, SIGMA, torch.tensor([0, 10, 7, 0]))
    torch.testing.assert_close(mixed[2:3], gaussian(x[2:3], SIGMA, torch.tensor([7])), rtol=0, atol=1e-6)


def test_the_tail_of_a_low_rank_has_the_mean_of_the_variances_left_out() -> None:
    full, low = (measure_gaussian(load_digits(), rank=rank) for rank in (None, 10))
    torch.testing.assert_close(low.variances, full.variances[-10:], rtol=1e-5, atol=1e-7)
    assert float(low.tail) == pytest.approx(float(full.variances[:-10].mean()), rel=1e-5)


@pytest.mark.parametrize("per_class", [False, True])
def test_a_file_gives_back_the_moments(per_class: bool, tmp_path: Path) -> None:
    gaussian = measure_gaussian(load_digits(), rank=5, per_class=per_class)
    save_gaussian(gaussian, tmp_path / "new" / "moments.npz")
    loaded = load_gaussian(tmp_path / "new" / "moments.npz")
    written, read = gaussian.state_dict(), loaded.state_dict()
    assert written.keys() == read.keys()
    assert all(torch.equal(written[key], read[key]) for key in written)
    assert isinstance(loaded, ClassGaussianDenoiser if per_class else GaussianDenoiser)


def test_the_cache_is_asked_by_content_and_options(tmp_path: Path, monkeypatch) -> None:
    data = load_digits()
    first = cached_gaussian(data, tmp_path, rank=3)
    with monkeypatch.context() as patch:
        patch.setattr(moments, "measure_gaussian", None)  # a second measurement would fail
        assert cached_gaussian(data, tmp_path, rank=3) == first
    others = {
        cached_gaussian(data, tmp_path, rank=4),
        cached_gaussian(data, tmp_path, rank=3, flips=True),
        cached_gaussian(data, tmp_path, rank=3, per_class=True),
        cached_gaussian(data.select(torch.arange(100)), tmp_path, rank=3),
        cached_gaussian(ArrayDataset("digits", data.x, data.label.flip(0)), tmp_path, rank=3, per_class=True),
    }
    assert len(others | {first}) == 6
    assert sorted(tmp_path.iterdir()) == sorted(others | {first})  # nothing half-written beside them


def test_impossible_moments_are_refused(tmp_path: Path) -> None:
    data = load_digits()
    with pytest.raises(UserError, match="rank=65: digits has 64 dimensions"):
        measure_gaussian(data, rank=65)
    with pytest.raises(UserError, match="digits has no classes"):
        measure_gaussian(load_digits(conditional=False), per_class=True)
    few = data.select((data.label != 3).nonzero().flatten())
    with pytest.raises(UserError, match="class 3 of digits has 0 samples: a covariance needs at least 2"):
        measure_gaussian(few, per_class=True)
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    for name in ("other.npz", "torn.npz", "missing.npz"):
        with pytest.raises(UserError, match=f"{name} holds no Gaussian moments"):
            load_gaussian(tmp_path / name)
