"""Numbers, axes and curves."""

import json

import numpy as np
import pytest

from pgolf.report.charts import Axis, Bar, Dot, Row, Scale, Series, bars, curves, dot_rows, number, thinned
from pgolf.report.html import Html, data, h
from tests.report.html_tree import parse


@pytest.mark.parametrize(
    "value, words",
    [(0, "0"), (12, "12"), (1234, "1,234"), (0.12342, "0.1234"), (1.5, "1.500"), (12_345.6, "12.35 k"),
     (1_234_567.0, "1.235 M"), (999_999.5, "1 M"), (400_300.5, "400.3 k"), (100_000_000.0, "100 M"), (2.5e9, "2.5 G"),
     (1.2e-7, "1.20e-07"), (-3.25, "-3.250"), (None, "–"), (float("nan"), "–")],
)  # fmt: skip
def test_numbers(value, words):
    assert number(value) == words


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("low, high", [(0.02, 0.021), (1, 1), (3, 4e5), (1e-6, 1e3), (250, 260)])
def test_ticks_lie_inside_and_are_few(low, high, log):
    scale = Scale(Axis("a", "b", log=log), np.array([low, high, np.nan], float))
    assert 2 <= len(scale.ticks) <= 8 or log
    assert 1 <= len(scale.ticks) <= 8
    assert all(0 <= scale.place(tick) <= 1 for tick in scale.ticks)
    assert 0 <= scale.place(low) <= scale.place(high) <= 1
    assert scale.ticks == sorted(set(scale.ticks))


def test_thinning_keeps_means_and_extremes():
    y = np.zeros(1000)
    y[500], y[501] = 9.0, np.nan
    x, mean, low, high = thinned(np.arange(1000), y, 10)
    assert len(x) == 10 and high.max() == 9 and low.max() == 0 and mean.sum() == pytest.approx(0.09, abs=0.001)
    x, mean, low, high = thinned([1, 2], [3, 4])
    assert low is None and mean.tolist() == [3, 4]


def test_a_curve_with_gaps_and_places():
    figure = parse(curves("T", Axis("x", "m", low=0, high=4), Axis("y", "s", low=0, high=1),
                          [Series("one", [0, 1, 2, 4], [0, 1, np.nan, 0.5])]))  # fmt: skip
    path = figure.all("path", "curve")[-1].attributes["d"]
    assert path == "M0 1000L250 0M1000 500"
    told = json.loads(figure.one("script").text)
    assert told["s"][0]["y"] == [0, 1, None, 0.5] and told["s"][0]["f"] == [0, 0.25, 0.5, 1]


def test_charts_of_nothing_say_so():
    for chart in (
        curves("T", Axis("x", "m"), Axis("y", "s"), []),
        dot_rows("T", Axis("x", "m"), []),
        bars("T", Axis("x", "m"), []),
    ):
        assert "nothing was recorded" in chart and "T" in chart


def test_bars_end_where_their_numbers_say():
    figure = parse(bars("T", Axis("x", "m"), [Bar("one", [("a", 30, 0), ("b", 10, 1)], limit=50)]))
    scale = 100 / (1.02 * 50)
    found = [part.attributes["style"] for part in figure.all("i", "bar")]
    assert found == [f"left:0.000%;width:{30 * scale:.3f}%", f"left:{30 * scale:.3f}%;width:{10 * scale:.3f}%"]
    assert figure.one("em", "limit").attributes["style"] == f"left:{50 * scale:.3f}%"


def test_dots_and_their_whiskers():
    figure = parse(dot_rows("T", Axis("x", "m", low=0, high=10), [Row("one", [Dot(5, error=2, origin=8)], "five")]))
    assert figure.one("b", "dot").attributes["style"] == "left:50.00%"
    assert figure.one("i", "whisker").attributes["style"] == "left:30.00%;width:40.00%"
    assert figure.one("i", "way").attributes["style"] == "left:50.00%;width:30.00%"


def test_markup_is_escaped_unless_made_here():
    made = h("p", "<b>", h("i", "&"), None, ["x", Html("<br>")], title='"')
    assert made == '<p title="&quot;">&lt;b&gt;<i>&amp;</i>x<br></p>'
    assert h("input", checked=True, disabled=False, class_="a", aria_label="b") == '<input checked class="a" aria-label="b">'
    content = {"a": "</script><!--", "b": [float("nan"), float("inf"), 1.5], "c": "\u2028"}
    text = data(content)
    assert text.count("<") == 2 and "\u2028" not in text
    assert json.loads(parse(text).one("script").text) == {"a": "</script><!--", "b": [None, None, 1.5], "c": "\u2028"}
