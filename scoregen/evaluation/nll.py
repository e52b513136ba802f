"""The negative log-likelihood of held-out data in bits per dimension, as a metric of a model."""

import torch
from torch import Tensor

from scoregen.data.base import Dataset
from scoregen.denoisers.base import Denoiser
from scoregen.denoisers.moments import measure_gaussian
from scoregen.evaluation.likelihood import (
    BIN,
    FlowLikelihood,
    bits_per_dimension,
    dequantise,
)
from scoregen.evaluation.ode import DormandPrince
from scoregen.evaluation.processes import Processes
from scoregen.evaluation.result import Result
from scoregen.ranges import Positive, PositiveInt
from scoregen.rng import SampleRng, generator


def flow_likelihood(
    denoiser: Denoiser,
    train: Dataset,
    *,
    device: torch.device | str = "cpu",
    tolerance: Positive = 1e-4,
    probes: PositiveInt | None = 1,
) -> FlowLikelihood:
    """The likelihood of a model against the Gaussian of its training data, by class where it has classes.

    The tolerance is of the adaptive solver, probes as in `FlowLikelihood`, which computes on `device`.
    """
    prior = measure_gaussian(train, per_class=bool(denoiser.num_classes and train.num_classes))
    return FlowLikelihood(denoiser, prior.to(device), solver=DormandPrince(tolerance), probes=probes)


def measure_nll(
    likelihood: FlowLikelihood,
    data: Dataset,
    *,
    num: int,
    batch: int,
    device: torch.device | str,
    processes: Processes,
    seed: int = 0,
) -> Result:
    """Bits per dimension of `num` held-out samples, images dequantised; the same in every process.

    The samples are the first of a fixed random order, each with noise and probes from its own place and
    `seed`, so that a larger `num` adds samples and changes none. Of samples with classes it is given the
    class.

    Args:
        likelihood: of the model, computed on `device`.
        data: held-out data; images are uint8.
        num: at most the size of the data.
        batch: samples at a time.
    """
    order = torch.randperm(len(data), generator=generator("nll", len(data)))[:num]
    values = torch.zeros(2, len(order), dtype=torch.float64)
    mine = torch.arange(len(order))[processes.rank :: processes.world]
    for places in mine.split(batch):
        values[:, places] = _values(likelihood, data, order[places], seed, device).cpu()
    bits, evaluations = processes.sum(values)
    error = float(bits.std() / len(bits) ** 0.5) if len(bits) > 1 else float("nan")
    return Result(
        name="nll",
        value=float(bits.mean()),
        n=len(bits),
        extractor="probability flow",
        resize=_protocol(likelihood, data),
        reference=data.name,
        reference_fingerprint=data.fingerprint,
        reference_n=len(data),
        details={
            "standard_error": error,
            "evaluations": float(evaluations.mean()),
            "sigma_min": likelihood.sigma_min,
        },
    )


def _values(
    likelihood: FlowLikelihood, data: Dataset, indices: Tensor, seed: int, device: torch.device | str
) -> Tensor:
    """Bits per dimension and evaluations of these samples, [2, b]."""
    batch = data.fetch(indices)
    x, label = batch.x.to(device), batch.label
    rng = SampleRng([seed * len(data) + i for i in indices.tolist()], device)
    levels = x.dtype == torch.uint8
    x = dequantise(x, rng) if levels else x.double()
    classes = None if label is None or not likelihood.denoiser.num_classes else label.to(device)
    found = likelihood(x, rng, classes)
    bits = bits_per_dimension(found.nats, x[0].numel(), BIN if levels else 1.0)
    return torch.stack([bits, found.evaluations.double()])


def _protocol(likelihood: FlowLikelihood, data: Dataset) -> str:
    """What two numbers must share to compare: how pixels became densities, and how these were integrated."""
    levels = data.fetch(torch.tensor([0])).x.dtype == torch.uint8
    probes = "exact trace" if likelihood.probes is None else f"{likelihood.probes} probe(s) a sample"
    tail = "levels dequantised uniformly" if levels else "none: the entropy is differential"
    return (
        f"{tail}; sigma {likelihood.sigma_min:g} to {likelihood.sigma_max:g}, {likelihood.solver}, {probes}, "
        "prior the training data's Gaussian"
    )
