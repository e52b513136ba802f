"""Laws of FID_inf and IS_inf (F4, F6), and of the bias of quasi-random pools."""

from math import inf
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.evaluation.frechet import Gaussian, Moments, frechet_distance
from scoregen.evaluation.inception_score import (
    SPLITS,
    Classes,
    ClassSums,
    am_score,
    in_splits,
    inception_score,
)
from scoregen.evaluation.infinity import (
    classes_in_parts,
    frechet_infinity,
    inception_score_infinity,
    moments_in_parts,
)
from scoregen.sobol import SobolLatents

DIM, SCALE, SHIFT, FID = 12, 1.05, 0.17322**0.5, 0.20322
REAL = Gaussian(torch.zeros(DIM, dtype=torch.float64), torch.eye(DIM, dtype=torch.float64))


def normals(n: int, seed: int) -> Tensor:
    return torch.randn(n, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(z: Tensor) -> Tensor:
    """Features at the distance 0.20322 of the reference, |shift|^2 + 12 (1.05 - 1)^2."""
    return SCALE * z.double() + SHIFT / DIM**0.5


def fid(features: Tensor) -> float:
    moments = Moments(DIM)
    moments.update(features)
    return frechet_distance(moments.summary(), REAL)


def in_parts(features: Tensor) -> tuple[Moments, ...]:
    parts = moments_in_parts(DIM, "cpu")
    parts.update(features, np.arange(len(features)))
    return parts.summary()


def test_fid_inf_is_the_distance_of_infinitely_many_images() -> None:
    scores = [frechet_infinity(in_parts(drawn(normals(8000, k))), REAL) for k in range(60)]
    assert mean(score.value for score in scores) == pytest.approx(FID, abs=0.003)
    assert mean(fid(drawn(normals(1000, k))) for k in range(60)) == pytest.approx(0.25, abs=0.01)
    bias = DIM + (DIM**2 + DIM) / 4  # n times that of 12 unit variances, to leading order
    assert mean(score.details["slope"] for score in scores) == pytest.approx(bias, rel=0.15)


def pool_line(z: Tensor, seed: int) -> tuple[float, float]:
    """The published estimator: random subsets of one pool, at 15 sizes; intercept and slope."""
    features, g = drawn(z), torch.Generator().manual_seed(seed)
    sizes = torch.linspace(len(z) / 10, len(z), 15).int().tolist()
    y = torch.tensor([fid(features[torch.randperm(len(z), generator=g)[:n]]) for n in sizes])
    design = torch.stack([torch.ones(15), 1 / torch.tensor(sizes)], 1)
    intercept, slope = torch.linalg.lstsq(design, y).solution.tolist()
    return intercept, slope


def test_subsets_of_a_quasi_random_pool_extrapolate_too_far_and_independent_draws_do_not() -> None:
    """Too far by slope / N: the pool of N is better than N independent images, its subsets are not."""
    n = 1024
    pools = [SobolLatents((DIM,), scramble=k).points(range(n)) for k in range(24)]
    lines = [pool_line(z, k) for k, z in enumerate(pools)]
    intercept, slope = (mean(side) for side in zip(*lines, strict=True))
    assert mean(fid(drawn(z)) for z in pools) == pytest.approx(FID, abs=0.01)  # 0.05 more if independent
    assert FID - intercept == pytest.approx(slope / n, rel=0.35)
    independent = [frechet_infinity(in_parts(drawn(normals(n, k))), REAL).value for k in range(24)]
    assert abs(mean(independent) - FID) < 3 * stdev(independent) / 24**0.5
    assert abs(mean(independent) - FID) < 0.5 * (FID - intercept)


CLASSES = 20
PEAK = 0.3  # probability of the class that an image is of; the others share the rest


def logits(n: int, seed: int) -> Tensor:
    labels = torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(seed))
    p = torch.full((n, CLASSES), (1 - PEAK) / (CLASSES - 1), dtype=torch.float64)
    return p.scatter_(1, labels[:, None], PEAK).log()


def exact_score() -> float:
    """exp(ln C - H): all classes are equally frequent."""
    p = torch.tensor([PEAK] + [(1 - PEAK) / (CLASSES - 1)] * (CLASSES - 1), dtype=torch.float64)
    return CLASSES * float((p * p.log()).sum().exp())


def classes_of(features: Tensor, start: object) -> tuple[ClassSums, ...]:
    parts = start(CLASSES, "cpu")  # type: ignore[operator]
    parts.update(features, np.arange(len(features)))
    return parts.summary()


def score_of(features: Tensor) -> float:
    sums = ClassSums(CLASSES)
    sums.update(features)
    return sums.summary().inception_score


def test_is_inf_is_the_score_of_infinitely_many_images() -> None:
    n, values, plain = 400, [], []
    for k in range(80):
        features = logits(n, k)
        values.append(inception_score_infinity(classes_of(features, classes_in_parts)).value)
        plain.append([score_of(features[:m]) for m in (50, 100)])
    assert abs(mean(values) - exact_score()) < 3 * stdev(values) / 80**0.5
    assert mean(values) == pytest.approx(exact_score(), abs=0.012)
    fewer, more = (exact_score() - mean(side) for side in zip(*plain, strict=True))
    assert fewer == pytest.approx(2 * more, rel=0.2)  # the bias falls as 1/n
    assert more > 5 * abs(mean(values) - exact_score())


def test_confident_predictions_of_equally_frequent_classes_score_their_number() -> None:
    certain = 1000 * torch.eye(CLASSES, dtype=torch.float64).repeat(10, 1)
    assert score_of(certain) == pytest.approx(CLASSES, rel=1e-12)
    assert score_of(certain[:1].repeat(30, 1)) == pytest.approx(1, rel=1e-12)
    assert score_of(torch.zeros(30, CLASSES)) == pytest.approx(1, rel=1e-12)


def test_the_inception_score_is_the_mean_over_ten_fixed_splits() -> None:
    features = logits(1005, 0)
    splits = classes_of(features, in_splits)
    score = inception_score(splits)
    values = torch.tensor([split.summary().inception_score for split in splits])
    assert (len(values), score.n) == (SPLITS, 1005)
    assert score.value == pytest.approx(float(values.mean()))
    assert score.spread == pytest.approx(float(values.std(correction=0)), rel=1e-4)
    assert score == inception_score(classes_of(features, in_splits))
    with pytest.raises(UserError, match="in each of their splits"):
        inception_score(classes_of(features[:9], in_splits))


def test_images_in_the_order_of_their_classes_score_as_in_any_order() -> None:
    """Splits by position would see a few classes each."""
    certain = 1000 * torch.eye(CLASSES, dtype=torch.float64)
    periodic, blocks = certain.repeat(100, 1), certain.repeat_interleave(100, 0)
    for features in (periodic, blocks):
        assert inception_score(classes_of(features, in_splits)).value > 0.93 * CLASSES


def test_am_is_zero_for_certain_predictions_with_the_classes_of_the_data() -> None:
    def classes(p: list[list[float]]) -> Classes:
        sums = ClassSums(3)
        sums.update(torch.tensor(p, dtype=torch.float64).log())
        return sums.summary()

    tiny = 1e-12
    real = classes([[1, tiny, tiny]] * 3 + [[tiny, 1, tiny]])
    assert am_score(real, real).value == pytest.approx(0, abs=1e-9)
    even = classes([[1, tiny, tiny], [tiny, 1, tiny]])
    divergence = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert am_score(even, real).value == pytest.approx(divergence, abs=1e-9)
    unsure = classes([[0.75, 0.25, tiny]] * 4)
    entropy = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    assert am_score(unsure, real).value == pytest.approx(entropy, abs=1e-9)
    never = classes([[0, 1, 0]])
    assert am_score(never, never).value == 0
    assert am_score(never, real).value == inf  # a class of the data that is never drawn


def test_too_few_images_are_not_extrapolated() -> None:
    with pytest.raises(UserError, match="more than 24 images: two sizes above 12"):
        frechet_infinity(in_parts(drawn(normals(24, 0))), REAL)
