"""Reference statistics: what generated images are compared with, computed, cached, written and read.

The file is EDM's: an `.npz` with `mu` and `sigma`. Ours adds `meta`, a JSON string that says which extractor
made it, from how many images of which data, so that statistics of another kind are refused rather than
compared.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.evaluation.features import Extractor
from scoregen.evaluation.frechet import Gaussian, Moments


class Images(Protocol):
    """The part of a data set that statistics need."""

    @property
    def name(self) -> str:
        """The data set's name."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of its samples."""
        ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def fetch(self, indices: Tensor) -> Any:
        """A batch whose `x` is uint8 [B, C, H, W]."""
        ...


class Processes(Protocol):
    """This process among the others, as `scoregen.parallel.Parallel` has it."""

    rank: int
    world: int

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, on every one of them; it may be taken in place."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        ...


class Alone:
    """One process."""

    rank = 0
    world = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def any(self, flag: bool) -> bool:
        """The flag itself."""
        return flag


@dataclass(frozen=True)
class Origin:
    """Where statistics come from. Empty strings are what a foreign file does not say.

    Args:
        extractor: name of the extractor, and `extractor_sha256` of its weights and configuration.
        resize: what it did to the pixels first.
        data: name of the data set, and `fingerprint` of its content.
        n: how many images; 0 where unknown.
    """

    extractor: str = ""
    extractor_sha256: str = ""
    resize: str = ""
    data: str = ""
    fingerprint: str = ""
    n: int = 0


@dataclass(frozen=True)
class Reference:
    """The moments of the real images' features, and where they come from."""

    gaussian: Gaussian
    origin: Origin

    @property
    def sha256(self) -> str:
        """A hash of mean, covariance and origin: what a result quotes."""
        digest = hashlib.sha256(json.dumps(asdict(self.origin), sort_keys=True).encode())
        for tensor in (self.gaussian.mean, self.gaussian.cov):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write the `.npz`: beside, then renamed, so that a reader never sees half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with beside.open("wb") as file:
                np.savez(
                    file,
                    mu=self.gaussian.mean.numpy(),
                    sigma=self.gaussian.cov.numpy(),
                    meta=np.array(json.dumps(asdict(self.origin))),
                )
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def read_reference(path: Path, extractor: Extractor) -> Reference:
    """Read an `.npz` with `mu` and `sigma`, ours or EDM's, and check that `extractor` may be compared with
    it.

    A file without `meta` does not name its extractor; with 2048 features it is taken for the published
    Inception's, which is what EDM's files are.

    Raises:
        UserError: there is no such file, it is damaged or of another kind, or another extractor made it.
    """
    arrays = _read_arrays(path)
    mean, cov = (torch.from_numpy(np.asarray(arrays[key], dtype=np.float64)) for key in ("mu", "sigma"))
    origin = Origin(**json.loads(str(arrays["meta"]))) if "meta" in arrays else Origin()
    dim = mean.numel()
    if (
        mean.ndim != 1
        or cov.shape != (dim, dim)
        or not (torch.isfinite(mean).all() and torch.isfinite(cov).all())
    ):
        raise UserError(
            f"{path}: mu {tuple(mean.shape)} and sigma {tuple(cov.shape)} are not a finite mean [d] and "
            "covariance [d, d]"
        )
    _refuse_another(path, origin, dim, extractor)
    return Reference(Gaussian(mean, cov, origin.n or None), origin)


def _read_arrays(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except FileNotFoundError:
        raise UserError(f"reference {path}: there is no such file") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"reference {path} cannot be read as an .npz of plain arrays: {error}") from error
    missing = {"mu", "sigma"} - arrays.keys()
    if missing:
        raise UserError(f"reference {path} has the keys {', '.join(arrays) or 'none'}; it needs mu and sigma")
    return arrays


def _refuse_another(path: Path, origin: Origin, dim: int, extractor: Extractor) -> None:
    name = origin.extractor or "an extractor that the file does not name"
    taken_on_trust = not origin.extractor and extractor.name == "inception"
    same = taken_on_trust or origin.extractor_sha256 == extractor.sha256
    if dim == extractor.dim and same:
        return
    raise UserError(
        f"reference {path}: {dim} features of {name} (sha256 {origin.extractor_sha256[:8] or 'unknown'}) "
        f"cannot be compared with {extractor.dim} features of {extractor.name} "
        f"(sha256 {extractor.sha256[:8]}); give statistics of the same extractor, or the data itself"
    )


def measure(images: Iterable[Tensor], extractor: Extractor) -> Moments:
    """The moments of the features of batches uint8 [B, C, H, W]."""
    moments = Moments(extractor.dim, extractor.device)
    for batch in images:
        moments.update(extractor(batch))
    return moments


def batches(data: Images, rank: int = 0, world: int = 1, batch: int = 256) -> Iterator[Tensor]:
    """This process's share of all images, in order: every world-th one.

    Raises:
        UserError: the data are not images.
    """
    for indices in torch.arange(rank, len(data), world).split(batch):
        x = data.fetch(indices).x
        if x.dtype != torch.uint8 or x.ndim != 4:
            raise UserError(
                f"data set {data.name} holds {x.dtype} of shape {tuple(x.shape[1:])}, not uint8 images; "
                "image metrics do not apply to it"
            )
        yield x


def reference_of(
    data: Images, extractor: Extractor, cache: Path | None = None, processes: Processes | None = None
) -> Reference:
    """Statistics of all of `data`, each process taking its share; kept in the folder `cache` for the next
    time.

    The cached file's name is a function of the extractor's and the data's fingerprints.
    """
    processes = processes or Alone()
    path = None if cache is None else cache / cache_name(data, extractor)
    # All or none: a process that found the file would not meet the others in their sums.
    missing = processes.any(path is None or not path.is_file())
    if path is not None and not missing:
        return read_reference(path, extractor)
    moments = measure(batches(data, processes.rank, processes.world), extractor).reduce(processes.sum)
    origin = Origin(
        extractor.name, extractor.sha256, extractor.resize, data.name, data.fingerprint, int(moments.n)
    )
    reference = Reference(moments.gaussian(), origin)
    if path is not None and processes.rank == 0:
        reference.write(path)
    return reference


def cache_name(data: Images, extractor: Extractor) -> str:
    """`<data>-<extractor>-<hash of both fingerprints>.npz`."""
    key = hashlib.sha256(f"{extractor.sha256} {data.fingerprint}".encode()).hexdigest()[:16]
    return f"{data.name}-{extractor.name}-{key}.npz"
