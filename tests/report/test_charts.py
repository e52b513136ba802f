"""Laws of the charts."""

import re
from xml.etree import ElementTree

import pytest

from scoregen.report.charts import HEIGHT, WIDTH, bar_chart, line_chart


def shapes(html: str, tag: str) -> list[dict[str, str]]:
    return [e.attrib for e in ElementTree.fromstring(html).iter(tag)]


def test_every_point_is_drawn_where_its_value_is() -> None:
    """Heights are affine in the value, or in its logarithm."""
    points = [(0.0, 1.0), (50.0, 10.0), (100.0, 100.0)]
    for logarithmic, middle in ((True, 0.5), (False, 9 / 99)):
        circles = shapes(line_chart({"a": points}, title="t", x_label="x", logarithmic=logarithmic), "circle")
        x, y = ([float(c[key]) for c in circles] for key in ("cx", "cy"))
        assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(0.5, abs=1e-3)
        assert (y[1] - y[0]) / (y[2] - y[0]) == pytest.approx(middle, abs=1e-3)
        assert y[2] < y[0]  # upwards


def test_charts_stay_in_their_frame_and_say_every_value() -> None:
    series = {"a": [(1.0, -3.25), (2.0, 1e5)], "b": [(1e6, 0.125)]}
    html = line_chart(series, title="t", x_label="x")
    for circle in shapes(html, "circle"):
        assert 0 <= float(circle["cx"]) <= WIDTH
        assert 0 <= float(circle["cy"]) <= HEIGHT
    for text in ("a: -3.25 at 1", "a: 100000 at 2", "b: 0.125 at 1e+06"):
        assert text in html


def test_bars_are_as_high_as_their_values() -> None:
    html = bar_chart({"0": 0.5, "1": None, "2": 1.5, "3": float("nan")}, title="t")
    heights = [float(r["height"]) for r in shapes(html, "rect")]
    assert heights[1] / heights[0] == pytest.approx(3, rel=2e-3)
    assert len(heights) == 2


@pytest.mark.parametrize("value", [0.0, 0.002, -7.0, 1e-12, 3e9])
def test_a_constant_has_an_axis_with_the_value_on_it(value: float) -> None:
    html = line_chart({"a": [(0.0, value), (1.0, value)]}, title="t", x_label="x")
    ticks = [float(t) for t in re.findall(r'text-anchor="end">([^<]+)<', html)]
    assert min(ticks) <= value <= max(ticks)
    assert len(ticks) < 10


def test_numbers_that_are_not_finite_and_empty_series_are_left_out() -> None:
    html = line_chart({"a": [(0.0, float("nan")), (1.0, 2.0)], "b": []}, title="t", x_label="x")
    assert len(shapes(html, "circle")) == 1
    assert line_chart({"a": []}, title="t", x_label="x") == bar_chart({"a": None}, title="t") == ""


def test_a_logarithmic_axis_falls_back_where_a_value_is_not_positive() -> None:
    html = line_chart({"a": [(0.0, 0.0), (1.0, 2.0)]}, title="t", x_label="x", logarithmic=True)
    assert len(shapes(html, "circle")) == 2


def test_names_and_titles_are_text_not_markup() -> None:
    html = line_chart({"<b>&": [(0.0, 1.0)], "c": [(1.0, 1.0)]}, title='"<i>"', x_label="x<y")
    ElementTree.fromstring(html)
    assert "<b>" not in html
    assert "<i>" not in html
