"""The Gaussian that a data set is reduced to: moments streamed in float64, by class, and kept in a file."""

import hashlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from scoregen.data.base import Dataset, labels_fingerprint, labels_of
from scoregen.denoisers.gaussian import ClassGaussianDenoiser, GaussianDenoiser
from scoregen.denoisers.int8 import has_fast_int8, int8_product
from scoregen.errors import UserError
from scoregen.files import written_whole

CHUNK = 1024  # samples a time: sums of so many squared levels below 129 are exact in float32
MAX_DIM = 16_384  # a float64 covariance of 2 GiB

Gaussian = GaussianDenoiser | ClassGaussianDenoiser


class Scatter:
    """Running sums n, sum x, sum x x^T of samples [B, *shape] in float64; integer levels are summed exactly.

    Levels u are taken as u - 128, which a product of int8 or of float32 in blocks of 1,024 keeps exact.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.n, self.is_levels = shape, 0, False
        self.sum = torch.zeros(prod(shape), dtype=torch.float64)
        self.outer = torch.zeros(prod(shape), prod(shape), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Take in at most 1,024 samples."""
        self.is_levels = x.dtype == torch.uint8
        x = x.cpu().flatten(1)
        self.n += len(x)
        if self.is_levels:
            x = (x.to(torch.int16) - 128).to(torch.int8)
            self.sum += x.sum(0)
            self.outer += int8_product(x.T, x) if has_fast_int8() else x.float().T @ x.float()
        else:
            x = x.double()
            self.sum += x.sum(0)
            self.outer.addmm_(x.T, x)

    def merge(self, other: "Scatter") -> None:
        """Take in what another has taken in."""
        self.n, self.is_levels = self.n + other.n, other.is_levels
        self.sum += other.sum
        self.outer += other.outer

    def with_flips(self) -> "Scatter":
        """The sums over the samples and their mirror images in the last axis."""
        both, axis = Scatter(self.shape), len(self.shape) - 1
        both.n, both.is_levels = 2 * self.n, self.is_levels
        both.sum = self.sum + self.sum.view(self.shape).flip(axis).flatten()
        outer = self.outer.view(*self.shape, *self.shape)
        both.outer = self.outer + outer.flip(axis, axis + len(self.shape)).reshape(self.outer.shape)
        return both

    def gaussian(self, rank: int | None = None) -> GaussianDenoiser:
        """The Gaussian with the mean and the unbiased covariance, in the model's range [-1, 1]; float32."""
        mean = self.sum / self.n
        covariance = (self.outer - self.n * torch.outer(mean, mean)) / (self.n - 1)
        if self.is_levels:
            mean, covariance = (mean + 128) / 127.5 - 1, covariance / 127.5**2
        return GaussianDenoiser.from_covariance(mean.view(self.shape), covariance, rank=rank).float()


def measure_gaussian(
    data: Dataset, *, rank: int | None = None, per_class: bool = False, flips: bool = False
) -> Gaussian:
    """Reduce a data set to its mean and covariance (unbiased, divisor n - 1).

    Args:
        data: the training set.
        rank: how many principal axes keep a variance of their own; None is all.
        per_class: moments of each class beside those of the whole.
        flips: count the mirror image of each sample too, for models that train on flipped images.

    Raises:
        UserError: fewer than two samples, in any class asked for; a rank above the dimension; samples of
            more than 16,384 elements, whose covariance would not fit.

    Source: Wang and Vastola, The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion
    Models and its Applications, 2024, arXiv 2412.09726. Moments by class are ours.
    """
    _check(data, rank, per_class)
    whole, classes = Scatter(tuple(data.shape)), []
    for label, rows in _groups(data, per_class):
        part = Scatter(tuple(data.shape)) if per_class else whole
        for indices in rows.split(CHUNK):
            part.add(data.fetch(indices).x)
        if part.n < 2:
            where = f"class {label} of {data.name}" if per_class else data.name
            raise UserError(f"{where} has {part.n} samples: a covariance needs at least 2")
        if per_class:
            whole.merge(part)
            classes.append((part.with_flips() if flips else part).gaussian(rank))
    everything = (whole.with_flips() if flips else whole).gaussian(rank)
    return ClassGaussianDenoiser(classes, everything) if per_class else everything


def pooled(gaussian: Gaussian) -> Gaussian:
    """The white Gaussian with one mean and one variance for all elements of a channel, the first axis."""
    if isinstance(gaussian, ClassGaussianDenoiser):
        *classes, whole = (_pooled(member) for member in gaussian.members)
        return ClassGaussianDenoiser(classes, whole)
    return _pooled(gaussian)


def _pooled(gaussian: Any) -> GaussianDenoiser:
    mean = gaussian.mean.reshape(gaussian.shape[0], -1)
    variances = gaussian.element_variances().reshape(mean.shape)
    white = torch.stack([mean, variances + (mean - mean.mean(1, keepdim=True)) ** 2]).mean(2)
    channels = white.reshape(2, -1, *(1,) * (len(gaussian.shape) - 1)).expand(2, *gaussian.shape)
    return GaussianDenoiser(channels[0], channels[1])


def cached_gaussian(
    data: Dataset, folder: Path, *, rank: int | None = None, per_class: bool = False, flips: bool = False
) -> Path:
    """The file in `folder` that holds `measure_gaussian` of these arguments; measured where it is not there.

    Its name tells the data's fingerprint and the options, so that no other data are taken for these.
    """
    key = (data.fingerprint, labels_fingerprint(data) if per_class else "", rank, flips)
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    path = folder / f"gaussian-{data.name}-{digest}.npz"
    if not path.exists():
        save_gaussian(measure_gaussian(data, rank=rank, per_class=per_class, flips=flips), path)
    return path


def save_gaussian(gaussian: Gaussian, path: Path) -> None:
    """Write the moments, class after class and the whole last; a torn file is never left under that name."""
    members = list(gaussian.members) if isinstance(gaussian, ClassGaussianDenoiser) else [gaussian]
    states = [member.state_dict() for member in members]
    arrays: dict[str, Any] = {
        key: np.stack([state[key].cpu().numpy() for state in states]) for key in states[0]
    }
    with written_whole(path) as file:
        np.savez(file, **arrays)


def load_gaussian(path: Path) -> Gaussian:
    """Read what `save_gaussian` wrote; UserError for a file that is missing or is not of that kind."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {
                key: torch.from_numpy(file[key]) for key in ("mean", "variances", "eigenvectors", "tail")
            }
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(
            f"{path} holds no Gaussian moments of training data: {error}; give a file that "
            "scoregen.denoisers.moments.save_gaussian has written"
        ) from error
    members = [
        GaussianDenoiser(mean, variances, eigenvectors=eigenvectors, tail=tail)
        for mean, variances, eigenvectors, tail in zip(*arrays.values(), strict=True)
    ]
    return members[0] if len(members) == 1 else ClassGaussianDenoiser(members[:-1], members[-1])


def _groups(data: Dataset, per_class: bool) -> Iterator[tuple[int, Tensor]]:
    """The indices of each class, or of everything."""
    everything = torch.arange(len(data))
    if not per_class:
        yield 0, everything
        return
    labels = labels_of(data)
    for label in range(data.num_classes):
        yield label, everything[labels == label]


def _check(data: Dataset, rank: int | None, per_class: bool) -> None:
    dim = prod(data.shape)
    if per_class and not data.num_classes:
        raise UserError(f"{data.name} has no classes: moments by class need data.conditional=true")
    if rank is not None and not 0 <= rank <= dim:
        raise UserError(f"rank={rank}: {data.name} has {dim} dimensions, so 0 to {dim} is allowed")
    if dim > MAX_DIM:
        raise UserError(f"{data.name}: a covariance of {dim} dimensions does not fit; up to {MAX_DIM} does")
