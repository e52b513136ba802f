"""Laws of precision, recall, density and coverage (P1)."""

from math import prod

import pytest
import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.evaluation import prdc
from scoregen.evaluation.prdc import compare_manifolds, squared_radii
from scoregen.evaluation.store import Sample


def normals(n: int, dim: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def sample(features: Tensor) -> Sample:
    return Sample(features, len(features))


def scores(drawn: Tensor, real: Tensor) -> dict[str, float]:
    return {name: score.value for name, score in vars(compare_manifolds(sample(drawn), sample(real))).items()}


def test_two_samples_of_one_distribution_have_the_expected_density_and_coverage() -> None:
    """Density 1; coverage 1 - prod_{j < k} (N - 1 - j) / (M + N - 1 - j), for N real and M generated."""
    n, m, k = 900, 1100, 5
    pairs = [scores(normals(m, seed=2 * i), normals(n, seed=2 * i + 1)) for i in range(4)]
    density, coverage = (sum(one[name] for one in pairs) / 4 for name in ("density", "coverage"))
    expected = 1 - prod((n - 1 - j) / (m + n - 1 - j) for j in range(k))
    assert coverage == pytest.approx(expected, abs=0.01)
    assert density == pytest.approx(1, abs=0.03)


def test_precision_and_recall_are_each_other_with_the_sides_exchanged() -> None:
    drawn, real = 0.5 * normals(300, seed=1), normals(400, seed=2)
    ours, theirs = scores(drawn, real), scores(real, drawn)
    assert ours["precision"] == theirs["recall"]
    assert ours["recall"] == theirs["precision"]
    assert ours["precision"] > 0.95 > 0.6 > ours["recall"]


def test_the_scores_are_those_of_the_definition() -> None:
    drawn, real = normals(40, 3, 1).double() * 1.4, normals(50, 3, 2).double()
    d = torch.cdist(real, drawn)
    near = torch.cdist(real, real).sort(1).values
    near_drawn = torch.cdist(drawn, drawn).sort(1).values[:, 3]
    assert scores(drawn, real) == pytest.approx(
        {
            "precision": float((d <= near[:, 3:4]).any(0).double().mean()),
            "recall": float((d <= near_drawn).any(1).double().mean()),
            "density": float((d <= near[:, 5:6]).sum() / (5 * 40)),
            "coverage": float((d <= near[:, 5:6]).any(1).double().mean()),
        }
    )


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, real = normals(70, seed=1), normals(90, seed=2)
    whole = scores(drawn, real)
    monkeypatch.setattr(prdc, "_CHUNK", 13)
    assert scores(drawn, real) == whole


def test_a_radius_leaves_the_sample_itself_out() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    assert squared_radii(x, (1, 2)).tolist() == [[1, 9], [1, 4], [4, 9], [16, 36]]


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match="more than 5 images a side"):
        compare_manifolds(sample(normals(5)), sample(normals(50)))
