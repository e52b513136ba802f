"""The curves of distillation runs, to compare one's own with: a small picture of each run.

usage: python -m benchmarks.distiller_curves RUN... [--out docs/images]

It needs matplotlib: pip install 'scoregen[plots]'.

Writes <out>/curves_<name>.png: the score difference by noise level over training, its weight, density ratios,
the losses of what learns beside the student, and the distance to the data.
"""

import argparse
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from scoregen.objectives.base import SIGMA_BINS, describe_bin
from scoregen.training.loggers import read_log

COLUMNS = 3  # panels beside each other
DECADE = 10  # a range from which on the scale is logarithmic
Curves = dict[str, tuple[list[int], list[float]]]


def curve(rows: list[dict[str, Any]], key: str, index: int | None = None) -> tuple[list[int], list[float]]:
    """(nimg, value) of a key of the log, or of one noise level of it; what was not measured is left out."""
    found = [(row["nimg"], row[key] if index is None else row[key][index]) for row in rows if row.get(key)]
    kept = [(nimg, value) for nimg, value in found if value is not None]
    return [nimg for nimg, _ in kept], [value for _, value in kept]


def panels(rows: list[dict[str, Any]]) -> dict[str, Curves]:
    """The panels of a picture by title, each with its curves."""
    names = list(dict.fromkeys(key for row in rows for key in row if not key.endswith("_by_sigma")))
    by_level = {describe_bin(i): curve(rows, "difference_by_sigma", i) for i in range(SIGMA_BINS)}
    choices = {
        "rms of D_t - D_f, by sigma": by_level,
        "weight of a sample": {"weight": curve(rows, "weight")},
        "density ratio": {key: curve(rows, key) for key in names if key.startswith("ratio_q")},
        "losses beside the student": {key: curve(rows, key) for key in names if key.endswith("/loss")},
        "accuracy of the critic": {
            key: curve(rows, key) for key in names if key.split("/")[-1] == "accuracy"
        },
        "student's loss": {"loss": curve(rows, "loss")},
        "fd_scatter": {"fd_scatter": curve(rows, "fd_scatter")},
    }
    kept = {title: {k: v for k, v in curves.items() if moves(v[1])} for title, curves in choices.items()}
    return {title: curves for title, curves in kept.items() if curves}


def moves(values: Sequence[float]) -> bool:
    """Whether there is anything to draw."""
    return len(set(values)) > 1


def plot(run_dir: Path, out: Path) -> Path:
    """Draw the panels of one run."""
    from matplotlib.figure import Figure

    drawn = panels(read_log(run_dir))
    columns = len(drawn) if len(drawn) <= COLUMNS + 1 else COLUMNS
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.5 * rows), dpi=96, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (title, curves) in zip_longest(grid.flat, drawn.items(), fillvalue=("", {})):
        draw(axes, title, curves)
    path = out / f"curves_{run_dir.name}.png"
    figure.savefig(path)
    return path


def draw(axes: Any, title: str, curves: Curves) -> None:
    """One panel; an empty one stays blank. Noise levels go from dark to light."""
    from matplotlib import colormaps

    if not curves:
        axes.set_axis_off()
        return
    shades = colormaps["viridis"].resampled(max(len(curves), 2))
    for index, (name, (nimg, values)) in enumerate(curves.items()):
        axes.plot([n / 1000 for n in nimg], values, label=name, linewidth=1.2, color=shades(index))
    every = [value for _, values in curves.values() for value in values]
    if min(every) > 0 and max(every) > DECADE * min(every):
        axes.set_yscale("log")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("thousand images", fontsize=8)
    axes.tick_params(labelsize=7)
    if len(curves) > 1:
        axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def main() -> None:
    """A picture for each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    for run_dir in args.runs:
        print(plot(run_dir, args.out))


if __name__ == "__main__":
    main()
