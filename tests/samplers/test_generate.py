from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from scoregen.denoisers.base import Cond
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.mixture import GaussianMixtureDenoiser
from scoregen.errors import UserError
from scoregen.rng import SampleRng, generator
from scoregen.samplers.edm import EulerSampler, HeunSampler
from scoregen.samplers.generate import generate, steps_for_nfe

CHURNED = HeunSampler(steps=8, s_churn=4.0)


def images(denoiser, sampler, seeds, batch, label=None) -> Tensor:
    parts = list(generate(denoiser, sampler, seeds, batch=batch, device="cpu", label=label))
    assert [seed for part in parts for seed in part.seeds] == list(seeds)
    return torch.cat([part.x for part in parts])


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_sample_depends_on_its_seed_only(batch: int, mixture: GaussianMixtureDenoiser) -> None:
    denoiser = GaussianDenoiser(torch.zeros(1, 4, 4), torch.tensor(0.25))  # elementwise: bits are the same
    alone = {seed: images(denoiser, CHURNED, [seed], 1)[0] for seed in (0, 5, 11)}
    together = images(denoiser, CHURNED, range(12), batch)
    assert all(torch.equal(together[seed], x) for seed, x in alone.items())
    assert len(torch.unique(together, dim=0)) == 12
    torch.testing.assert_close(
        images(mixture, CHURNED, range(12), batch), images(mixture, CHURNED, range(12), 5)
    )


def test_images_of_matrix_products_agree_to_one_level_for_any_batch() -> None:
    data = (torch.rand(300, 1, 8, 8, generator=generator("data")) * 2 - 1).round()
    denoiser = EmpiricalDenoiser(data, torch.arange(300) % 10)
    parts = [list(generate(denoiser, CHURNED, range(16), batch=batch, device="cpu")) for batch in (1, 16)]
    one, sixteen = (torch.cat([part.images for part in batches]).int() for batches in parts)
    assert (one - sixteen).abs().max() <= 1
    labels = [torch.cat([part.labels for part in batches]) for batches in parts]
    assert torch.equal(labels[0], labels[1])


class DrawRecorder(GaussianMixtureDenoiser):
    """Notes what it is called with."""

    def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        self.calls = [*getattr(self, "calls", []), (x, cond)]
        return super().forward(x, sigma, cond)


def test_noise_is_drawn_before_the_class_and_the_class_before_the_steps() -> None:
    denoiser = DrawRecorder(torch.zeros(5, 3), torch.ones(5), labels=torch.arange(5))
    sampler = HeunSampler(steps=2, s_churn=0.2)
    (samples,) = generate(denoiser, sampler, [3, 4, 2**32 + 3], batch=8, device="cpu")
    rng = SampleRng([3, 4, 3])
    noise, cond = rng.randn(3), rng.randint(5)
    assert torch.equal(samples.labels, cond)
    x, seen = denoiser.calls[0]
    assert torch.equal(seen, cond)
    torch.testing.assert_close(x, 80 * noise + 80 * (1.1**2 - 1) ** 0.5 * rng.randn(3))
    assert torch.equal(samples.x[0], samples.x[2])  # seeds count modulo 2^32


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_seeds_may_be_any_integers(kind: Callable) -> None:
    denoiser = GaussianDenoiser(torch.zeros(2), torch.tensor(1.0))
    assert torch.equal(images(denoiser, CHURNED, kind([5, 6]), 2), images(denoiser, CHURNED, range(5, 7), 2))


def test_choosing_a_class_changes_the_class_only() -> None:
    denoiser = DrawRecorder(torch.zeros(2, 3), torch.ones(2), labels=torch.arange(2))
    for label in (None, 1):
        (samples,) = generate(denoiser, CHURNED, range(6), batch=6, device="cpu", label=label)
    assert samples.labels.tolist() == [1] * 6
    free, chosen = denoiser.calls[0], denoiser.calls[CHURNED.nfe()]
    assert torch.equal(free[0], chosen[0])
    assert free[1].unique().tolist() == [0, 1]


def test_each_sample_may_have_a_class_of_its_own() -> None:
    means = torch.tensor([[-5.0], [5.0]])
    denoiser = GaussianMixtureDenoiser(means, torch.tensor(0.01), labels=torch.arange(2))
    parts = list(generate(denoiser, CHURNED, range(5), batch=2, device="cpu", label=[0, 1, 1, 0, 1]))
    assert torch.cat([part.labels for part in parts]).tolist() == [0, 1, 1, 0, 1]
    assert (torch.cat([part.x for part in parts])[:, 0] > 0).tolist() == [False, True, True, False, True]
    for every in (np.int64(1), torch.ones(3, dtype=torch.long), np.ones(3, dtype=int)):
        parts = list(generate(denoiser, CHURNED, range(3), batch=2, device="cpu", label=every))
        assert torch.cat([part.labels for part in parts]).tolist() == [1, 1, 1]
    with pytest.raises(UserError, match="2 classes for 5 seeds"):
        next(generate(denoiser, CHURNED, range(5), batch=2, device="cpu", label=[0, 1]))
    with pytest.raises(UserError, match="class 2 is unknown"):
        next(generate(denoiser, CHURNED, range(2), batch=2, device="cpu", label=[0, 2]))


def test_classes_are_drawn_uniformly() -> None:
    denoiser = GaussianMixtureDenoiser(torch.zeros(4, 1), torch.ones(4), labels=torch.arange(4))
    parts = generate(denoiser, EulerSampler(steps=1), range(4000), batch=1000, device="cpu")
    count = torch.cat([part.labels for part in parts]).bincount()
    assert (count - 1000).abs().max() < 4 * (1000 * 0.75) ** 0.5


def test_no_graph_is_built_and_the_callers_mode_is_kept() -> None:
    denoiser = GaussianDenoiser(torch.zeros(2, requires_grad=True) * 1, torch.tensor(1.0))
    for samples in generate(denoiser, EulerSampler(steps=2), range(2), batch=1, device="cpu"):
        assert not samples.x.requires_grad
        assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("sampler", "nfe", "steps"),
    [(HeunSampler(), 35, 18), (HeunSampler(), 36, 18), (HeunSampler(), 1, 1), (EulerSampler(), 35, 35)],
)
def test_a_budget_of_evaluations_is_spent_but_not_exceeded(
    sampler: HeunSampler, nfe: int, steps: int
) -> None:
    assert steps_for_nfe(sampler, nfe) == steps
    assert sampler.nfe(steps) <= nfe < sampler.nfe(steps + 1)


def test_impossible_requests_are_refused() -> None:
    denoiser = GaussianDenoiser(torch.zeros(2), torch.tensor(1.0))
    with pytest.raises(UserError, match="needs at least 1 network evaluations, the budget is 0"):
        steps_for_nfe(HeunSampler(), 0)
    with pytest.raises(UserError, match="class 3 is unknown to the model; allowed: none"):
        images(denoiser, CHURNED, [0], 1, label=3)
    with pytest.raises(UserError, match="batch=0"):
        images(denoiser, CHURNED, [0], 0)


def test_samples_that_are_not_finite_are_refused_by_seed() -> None:
    class Diverged(GaussianDenoiser):
        def forward(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
            broken = torch.zeros(len(x)).index_fill(0, torch.tensor([1]), torch.nan)
            return super().forward(x, sigma, cond) + broken[:, None]

    denoiser = Diverged(torch.zeros(2), torch.tensor(1.0))
    with pytest.raises(UserError, match="1 of 3 samples are not finite, first that of seed 8"):
        next(generate(denoiser, EulerSampler(steps=3), [7, 8, 9], batch=3, device="cpu"))
