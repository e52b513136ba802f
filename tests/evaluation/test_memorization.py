"""Laws of what tells copies of the training set."""

from math import isnan

import pytest
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from scoregen.data.base import to_model_range
from scoregen.data.digits import load_digits
from scoregen.errors import UserError
from scoregen.evaluation.memorization import (
    Cells,
    Copies,
    TrainingSet,
    closest_pairs,
    k_means,
    principal_axes,
    rank_test,
)
from scoregen.images import make_grid
from scoregen.rng import generator


def normal(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(key))


@pytest.fixture(scope="module")
def digits() -> TrainingSet:
    """The embedded digits, in pixels, with those held out."""
    return TrainingSet(load_digits().x, load_digits(split="test").x)


def test_distances_are_those_of_brute_force() -> None:
    train, samples = normal(200, 5, key="train"), normal(40, 5)
    copies = TrainingSet(train)(samples)
    exact = torch.cdist(samples.double(), train.double())
    torch.testing.assert_close(copies.distances, exact.min(1).values, rtol=1e-6, atol=1e-6)
    assert torch.equal(copies.indices, exact.argmin(1))
    first, second = exact.sort(1).values[:, :2].unbind(1)
    own = torch.cdist(train.double(), train.double()).fill_diagonal_(9e9).min(1).values
    assert copies.ratio == pytest.approx(float((first <= second / 3).double().mean()))
    assert copies.authentic == pytest.approx(float((first > own[exact.argmin(1)]).double().mean()))
    assert copies.c_t is None


def test_copies_are_told_by_every_measure(digits: TrainingSet) -> None:
    """Training images with a grain of noise."""
    g = generator("grain")
    rows = torch.randint(len(digits.train), (180,), generator=g)
    copied = to_model_range(digits.train[rows]) + 0.02 * torch.randn(180, 1, 8, 8, generator=g)
    copies = digits(copied)
    assert torch.equal(copies.indices, rows)
    assert (copies.ratio, copies.authentic) == (1.0, 0.0)
    assert copies.c_t is not None
    assert copies.c_t < -5


def test_held_out_data_are_authentic_by_half_and_as_far_as_themselves(digits: TrainingSet) -> None:
    held_out = load_digits(split="test").x
    copies = digits(to_model_range(held_out))
    assert copies.ratio < 0.02
    assert copies.authentic == pytest.approx(0.5, abs=4 * 0.5 / len(held_out) ** 0.5)
    assert copies.c_t == pytest.approx(0, abs=1e-9)  # of the same images against themselves


def test_of_one_distribution_the_rank_score_is_standard_normal() -> None:
    """C_T of fresh draws over 40 trials, whose mean of three cells has less than unit variance."""
    train = normal(300, 4, key="train")
    cells = Cells(train, normal(300, 4, key="held out"))
    scores = torch.tensor(
        [cells.statistic(*cells.place(normal(300, 4, key=f"trial {i}"))) for i in range(40)]
    )
    assert 0.3 < float(scores.std()) < 1.2
    assert abs(float(scores.mean())) < 2.5


def test_blurred_and_noisy_samples_are_far_and_that_is_no_copying(digits: TrainingSet) -> None:
    noisy = to_model_range(load_digits(split="test").x) + 0.3 * normal(180, 1, 8, 8)
    copies = digits(noisy)
    assert copies.authentic > 0.9
    assert copies.c_t is not None
    assert copies.c_t > 5


def test_the_rank_score_is_that_of_mann_and_whitney() -> None:
    g = generator("ranks")
    a, b = torch.randint(40, (60,), generator=g).double(), torch.randint(45, (50,), generator=g).double()
    u = mannwhitneyu(b.numpy(), a.numpy()).statistic
    z = (u - 60 * 50 / 2) / (60 * 50 * 111 / 12) ** 0.5
    assert rank_test(a, b) == pytest.approx(z, abs=1e-12)
    assert rank_test(b, a) == pytest.approx(-z, abs=1e-12)


def test_too_few_samples_in_every_cell_give_no_number(digits: TrainingSet) -> None:
    c_t = digits(to_model_range(load_digits(split="test").x[:19])).c_t
    assert c_t is not None
    assert isnan(c_t)


def test_centres_are_the_means_of_their_cells() -> None:
    x = torch.cat([normal(50, 2) + offset for offset in (0.0, 10.0, 20.0)])
    centres = k_means(x, 3)
    cell = torch.cdist(x, centres).argmin(1)
    for k in range(3):
        torch.testing.assert_close(centres[k], x[cell == k].mean(0))
    assert torch.equal(centres, k_means(x, 3))


def test_axes_are_the_eigenvectors_of_the_largest_variances() -> None:
    x = normal(400, 6) * torch.tensor([5.0, 4.0, 3.0, 1.0, 0.5, 0.2])
    x = x - x.mean(0)
    exact = torch.linalg.eigh(x.T @ x).eigenvectors[:, -3:]
    axes = principal_axes(x, 3)
    torch.testing.assert_close(axes @ axes.T, exact @ exact.T, rtol=0, atol=1e-4)


def test_features_need_no_pixels() -> None:
    """Scaling a space scales its distances and changes nothing else."""
    train, samples, held_out = normal(300, 7, key="train"), normal(90, 7), normal(90, 7, key="held out")
    one, ten = (TrainingSet(s * train, s * held_out)(s * samples) for s in (1.0, 16.0))
    assert (one.ratio, one.authentic) == (ten.ratio, ten.authentic)
    assert one.c_t == pytest.approx(ten.c_t, abs=1e-6)
    torch.testing.assert_close(16 * one.distances, ten.distances)


def test_the_picture_shows_the_closest_pairs_one_above_the_other() -> None:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 32, 32)
    copies = Copies(0, 0, None, torch.tensor([3.0, 1.0, 2.0]), torch.tensor([4, 3, 0]))
    expected = make_grid(images[[1, 2, 3, 0]], columns=2)
    assert torch.equal(closest_pairs(images[:3], copies, images, count=2), expected)


def test_a_training_set_of_two_is_refused() -> None:
    with pytest.raises(UserError, match="2 training samples"):
        TrainingSet(normal(2, 3))


def test_places_of_samples_are_their_own(digits: TrainingSet) -> None:
    """Processes may share the samples out and put the rows together again."""
    x = to_model_range(load_digits(split="test").x)
    whole, parts = digits.place(x), torch.cat([digits.place(part) for part in x.split(50)])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5)
    assert digits.judge(parts).authentic == digits(x).authentic
