"""The report of a run as one HTML file that needs nothing else: no network, no script."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any

from scoregen.evaluation.result import protocol
from scoregen.objectives.base import SIGMA_BINS, SIGMA_EDGES, describe_bin
from scoregen.report.charts import ORDERED, bar_chart, line_chart

STYLE = files("scoregen.report").joinpath("style.css").read_text()


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows."""

    png: bytes
    caption: str


@dataclass(frozen=True)
class Content:
    """All that a report shows; what is empty is left out.

    Args:
        name: of the run. about: a sentence on where its weights come from.
        facts: short values by name, in order: the cost and the size of the run.
        rows: of the training log.
        samples: grids of samples, the newest first.
        neighbours: the samples closest to training images, and what the distances say.
        records: of metrics.json. config: the run's, as YAML.
    """

    name: str
    about: str
    facts: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[Picture] = ()
    neighbours: Picture | None = None
    records: Sequence[Mapping[str, Any]] = ()
    config: str = ""


def render(content: Content) -> str:
    """The whole page."""
    sections = [
        ("Samples", _row(content.samples)),
        ("Metrics", _metrics(content.records)),
        ("Training", _training(content.rows)),
        ("Loss by noise level", _by_sigma(content.rows)),
        (
            "Nearest training images",
            "" if content.neighbours is None else _picture(content.neighbours, "wide"),
        ),
        ("Configuration", f"<pre>{escape(content.config)}</pre>" if content.config else ""),
    ]
    body = "".join(f"<section><h2>{title}</h2>{text}</section>" for title, text in sections if text)
    title = escape(content.name)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><h1>{title}</h1>"
        f'<p class="about">{escape(content.about)}</p>{_facts(content.facts)}{body}</body></html>\n'
    )


def _row(pictures: Sequence[Picture]) -> str:
    """Pictures side by side where there is room."""
    return f'<div class="row">{"".join(map(_picture, pictures))}</div>' if pictures else ""


def _facts(facts: Mapping[str, str]) -> str:
    cells = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return f"<dl>{''.join(cells)}</dl>" if facts else ""


def _picture(picture: Picture, css: str = "") -> str:
    data = base64.b64encode(picture.png).decode()
    caption = escape(picture.caption)
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<img class="{css}" alt="{caption}" src="data:image/png;base64,{data}"></figure>'
    )


def _metrics(records: Sequence[Mapping[str, Any]]) -> str:
    """A row of numbers for each record, the newest last, and under it how it was measured."""
    if not records:
        return ""
    lines = []
    for record in records:
        values = record.get("values") or [record["value"]]
        spread = record.get("repeats_spread", record.get("spread"))
        numbers = [
            f"{record['value']:.5g}",
            f"{min(values):.5g}",
            f"{max(values):.5g}" if len(values) > 1 else "",
            "" if spread is None else f"{spread:.3g}",
            f"{record['n']:,}",
            str(len(values)),
        ]
        cells = "".join(f"<td>{cell}</td>" for cell in numbers)
        how = "; ".join(part for part in (protocol(record), _details(record), record.get("note")) if part)
        lines.append(f"<tr><td><b>{escape(record['name'])}</b></td>{cells}</tr>")
        lines.append(f'<tr><td class="how" colspan="7">{escape(how)}</td></tr>')
    head = "".join(f"<th>{name}</th>" for name in ("metric", "mean", "min", "max", "spread", "n", "times"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="table">{table}</div>'


def _details(record: Mapping[str, Any]) -> str:
    details = record.get("details") or {}
    return ", ".join(f"{name} {_short(value)}" for name, value in details.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _curve(rows: Sequence[Mapping[str, Any]], *path: str) -> list[tuple[float, float]]:
    """(nimg, value) of each row that has a value at this path."""
    points = []
    for row in rows:
        value: Any = row
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            points.append((float(row["nimg"]), float(value)))
    return points


def _training(rows: Sequence[Mapping[str, Any]]) -> str:
    """Curves of everything scalar in the log."""
    drawn = (
        ("loss", {"training": _curve(rows, "loss"), "held out": _curve(rows, "heldout_loss")}, True),
        ("gradient norm", {"gradient norm": _curve(rows, "grad_norm")}, True),
        ("learning rate", {"learning rate": _curve(rows, "lr")}, False),
        ("images a second", {"images a second": _curve(rows, "time", "img_per_s")}, False),
        *((name, {name: _curve(rows, name)}, False) for name in _further(rows)),
    )
    charts = (
        line_chart(series, title=title, x_label="images seen", logarithmic=logarithmic)
        for title, series, logarithmic in drawn
    )
    text = "".join(charts)
    return f'<div class="charts">{text}</div>' if text else ""


_DRAWN = {
    "nimg",
    "loss",
    "heldout_loss",
    "grad_norm",
    "lr",
    "skipped",
    "evaluated",
    "end",
    "heldout_improved",
}


def _further(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of other scalars: metrics in training, what objectives log."""
    names = {
        key: None
        for row in rows
        for key, value in row.items()
        if type(value) in (int, float) and key not in _DRAWN
    }
    return list(names)


def _by_sigma(rows: Sequence[Mapping[str, Any]]) -> str:
    """The last losses as bars, and their course as lines."""
    last = next((row["loss_by_sigma"] for row in reversed(rows) if row.get("loss_by_sigma")), None)
    if last is None:
        return ""
    names = [describe_bin(i) for i in range(SIGMA_BINS)]
    edges = ["0", *(f"{float(f'{edge:.2g}'):g}" for edge in SIGMA_EDGES)]
    bars = bar_chart(
        dict(zip(edges, last, strict=True)),
        title="training loss, last interval, by sigma (lower end of the bin)",
    )
    lines = line_chart(
        {
            name: [
                (float(row["nimg"]), row["loss_by_sigma"][i])
                for row in rows
                if row.get("loss_by_sigma") and row["loss_by_sigma"][i] is not None
            ]
            for i, name in enumerate(names)
        },
        title="training loss by sigma",
        x_label="images seen",
        logarithmic=True,
        colours=ORDERED,
    )
    return f'<div class="charts">{bars}{lines}</div>'
