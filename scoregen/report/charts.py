"""Line and bar charts as SVG text, with their numbers in the mark-up for those who look for them."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 420, 230  # narrow, so that the letters can be read on a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 38
# Told apart by lightness, too (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# For what has an order: from dark to light through blue and green (after viridis of matplotlib).
ORDERED = (
    "#440154",
    "#482878",
    "#3e4989",
    "#31688e",
    "#26828e",
    "#1f9e89",
    "#35b779",
    "#6ece58",
    "#b5de2b",
    "#e2c800",
)

Points = Sequence[tuple[float, float]]


class _Axis:
    """A map from values to pixels, linear or logarithmic, over all values given."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, logarithmic: bool) -> None:
        self.logarithmic = logarithmic and min(values) > 0
        scaled = [self._scale(value) for value in values]
        low, high = min(scaled), max(scaled)
        if high - low < 1e-12 * max(abs(high), 1):
            half = abs(high) / 2 or 0.5
            low, high = low - half, high + half
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        share = (self._scale(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round values within the axis."""
        if self.logarithmic and self.high - self.low > 1:
            step = max(1, ceil((self.high - self.low) / 5))
            return [10.0**k for k in range(ceil(self.low), floor(self.high) + 1, step)]
        low, high = (10**self.low, 10**self.high) if self.logarithmic else (self.low, self.high)
        raw = (high - low) / 5
        power = 10.0 ** floor(log10(raw))
        pitch = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
        return [pitch * k for k in range(ceil(low / pitch - 1e-9), floor(high / pitch + 1e-9) + 1)]

    def _scale(self, value: float) -> float:
        return log10(value) if self.logarithmic else value


def line_chart(
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    logarithmic: bool = False,
    colours: Sequence[str] = COLOURS,
) -> str:
    """Lines by name, over a common x; y logarithmic on request where all are positive. "" without points.

    Every point carries its value as a tooltip.
    """
    kept = {name: [p for p in points if all(map(isfinite, p))] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return ""
    everything = [point for points in kept.values() for point in points]
    x = _Axis([p[0] for p in everything], _LEFT, WIDTH - _RIGHT, logarithmic=False)
    y = _Axis([p[1] for p in everything], HEIGHT - _BOTTOM, _TOP, logarithmic=logarithmic)
    parts = [_frame(x, y, x_label)]
    chosen = [colours[i % len(colours)] for i in range(len(kept))]
    for (name, points), colour in zip(kept.items(), chosen, strict=True):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5" fill="{colour}">'
            f"<title>{escape(name)}: {b:.6g} at {a:,.6g}</title></circle>"
            for a, b in points
        ]
    return _figure("".join(parts), title, dict(zip(kept, chosen, strict=True)))


def bar_chart(values: Mapping[str, float | None], *, title: str) -> str:
    """A bar from 0 for each name, its value above it; a missing value has no bar. "" without values."""
    kept = [value for value in values.values() if value is not None and isfinite(value)]
    if not kept:
        return ""
    y = _Axis([0.0, *kept], HEIGHT - _BOTTOM, _TOP + 14, logarithmic=False)
    pitch = (WIDTH - _LEFT - _RIGHT) / len(values)
    parts = [_rules(y)]
    for i, (name, value) in enumerate(values.items()):
        centre = _LEFT + (i + 0.5) * pitch
        parts.append(_text(centre, HEIGHT - _BOTTOM + 16, name, "middle"))
        if value is not None and isfinite(value):
            top, bottom = sorted((y(value), y(0.0)))
            parts.append(
                f'<rect x="{centre - 0.4 * pitch:.1f}" y="{top:.1f}" width="{0.8 * pitch:.1f}" '
                f'height="{max(bottom - top, 0.5):.1f}" fill="{COLOURS[0]}"><title>{value:.8g}</title></rect>'
            )
            parts.append(_text(centre, top - 4, f"{value:.3g}", "middle"))
    return _figure("".join(parts), title, {})


def _frame(x: _Axis, y: _Axis, x_label: str) -> str:
    marks = [_text(x(t), HEIGHT - _BOTTOM + 14, f"{t:,.6g}", "middle") for t in x.ticks()]
    marks.append(_text((WIDTH + _LEFT) / 2, HEIGHT - 4, x_label, "middle"))
    return _rules(y) + "".join(marks)


def _rules(y: _Axis) -> str:
    """A horizontal line and a number at each tick."""
    return "".join(
        f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}" stroke="#ddd"/>'
        + _text(_LEFT - 6, y(t) + 4, f"{t:.4g}", "end")
        for t in y.ticks()
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(inside: str, title: str, names: Mapping[str, str]) -> str:
    """The chart under its title, with a legend where there is more than one line."""
    legend = "".join(
        f'<span class="key"><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in names.items()
    )
    title = escape(title)
    return (
        f"<figure><figcaption>{title}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{inside}</svg>'
        + (f'<p class="legend">{legend}</p>' if len(names) > 1 else "")
        + "</figure>"
    )
