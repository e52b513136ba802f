"""The curves of distillation runs, to compare one's own with: a small picture of each run.

usage: python -m benchmarks.distiller_curves RUN... [--out docs/images]

It needs matplotlib: pip install 'scoregen[plots]'.

Writes <out>/curves_<name>.png: the score difference by noise level over training, its weight, density ratios,
the losses of what learns beside the student, and the distance to the data.
"""

import argparse
from pathlib import Path
from typing import Any

from scoregen.objectives.base import SIGMA_BINS, describe_bin
from scoregen.training.loggers import read_log

Curves = dict[str, tuple[list[int], list[float]]]


def curve(rows: list[dict[str, Any]], key: str, index: int | None = None) -> tuple[list[int], list[float]]:
    """(nimg, value) of a key of the log, or of one noise level of it; what was not measured is left out."""
    found = [(row["nimg"], row[key] if index is None else row[key][index]) for row in rows if row.get(key)]
    kept = [(nimg, value) for nimg, value in found if value is not None]
    return [nimg for nimg, _ in kept], [value for _, value in kept]


def panels(rows: list[dict[str, Any]]) -> dict[str, Curves]:
    """The panels of a picture by title, each with its curves."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    by_level = {describe_bin(i): curve(rows, "difference_by_sigma", i) for i in range(SIGMA_BINS)}
    choices = {
        "rms score difference D_t - D_f, by sigma": by_level,
        "weight": {"weight": curve(rows, "weight")},
        "density ratio": {key: curve(rows, key) for key in names if key.startswith("ratio_q")},
        "losses beside the student": {key: curve(rows, key) for key in names if key.endswith("/loss")},
        "accuracy of the critic": {
            key: curve(rows, key) for key in names if key.split("/")[-1] == "accuracy"
        },
        "student's loss": {"loss": curve(rows, "loss")},
        "fd_scatter": {"fd_scatter": curve(rows, "fd_scatter")},
    }
    kept = {title: {k: v for k, v in curves.items() if v[0]} for title, curves in choices.items()}
    return {title: curves for title, curves in kept.items() if curves}


def plot(run_dir: Path, out: Path) -> Path:
    """Draw the panels of one run."""
    from matplotlib.figure import Figure

    drawn = panels(read_log(run_dir))
    figure = Figure(figsize=(3.2 * len(drawn), 2.6), dpi=72, layout="constrained")
    for axes, (title, curves) in zip(
        figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True
    ):
        for name, (nimg, values) in curves.items():
            axes.plot([n / 1000 for n in nimg], values, label=name, linewidth=1)
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("thousand images", fontsize=7)
        axes.tick_params(labelsize=6)
        if all(value > 0 for _, values in curves.values() for value in values) and title != "student's loss":
            axes.set_yscale("log")
        if len(curves) > 1:
            axes.legend(fontsize=5)
    path = out / f"curves_{run_dir.name}.png"
    figure.savefig(path)
    return path


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
