"""Laws of the likelihood as a metric."""

from math import e, log2, pi

import pytest
import torch
from torch import Tensor

from scoregen.data.base import ArrayDataset
from scoregen.data.digits import load_digits
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.denoisers.moments import measure_gaussian
from scoregen.evaluation.likelihood import BIN, FlowLikelihood
from scoregen.evaluation.nll import flow_likelihood, measure_nll
from scoregen.evaluation.processes import Alone
from scoregen.evaluation.result import Result
from scoregen.rng import generator


class Share(Alone):
    """One of several processes, whose sums are put together by the test."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world, self.kept = rank, world, torch.zeros(0)

    def sum(self, tensor: Tensor) -> Tensor:
        self.kept = tensor
        return tensor


def measure(likelihood: FlowLikelihood, data: ArrayDataset, processes: Alone, num: int = 1000) -> Result:
    return measure_nll(likelihood, data, num=num, batch=64, device="cpu", processes=processes)


def test_gaussian_points_cost_their_differential_entropy() -> None:
    scale = torch.tensor([0.5, 2.0, 1.0])
    x = scale * torch.randn(20_000, 3, generator=generator("points"))
    model = GaussianDenoiser(torch.zeros(3), scale.square())
    result = measure(FlowLikelihood(model, model), ArrayDataset("points", x), Alone(), 4000)
    exact = log2(2 * pi * e) / 2 + float(scale.log2().mean())
    assert result.value == pytest.approx(exact, abs=4 * result.details["standard_error"])
    assert "the entropy is differential" in result.resize
    assert (result.name, result.n, result.reference_n) == ("nll", 4000, 20_000)


def test_rounded_gaussian_levels_cost_their_discrete_entropy() -> None:
    """In levels of 2 / 255 a Gaussian of s = 0.25 has log2(s sqrt(2 pi e) / w) bits but for its roundness."""
    levels = (127.5 + 127.5 * 0.25 * torch.randn(4000, 1, 2, 2, generator=generator("levels"))).round()
    data = ArrayDataset("levels", levels.clamp(0, 255).to(torch.uint8))
    model = GaussianDenoiser(torch.zeros(1, 2, 2), torch.tensor(0.0625))
    result = measure(FlowLikelihood(model, model), data, Alone())
    exact = log2(0.25 * (2 * pi * e) ** 0.5 / BIN)
    assert result.value == pytest.approx(exact, abs=4 * result.details["standard_error"])


def test_the_right_model_costs_least_and_the_wrong_one_more_by_their_divergence() -> None:
    """Of N(0, v) under N(m, v): m^2 / (2 v ln 2) bits a dimension."""
    x = torch.randn(4000, 2, generator=generator("x"))
    data = ArrayDataset("x", x)
    right, wrong = (GaussianDenoiser(torch.full((2,), m), torch.ones(2)) for m in (0.0, 0.5))
    bits = [measure(FlowLikelihood(g, g), data, Alone(), 4000).value for g in (right, wrong)]
    assert bits[1] - bits[0] == pytest.approx(0.125 / 0.6931, abs=0.02)


def test_a_gaussian_of_each_class_codes_digits_better_than_one_of_all() -> None:
    """Ridged, since corners of 8 x 8 digits do not vary; by the class that each held-out digit has."""
    train, test = load_digits(), load_digits(split="test")
    values = []
    for per_class in (False, True):
        gaussian = measure_gaussian(train, per_class=per_class)
        for member in gaussian.modules():
            if isinstance(member, GaussianDenoiser):
                member.variances += 0.01
        values.append(measure(FlowLikelihood(gaussian, gaussian), test, Alone()).value)
    assert values[1] < values[0] - 0.05


def test_processes_share_the_samples_and_agree() -> None:
    data = load_digits(split="test")
    likelihood = flow_likelihood(measure_gaussian(load_digits()), load_digits())
    alone = Share(0, 1)
    measure(likelihood, data, alone, 101)
    shares = [Share(rank, 3) for rank in range(3)]
    for share in shares:
        measure(likelihood, data, share, 101)
    total = sum(share.kept for share in shares)
    torch.testing.assert_close(total, alone.kept, rtol=0, atol=1e-12)
    fewer = Share(0, 1)
    measure(likelihood, data, fewer, 40)
    torch.testing.assert_close(fewer.kept, alone.kept[:, :40], rtol=0, atol=1e-12)
