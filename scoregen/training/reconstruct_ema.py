"""Reconstruct, after training, the average of the weights that any width would have given.

    python -m scoregen.training.reconstruct_ema runs/x --sigma-rel 0.075 --out runs/x/ema_0.075.safetensors

Source: Analyzing and Improving the Training Dynamics of Diffusion Models, T. Karras, M. Aittala, J. Lehtinen,
J. Hellsten, T. Aila, S. Laine, 2024, arXiv 2312.02696.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scoregen.cli.entry import DONE, check_writable, run_entry
from scoregen.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Snapshot:
    """One stored average: the file, its time in images, the width of its profile."""

    path: Path
    nimg: int
    sigma_rel: float


def find_snapshots(run_dir: Path) -> list[Snapshot]:
    """The snapshots of a run, oldest first; UserError where there are none."""
    from scoregen.training.ema import SNAPSHOTS

    folder = run_dir / SNAPSHOTS
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    parts = [match for name in sorted(names) if (match := re.fullmatch(r"(\d+)_(0\.\d+)\.safetensors", name))]
    if not parts:
        raise UserError(
            f"There are no EMA snapshots in {folder}. "
            "They are stored in training with ema=power and an interval for the snapshot hook."
        )
    return [Snapshot(folder / part[0], int(part[1]), float(part[2])) for part in parts]


def reconstruct(
    run_dir: Path, sigma_rel: float, nimg: int | None = None
) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Synthesise the average of width `sigma_rel` at a stored time: (weights in float32, metadata).

    The weights are the combination of all snapshots up to that time whose profiles add up to the wanted one;
    buffers are those of the last. On a drifting random walk 32 snapshots of widths 0.05 and 0.10 give 0.075
    and 0.15 to 1e-4, but 0.02 and 0.25 to 4e-3 and 3e-2 only; float16 adds its rounding.

    Args:
        run_dir: the run's folder, with `ema_snapshots/`.
        sigma_rel: the width relative to training time, in (0, 12^-1/2).
        nimg: time in images, one of those stored; None takes the last.

    Raises UserError for widths out of range, times not stored, and missing or torn snapshots.
    """
    from scoregen.training.ema import power_coefficients, power_gamma
    from scoregen.training.weights import read_weights

    gamma = power_gamma(sigma_rel)
    snapshots = _until(find_snapshots(run_dir), nimg)
    last = snapshots[-1]
    coefficients = power_coefficients(
        [snapshot.nimg for snapshot in snapshots],
        [power_gamma(snapshot.sigma_rel) for snapshot in snapshots],
        last.nimg,
        gamma,
    )
    tensors, metadata = read_weights(last.path)
    averaged = metadata.pop("averaged").split("\n")
    sums = {key: tensors[key].double() * coefficients[-1] for key in averaged}
    for snapshot, coefficient in zip(snapshots[:-1], coefficients[:-1], strict=True):
        other = read_weights(snapshot.path)[0]
        for key in averaged:
            sums[key].add_(other[key].double(), alpha=coefficient)
    result = {key: sums[key].float() if key in sums else value for key, value in tensors.items()}
    return result, metadata | {"sigma_rel": repr(sigma_rel), "reconstructed_from": str(len(snapshots))}


def _until(snapshots: Sequence[Snapshot], nimg: int | None) -> list[Snapshot]:
    """The snapshots up to a stored time; UserError for another time."""
    times = sorted({snapshot.nimg for snapshot in snapshots})
    if nimg is not None and nimg not in times:
        shown = ", ".join(map(str, times if len(times) <= 8 else [*times[:3], "...", *times[-3:]]))
        raise UserError(f"--nimg {nimg}: no snapshot was stored at that time; stored are {shown}")
    return [snapshot for snapshot in snapshots if snapshot.nimg <= (times[-1] if nimg is None else nimg)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scoregen.training.reconstruct_ema",
        description="Reconstruct the average of the weights of any width from the snapshots of a run.",
    )
    parser.add_argument("run_dir", type=Path, help="folder of a run trained with ema=power")
    parser.add_argument(
        "--sigma-rel", type=float, required=True, help="width relative to training time: 0.075"
    )
    parser.add_argument("--nimg", type=int, help="time in images, one of those stored (default: the last)")
    parser.add_argument("--out", type=Path, required=True, help="weights file to write, for sample.py --run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 the user's input is wrong."""
    return run_entry(_reconstruct, argv)


def _reconstruct(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    from scoregen.training.weights import weights_hash, write_weights

    check_writable(args.out)
    tensors, metadata = reconstruct(args.run_dir, args.sigma_rel, args.nimg)
    write_weights(args.out, tensors, metadata)
    print(
        f"{args.out}: sigma_rel {args.sigma_rel:g} at {int(metadata['nimg']):,} images from "
        f"{metadata['reconstructed_from']} snapshots, hash {weights_hash(args.out)}"
    )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
