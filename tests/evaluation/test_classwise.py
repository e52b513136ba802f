"""Laws of class-wise metrics: they see what metrics over all samples do not, a wrong class."""

from statistics import mean

import pytest
import torch

from scoregen.data.base import ArrayDataset
from scoregen.data.digits import load_digits
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.errors import UserError
from scoregen.evaluation.classwise import OneClass, evaluate_classes
from scoregen.evaluation.evaluator import Evaluator
from scoregen.evaluation.model import evaluate_model
from scoregen.parallel import Parallel
from scoregen.samplers.edm import EulerSampler


def two_digits() -> ArrayDataset:
    """The zeros and ones."""
    data = load_digits()
    assert data.label is not None
    rows = (data.label < 2).nonzero()[:, 0]
    return ArrayDataset("two", data.x[rows], data.label[rows], num_classes=2)


def test_a_class_holds_its_samples_in_their_order() -> None:
    data = two_digits()
    assert data.label is not None
    zeros, ones = OneClass(data, 0), OneClass(data, 1)
    assert len(zeros) + len(ones) == len(data)
    assert torch.equal(ones.fetch(torch.arange(len(ones))).x, data.x[data.label == 1])
    assert zeros.fingerprint != ones.fingerprint
    moved = ArrayDataset(data.name, data.x, data.label.roll(1), num_classes=2)
    assert OneClass(moved, 0).fingerprint != zeros.fingerprint
    with pytest.raises(UserError, match=r"data\.conditional=true"):
        OneClass(ArrayDataset("none", data.x), 0)


def test_only_class_wise_metrics_see_that_the_classes_are_exchanged() -> None:
    data, parallel, seeds = two_digits(), Parallel("cpu"), range(64)
    assert data.label is not None
    right, wrong = EmpiricalDenoiser(data.x, data.label), EmpiricalDenoiser(data.x, 1 - data.label)
    sampler = EulerSampler(steps=6)
    evaluator = Evaluator(["fd_scatter"], data)
    whole, by_class = [], []
    for denoiser in (right, wrong):
        result = evaluate_model(evaluator, denoiser, sampler, seeds, batch=64, parallel=parallel)
        whole.append(result["fd_scatter"].value)
        classes = evaluate_classes(
            ["fd_scatter"], data, denoiser, sampler, seeds, batch=64, parallel=parallel
        )
        by_class.append(mean(result["fd_scatter"].value for result in classes))
    assert whole[1] < 2 * whole[0]
    assert by_class[1] > 5 * by_class[0]
