"""Estimates of the empirical denoiser, and its smoothed form."""

import pytest
import torch
from torch import Tensor

from scoregen.data.base import to_model_range
from scoregen.denoisers.base import denoiser_for_trajectory
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.neighbours import ImportanceDenoiser, NeighbourDenoiser, skip_over
from scoregen.denoisers.rows import nearest_rows
from scoregen.denoisers.smoothed import SmoothedDenoiser, training_set
from scoregen.errors import UserError
from scoregen.rng import BatchRng, SampleRng, generator


def normal(*shape: int, key: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(key))


@pytest.fixture
def data() -> Tensor:
    return normal(500, 8, key="data")


@pytest.mark.parametrize("k", [1, 7, 200])
@pytest.mark.parametrize("kind", ["levels", "floats"])
def test_the_nearest_rows_are_those_of_a_search_in_float64(kind: str, k: int, data: Tensor) -> None:
    if kind == "levels":
        data = torch.randint(0, 256, (500, 8), generator=generator("levels"), dtype=torch.uint8)
    denoiser = EmpiricalDenoiser(data, torch.arange(500) % 2)
    whole = denoiser.data.double() if kind == "floats" else denoiser.data.double() / 127.5 - 1
    x = 2 * normal(20, 8)
    for part in denoiser.parts:
        exact = torch.cdist(x.double(), whole[part], compute_mode="donot_use_mm_for_euclid_dist").square()
        found = nearest_rows(denoiser.rows, x, part, k)
        squares, indices = exact.topk(k, largest=False)
        torch.testing.assert_close(found.squares, squares, rtol=1e-5, atol=1e-6)
        assert (found.indices - part.start == indices).float().mean() > 0.99  # ties of levels may swap


def test_the_nearest_training_sample_is_found_by_its_place_in_the_data(data: Tensor) -> None:
    labels = torch.arange(500) % 3
    denoiser = EmpiricalDenoiser(data, labels)
    distance, index = denoiser.nearest(data[[7, 300]] + 1e-3)
    assert index.tolist() == [7, 300]
    assert distance.tolist() == pytest.approx([1e-3 * 8**0.5] * 2, rel=1e-3)
    _, index = denoiser.nearest(data[[7, 8]], torch.tensor([0, 2]))
    assert labels[index].tolist() == [0, 2]
    assert index[1] == 8


@pytest.mark.parametrize("sigma", [0.2, 1.0, 10.0])
def test_all_neighbours_and_all_others_are_exact(sigma: float, data: Tensor) -> None:
    exact, x = EmpiricalDenoiser(data), normal(12, 8) * (1 + sigma)
    for neighbours, others in [(500, 0), (15, 485), (15, 10**6), (499, 1)]:
        estimate = NeighbourDenoiser(exact, neighbours=neighbours, others=others)
        for settled in (estimate, estimate.for_trajectory(BatchRng("keys", size=12))):
            torch.testing.assert_close(
                settled(x, torch.tensor(sigma)), exact(x, torch.tensor(sigma)), rtol=0, atol=2e-6
            )


def test_more_neighbours_come_closer(data: Tensor) -> None:
    exact, x, sigma = EmpiricalDenoiser(data), normal(50, 8), torch.tensor(1.0)
    errors = [
        float((NeighbourDenoiser(exact, neighbours=k, others=0)(x, sigma) - exact(x, sigma)).square().mean())
        for k in (1, 15, 60, 250, 500)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10


def test_others_take_away_the_bias_of_neighbours_and_add_variance(data: Tensor) -> None:
    """Expected at sigma = 1: root mean square 0.505 (bias 0.50) without, 0.635 (0.023) with 15 others."""
    exact, sigma, repeats = EmpiricalDenoiser(data), torch.tensor(1.0), 400
    x = (data[:20] + normal(20, 8)).repeat_interleave(repeats, 0)
    truth = exact(x, sigma)
    bias, spread = {}, {}
    for others in (0, 15):
        estimate = NeighbourDenoiser(exact, neighbours=15, others=others)
        error = estimate.for_trajectory(BatchRng("keys", size=len(x)))(x, sigma) - truth
        mean = error.view(20, repeats, 8).mean(1)
        bias[others], spread[others] = (float(e.square().sum(-1).mean().sqrt()) for e in (mean, error))
    assert bias[15] < 0.25 * bias[0]
    assert spread[0] == pytest.approx(bias[0], rel=1e-3)
    assert spread[15] > 2 * bias[15]


def test_the_normaliser_of_neighbours_and_others_is_unbiased(data: Tensor) -> None:
    x, variance = normal(8), torch.tensor(4.0, dtype=torch.float64)
    estimate, everyone = NeighbourDenoiser(EmpiricalDenoiser(data)), slice(0, 500)
    near = nearest_rows(estimate.training_set.rows, x[None], everyone, 15)
    keys = estimate.settle(BatchRng("keys", size=4000))
    totals = [
        estimate.terms(x, variance, near.indices[0], near.squares[0], row, everyone)[1].exp().sum()
        for row in keys
    ]
    whole = (-(data - x).double().square().sum(1) / (2 * variance)).exp().sum()
    assert float(torch.stack(totals).mean() / whole) == pytest.approx(1.0, abs=0.02)


def test_importance_sampling_converges_to_the_exact_mean(data: Tensor) -> None:
    exact, sigma = EmpiricalDenoiser(data), torch.tensor(1.5)
    x = normal(1, 8) * 1.5
    errors = []
    for draws in (100, 10_000):
        estimate = ImportanceDenoiser(exact, neighbours=15, draws=draws)
        many = estimate.for_trajectory(BatchRng("draws", size=200))(x.expand(200, 8), sigma)
        errors.append((many - exact(x, sigma)).square().mean().sqrt())
    assert float(errors[0] / errors[1]) == pytest.approx(10, rel=0.25)  # 1 / sqrt(draws)


@pytest.mark.parametrize("sigma", [1e-3, 0.05])
def test_importance_sampling_is_the_nearest_neighbour_at_small_noise(sigma: float, data: Tensor) -> None:
    exact = EmpiricalDenoiser(data)
    estimate = ImportanceDenoiser(exact, neighbours=5, draws=3)
    x = data[:10] + sigma * normal(10, 8)
    torch.testing.assert_close(estimate(x, torch.tensor(sigma)), data[:10], rtol=0, atol=1e-6)
    everyone = ImportanceDenoiser(exact, neighbours=500, draws=20_000)
    torch.testing.assert_close(everyone(x, torch.tensor(1.0)), exact(x, torch.tensor(1.0)), rtol=0, atol=0.05)


def test_the_free_numbers_are_counted_past_the_taken_ones() -> None:
    taken = torch.tensor([7, 0, 1, 4])
    assert skip_over(torch.arange(6), taken).tolist() == [2, 3, 5, 6, 8, 9]


@pytest.mark.parametrize("estimator", [NeighbourDenoiser, ImportanceDenoiser])
@pytest.mark.parametrize("kind", ["levels", "floats"])
def test_where_few_rows_can_matter_estimates_are_exact(kind: str, estimator, data: Tensor) -> None:
    levels = torch.randint(0, 256, (500, 8), generator=generator("levels"), dtype=torch.uint8)
    exact = EmpiricalDenoiser(levels if kind == "levels" else data)
    x = to_model_range(exact.data[:40]) + 0.05 * normal(40, 8)
    denoised = estimator(exact, neighbours=20)(x, torch.tensor(0.05))
    assert torch.equal(denoised, exact(x, torch.tensor(0.05)))
    alone = estimator(exact, neighbours=1)(x, torch.tensor(5.0))
    assert not torch.isclose(alone, exact(x, torch.tensor(5.0))).all(1).any()


@pytest.mark.parametrize("kind", [NeighbourDenoiser, ImportanceDenoiser])
def test_estimates_stay_within_the_class(kind, data: Tensor) -> None:
    labels = torch.arange(500) % 4
    exact = EmpiricalDenoiser(data + 100 * labels[:, None], labels)
    estimate = kind(exact, neighbours=3)
    x, cond = normal(8, 8) + 200, torch.arange(8) % 4
    denoised = estimate(x, torch.tensor(500.0), cond)
    torch.testing.assert_close((denoised.mean(1) / 100).round().long(), cond)
    with pytest.raises(UserError, match="neighbours=126, but class 0 has only 125 samples"):
        kind(exact, neighbours=126)
    with pytest.raises(UserError, match="neighbours=501, but the data have only 500 samples"):
        kind(EmpiricalDenoiser(data), neighbours=501)


def smoothed_estimate(exact: EmpiricalDenoiser) -> SmoothedDenoiser:
    return SmoothedDenoiser(NeighbourDenoiser(exact), sigma_s=0.5)


@pytest.mark.parametrize("kind", [NeighbourDenoiser, ImportanceDenoiser, SmoothedDenoiser, smoothed_estimate])
def test_a_trajectory_keeps_its_randomness_and_shares_it_with_no_other(kind, data: Tensor) -> None:
    denoiser = kind(EmpiricalDenoiser(data))
    x, sigma = normal(1, 8).expand(6, 8), torch.tensor(3.0)
    assert torch.equal(denoiser(x, sigma)[0], denoiser(x, sigma)[5])
    first = denoiser_for_trajectory(denoiser, SampleRng([1, 2, 3, 4, 5, 1]))
    once, again = first(x, sigma), first(x, sigma)
    assert torch.equal(once, again)
    assert len(torch.unique(once, dim=0)) == 5
    alone = denoiser_for_trajectory(denoiser, SampleRng([3]))(x[:1], sigma)
    torch.testing.assert_close(alone[0], once[2], rtol=0, atol=1e-5)


def test_what_is_smoothed_is_settled_too_and_the_original_is_not(data: Tensor) -> None:
    whole = smoothed_estimate(EmpiricalDenoiser(data))
    settled = whole.for_trajectory(SampleRng([1, 2, 3]))
    assert len(settled.inner.settled) == 3
    assert len(whole.inner.settled) == 1
    x, sigma = normal(3, 8), torch.tensor(3.0)
    pair = settled(torch.cat([x, x]), sigma)  # as classifier-free guidance asks
    torch.testing.assert_close(pair, settled(x, sigma).repeat(2, 1), rtol=0, atol=1e-5)


def test_the_smoothed_denoiser_is_the_papers_in_its_own_clock() -> None:
    """At z = t x, k = mean_m sum_i softmax_i((2 sigma_s t eps_m x_i - |z - t x_i|^2) / (2 (1-t)^2)) t x_i."""
    data, x, t, sigma_s = normal(40, 3, key="data").double(), normal(6, 3).double(), 0.4, 0.3
    sigma = (1 - t) / t
    denoiser = SmoothedDenoiser(EmpiricalDenoiser(data), sigma_s=sigma_s, noises=5)
    eps, z = denoiser.noise[0].double(), t * x
    squares = (z[:, None] - t * data).square().sum(-1)
    logits = -(squares[:, None] - 2 * sigma_s * t * (eps @ data.T)) / (2 * (1 - t) ** 2)
    k = (logits.softmax(-1) @ (t * data)).mean(1)
    denoised = denoiser(x, torch.tensor(sigma, dtype=torch.float64))
    torch.testing.assert_close(denoised, k / t, rtol=1e-12, atol=1e-12)


def test_the_spread_over_fixed_noise_falls_with_their_number(data: Tensor) -> None:
    x, sigma = normal(1, 8).expand(3000, 8), torch.tensor(0.5)
    variance = []
    for noises in (1, 2, 4, 8):
        smoothed = SmoothedDenoiser(EmpiricalDenoiser(data), noises=noises)
        settled = smoothed.for_trajectory(BatchRng("noise", size=3000))
        variance.append(settled(x, sigma).var(0).sum())
    slopes = torch.stack(variance).log2().diff()
    assert slopes.tolist() == pytest.approx([-1] * 3, abs=0.1)


def test_resampled_noise_is_drawn_anew_in_every_call(data: Tensor) -> None:
    smoothed = SmoothedDenoiser(EmpiricalDenoiser(data), resample=True).for_trajectory(SampleRng([1, 2]))
    x, sigma = normal(2, 8), torch.tensor(1.0)
    assert not torch.equal(smoothed(x, sigma), smoothed(x, sigma))


def test_without_smoothing_nothing_changes(data: Tensor) -> None:
    exact, x, sigma = EmpiricalDenoiser(data), normal(5, 8), torch.linspace(0.1, 4, 5)
    torch.testing.assert_close(SmoothedDenoiser(exact, sigma_s=0.0)(x, sigma), exact(x, sigma))


def test_the_training_set_is_found_behind_every_closed_form(data: Tensor) -> None:
    exact = EmpiricalDenoiser(data)
    for denoiser in (exact, NeighbourDenoiser(exact), SmoothedDenoiser(ImportanceDenoiser(exact))):
        assert training_set(denoiser) is exact
    with pytest.raises(UserError, match="GaussianDenoiser holds no training data"):
        training_set(GaussianDenoiser(torch.zeros(2), torch.ones(2)))


def test_training_samples_are_drawn_uniformly_from_the_class() -> None:
    data = torch.arange(12.0)[:, None]
    exact = EmpiricalDenoiser(data, torch.arange(12) % 3)
    drawn = exact.draw(BatchRng("draw", size=12_000), torch.tensor([1, 3]).repeat(6000))[:, 0].long()
    ours, everyone = drawn[::2].bincount(minlength=12), drawn[1::2].bincount(minlength=12)
    assert ours[[1, 4, 7, 10]].sum() == 6000
    assert (ours[[1, 4, 7, 10]] - 1500).abs().max() < 4 * 1500**0.5
    assert (everyone - 500).abs().max() < 4 * 500**0.5
