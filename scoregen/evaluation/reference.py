"""References: summaries of the real images' features, computed, cached, written and read.

The file is EDM's: an `.npz` with `mu` and `sigma`. Ours adds `meta`, a JSON string that says which extractor
made it, from how many images of which data, so that statistics of another kind are refused rather than
compared, and further arrays where a metric needs more than moments.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scoregen.errors import UserError
from scoregen.evaluation.features import Extractor
from scoregen.evaluation.frechet import Gaussian, Moments
from scoregen.evaluation.processes import Alone, Processes
from scoregen.evaluation.running import Storable
from scoregen.files import written_whole
from scoregen.images import to_uint8

Kind = type[Storable[Any]]
Wanted = Mapping[str, tuple[Kind, ...]]  # the summaries that are needed of each layer


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


@dataclass(frozen=True)
class Origin:
    """Where statistics come from. Empty strings are what a foreign file does not say.

    Args:
        extractor: name of the extractor, and `extractor_sha256` of its weights and configuration.
        resize: what it did to the pixels first.
        data: name of the data set, and `fingerprint` of its content.
        n: how many images; 0 where unknown.
        layer: which of the extractor's features.
    """

    extractor: str = ""
    extractor_sha256: str = ""
    resize: str = ""
    data: str = ""
    fingerprint: str = ""
    n: int = 0
    layer: str = ""


@dataclass(frozen=True)
class Reference:
    """Summaries of the real images' features, by kind, and where they come from."""

    summaries: Mapping[Kind, Any]
    origin: Origin

    @property
    def gaussian(self) -> Gaussian:
        """The moments."""
        gaussian: Gaussian = self.summaries[Moments]
        return gaussian

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What is written of all summaries."""
        return {
            name: array
            for kind, summary in self.summaries.items()
            for name, array in kind.write(summary).items()
        }

    @property
    def sha256(self) -> str:
        """A hash of the content and where it comes from: what a result quotes."""
        digest = hashlib.sha256(json.dumps(asdict(self.origin), sort_keys=True).encode())
        if not self.origin.fingerprint:  # else the origin says all, and rounding differs between machines
            for _, array in sorted(self.arrays.items()):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write the `.npz`, of which a reader never sees half."""
        meta = np.array(json.dumps(asdict(self.origin)))
        with written_whole(path) as file:
            np.savez(file, allow_pickle=False, meta=meta, **self.arrays)


def read_reference(
    path: Path, extractor: Extractor, layer: str = "", kinds: tuple[Kind, ...] = (Moments,)
) -> Reference:
    """Read the summaries `kinds` of an `.npz`, ours or EDM's; check that `extractor` may be compared with it.

    A file without `meta` does not name its extractor; with the right number of features it is taken for the
    published Inception's, which is what EDM's files are.

    Raises:
        UserError: there is no such file, it is damaged or of another kind, another extractor made it, or it
            lacks a summary.
    """
    arrays, layer = _read_arrays(path), layer or extractor.layer
    missing = [key for kind in kinds for key in kind.keys if key not in arrays]
    if missing:
        raise UserError(
            f"reference {path} has the keys {', '.join(arrays) or 'none'}; it needs {' and '.join(missing)} "
            "for these metrics: give the data itself as the reference, or leave the metrics out"
        )
    try:
        origin = Origin(**json.loads(str(arrays["meta"]))) if "meta" in arrays else Origin()
        summaries = {kind: kind.read(arrays, origin.n or None) for kind in kinds}
    except (ValueError, TypeError) as error:
        raise UserError(f"reference {path} is damaged: {error}") from error
    _refuse_another(path, origin, arrays[kinds[0].keys[0]].shape[-1], extractor, layer)
    return Reference(summaries, origin)


def _read_arrays(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        raise UserError(f"reference {path}: there is no such file") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"reference {path} cannot be read as an .npz of plain arrays: {error}") from error


def _refuse_another(path: Path, origin: Origin, dim: int, extractor: Extractor, layer: str) -> None:
    name = origin.extractor or "an extractor that the file does not name"
    taken_on_trust = not origin.extractor and extractor.name == "inception"
    same = taken_on_trust or origin.extractor_sha256 == extractor.sha256
    if dim == extractor.layers[layer] and same and origin.layer in ("", layer):
        return
    raise UserError(
        f"reference {path}: {dim} features of {name} (sha256 {origin.extractor_sha256[:8] or 'unknown'}) "
        f"cannot be compared with {extractor.layers[layer]} features of {extractor.name} "
        f"(sha256 {extractor.sha256[:8]}); give statistics of the same extractor, or the data itself"
    )


def measure(images: Iterable[Tensor], extractor: Extractor) -> Moments:
    """The moments of the first layer's features of batches uint8 [B, C, H, W]."""
    moments = Moments(extractor.dim, extractor.device)
    for batch in images:
        moments.update(extractor(batch))
    return moments


def batches(data: Images, rank: int = 0, world: int = 1, batch: int = 256) -> Iterator[Tensor]:
    """This process's share of all images, in order: every world-th one.

    Raises:
        UserError: the data are not images.
    """
    for indices in torch.arange(len(data))[rank::world].split(batch):
        x = data.fetch(indices).x
        if x.is_floating_point() and x.ndim == 4 and x.shape[1] in (1, 3):
            x = to_uint8(x)  # as samples are
        if x.dtype != torch.uint8 or x.ndim != 4:
            raise UserError(
                f"data set {data.name} holds {x.dtype} of shape {tuple(x.shape[1:])}, not uint8 images; "
                "image metrics do not apply to it"
            )
        yield x


def references_of(
    data: Images,
    extractor: Extractor,
    wanted: Wanted,
    cache: Path | None = None,
    processes: Processes | None = None,
) -> dict[str, Reference]:
    """Summaries of all of `data` by layer, in one pass, each process taking its share.

    They are kept in the folder `cache` for the next time; a file's name is a function of the extractor's and
    the data's fingerprints.
    """
    processes = processes or Alone()
    paths = {layer: cache and cache / cache_name(data, extractor, layer) for layer in wanted}
    found = {
        layer: path is not None and path.is_file() and _holds(path, wanted[layer])
        for layer, path in paths.items()
    }
    # All or none: a process that found the files would not meet the others in their sums.
    if not processes.any(not all(found.values())):
        return {
            layer: read_reference(path, extractor, layer, wanted[layer])
            for layer, path in paths.items()
            if path is not None
        }
    references = _summarise(data, extractor, wanted, processes)
    for layer, path in paths.items():
        if path is not None and processes.rank == 0:
            references[layer].write(path)
    return references


def reference_of(
    data: Images, extractor: Extractor, cache: Path | None = None, processes: Processes | None = None
) -> Reference:
    """Moments of the first layer's features of all of `data`; see `references_of`."""
    return references_of(data, extractor, {extractor.layer: (Moments,)}, cache, processes)[extractor.layer]


def _holds(path: Path, kinds: tuple[Kind, ...]) -> bool:
    with np.load(path, allow_pickle=False) as file:
        return {key for kind in kinds for key in kind.keys} <= set(file)


def _summarise(
    data: Images, extractor: Extractor, wanted: Wanted, processes: Processes
) -> dict[str, Reference]:
    running = {
        layer: {kind: kind(extractor.layers[layer], extractor.device) for kind in kinds}
        for layer, kinds in wanted.items()
    }
    seen = processes.rank
    for batch in batches(data, processes.rank, processes.world):
        index = seen + processes.world * np.arange(len(batch))
        features, seen = extractor.features(batch), seen + processes.world * len(batch)
        for layer, accumulators in running.items():
            for accumulator in accumulators.values():
                accumulator.update(features[layer], index)
    origin = (extractor.name, extractor.sha256, extractor.resize, data.name, data.fingerprint, len(data))
    return {
        layer: Reference(
            {kind: one.reduce(processes).summary() for kind, one in accumulators.items()},
            Origin(*origin, layer),
        )
        for layer, accumulators in running.items()
    }


def cache_name(data: Images, extractor: Extractor, layer: str = "") -> str:
    """`<data>-<extractor>[-<layer>]-<hash of both fingerprints>.npz`; the first layer goes unnamed."""
    key = hashlib.sha256(f"{extractor.sha256} {data.fingerprint}".encode()).hexdigest()[:16]
    suffix = "" if layer in ("", extractor.layer) else f"-{layer}"
    return f"{data.name}-{extractor.name}{suffix}-{key}.npz"
