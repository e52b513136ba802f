"""How far each deterministic solver ends from the exact probability flow, at equal network evaluations.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.solver_accuracy [--write docs/samplers.md]

The denoisers are exact: mixtures of Gaussians of standard deviation 0.05 around 8 random means in 8
dimensions, 16 in 32, 150 of the embedded digits, and 150 random images of 3 x 32 x 32 with the spectrum of
photographs, whose first principal component has the standard deviation 11. A sample's error is
|x - x*| / |x*|, x* from UniPC with 1,000 steps down to sigma = 1e-4 in float64. Median and mean over 64
samples, each the geometric mean over the four problems: the mean is dominated by few trajectories near a
border between modes. --write puts the tables between the markers of a page.
"""

import argparse
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import exp, inf, log, sqrt
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.pages import write_section
from scoregen.data.base import to_model_range
from scoregen.data.digits import load_digits
from scoregen.denoisers.base import Cond
from scoregen.denoisers.empirical import EmpiricalDenoiser
from scoregen.denoisers.gaussian import GaussianDenoiser
from scoregen.diffusion.grids import KarrasGrid, LogSNRGrid, SigmaGrid
from scoregen.errors import UserError
from scoregen.rng import generator
from scoregen.samplers import SAMPLERS
from scoregen.samplers.adams import DEISSampler
from scoregen.samplers.base import Sampler
from scoregen.samplers.edm import HeunSampler
from scoregen.samplers.generate import steps_for_nfe
from scoregen.samplers.multistep import DPMpp2MSampler, DPMpp3MSampler
from scoregen.samplers.table import format_table, sampler_table
from scoregen.samplers.teleport import TeleportSampler
from scoregen.samplers.unipc import UniPCSampler

BUDGETS, STD, COUNT = (7, 9, 11, 13, 19, 35), 0.05, 64
GRIDS: Mapping[str, SigmaGrid] = {
    "rho = 7": KarrasGrid(),
    "rho = 15": KarrasGrid(rho=15),
    "log": LogSNRGrid(),
}
CANDIDATES: Mapping[str, Sampler] = {
    "heun": HeunSampler(),
    "dpmpp_2m": DPMpp2MSampler(),
    "dpmpp_3m": DPMpp3MSampler(),
    "unipc 2": UniPCSampler(solver_order=2),
    "unipc 3": UniPCSampler(),
    "deis 3": DEISSampler(),
    "deis 4": DEISSampler(solver_order=4),
}


class Clouds:
    """Gaussians of standard deviation STD around points [N, d]: the points themselves at a higher level."""

    num_classes, sigma_min, sigma_max = 0, 0.0, inf

    def __init__(self, points: Tensor) -> None:
        self.points, self.shape = EmpiricalDenoiser(points), tuple(points.shape[1:])

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond = None) -> Tensor:
        total = sigma**2 + STD**2
        return torch.lerp(self.points(x, total.sqrt()), x, STD**2 / total)


@dataclass(frozen=True)
class Problem:
    """A denoiser, the Gaussian of its data, noise and where the exact flow carries it."""

    name: str
    denoiser: Clouds
    moments: GaussianDenoiser
    noise: Tensor
    exact: Tensor


def problem(name: str, means: Tensor) -> Problem:
    denoiser, centred = Clouds(means), means - means.mean(0)
    _, lengths, axes = torch.linalg.svd(centred, full_matrices=False)
    variances = lengths.square() / len(means) + STD**2
    moments = GaussianDenoiser(means.mean(0), variances, eigenvectors=axes.T, tail=STD**2)
    noise = torch.randn(COUNT, means.shape[1], generator=generator("solver_accuracy"), dtype=torch.float64)
    fine = UniPCSampler(steps=1000, grid=KarrasGrid(1e-4, 80.0), state_dtype="float64")
    return Problem(name, denoiser, moments, noise, fine(denoiser, noise))


def problems() -> Iterator[Problem]:
    for count, size in ((8, 8), (16, 32)):
        means = torch.randn(count, size, generator=generator("means"), dtype=torch.float64) / 2
        yield problem(f"{count} points in {size} dimensions", means)
    yield problem("150 digits, 8 x 8", to_model_range(load_digits().x[:150]).double().flatten(1))
    yield problem("150 random images, 3 x 32 x 32", random_images(150, 32).flatten(1))


def random_images(count: int, size: int) -> Tensor:
    """Gaussian fields [count, 3, size, size] of standard deviation 0.5 with a power spectrum of 1 / f^2."""
    white = torch.randn(count, 3, size, size, generator=generator("images"), dtype=torch.float64)
    grey = white.mean(1, keepdim=True) * sqrt(3)
    along = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    frequency = torch.hypot(along[:, None], along).clamp(min=0.5)
    colours = sqrt(0.9) * grey + sqrt(0.1) * white  # channels of photographs are correlated
    images = torch.fft.ifft2(torch.fft.fft2(colours) / frequency).real
    return images / images.std() / 2


def errors(
    sampler: Sampler, nfe: int, given: list[Problem], skip: float | None = None
) -> tuple[float, float] | None:
    """Median and mean error with nfe evaluations; None where the sampler needs more."""
    try:
        sampler = replace(sampler, steps=steps_for_nfe(sampler, nfe), state_dtype="float64")
    except UserError:
        return None
    found = [distances(sampler, p, skip) for p in given]
    return tuple(geometric_mean([float(f(each)) for each in found]) for f in (Tensor.median, Tensor.mean))


def distances(sampler: Sampler, p: Problem, skip: float | None = None) -> Tensor:
    """The error of each sample, [COUNT]."""
    solver = sampler if skip is None else teleported(sampler, p, skip)
    return (solver(p.denoiser, p.noise) - p.exact).norm(dim=1) / p.exact.norm(dim=1)


def teleported(sampler: Sampler, p: Problem, skip: float) -> Sampler:
    return TeleportSampler(
        sampler.steps,
        sampler.grid,
        sampler.state_dtype,
        moments=p.moments,
        sigma_skip=skip,
        protocol="regrid",
        inner=sampler,
    )


def geometric_mean(values: list[float]) -> float:
    return exp(sum(map(log, values)) / len(values))


def all_solvers(given: list[Problem]) -> str:
    """Every deterministic solver of the registry on EDM's grid."""
    lines = [
        "| solver | " + " | ".join(f"NFE {nfe}" for nfe in BUDGETS) + " |",
        "|---" + "|--:" * len(BUDGETS) + "|",
    ]
    for name, kind in SAMPLERS.items():
        if kind.order is not None and name != "ddim":
            cells = [errors(kind(), nfe, given) for nfe in BUDGETS]
            lines.append(f"| `{name}` | " + " | ".join(map(cell, cells)) + " |")
    return "\n".join(lines)


def default_candidates(given: list[Problem], best: int = 4) -> str:
    """The best of solver x grid x sigma_skip for each budget, by median and by mean, and Heun's 35."""
    reference = errors(HeunSampler(), 35, given)
    lines = [
        "| NFE | best by median | best by mean |",
        "|--:|---|---|",
        f"| 35 | Heun, rho = 7: {cell(reference)} | |",
    ]
    for nfe in BUDGETS[1:4]:
        rows = []
        for name, sampler in CANDIDATES.items():
            for label, grid in GRIDS.items():
                for skip in (None, 20.0, 10.0):
                    found = errors(replace(sampler, grid=grid), nfe, given, skip)
                    jump = "" if skip is None else f", from {skip:g}"
                    if found is not None:
                        rows.append((found, f"{name}, {label}{jump}: {cell(found)}"))
        columns = [
            "<br>".join(text for _, text in sorted(rows, key=lambda row: row[0][i])[:best]) for i in (0, 1)
        ]
        lines.append(f"| {nfe} | {columns[0]} | {columns[1]} |")
    return "\n".join(lines)


def by_problem(given: list[Problem]) -> str:
    """`auto` and Heun's 35 sample by sample."""
    heun, auto = HeunSampler(18, state_dtype="float64"), DEISSampler(13, state_dtype="float64")
    lines = [
        "| data | Heun, NFE 35 | `auto`, NFE 13 | nearer | `auto` from sigma_skip 10 | nearer |",
        "|---" + "|--:" * 5 + "|",
    ]
    for p in given:
        reference, cells = distances(heun, p), [p.name]
        cells.append(cell((float(reference.median()), float(reference.mean()))))
        for skip in (None, 10.0):
            found = distances(auto, p, skip)
            cells.append(cell((float(found.median()), float(found.mean()))))
            cells.append(f"{float((found < reference).double().mean()):.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(found: tuple[float, float] | None) -> str:
    return "-" if found is None else f"{found[0]:.1e} ({found[1]:.1e})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, metavar="PAGE")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of low sigma_skip
    torch.set_num_threads(1)
    given = list(problems())
    tables = {
        "samplers": format_table(sampler_table(18)),
        "accuracy": all_solvers(given),
        "by problem": by_problem(given),
        "default": default_candidates(given),
    }
    for name, table in tables.items():
        print(f"\n{name}\n{table}")
        if args.write:
            write_section(args.write, name, table)


if __name__ == "__main__":
    main()
