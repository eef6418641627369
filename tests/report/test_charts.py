"""Numbers, axes and curves."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from pgolf.report.charts import Bar, BarRows, Curves, Dot, DotRows, Mark, Row, Series, stacked, thinned
from pgolf.report.html import Html, data, h
from pgolf.report.scales import Axis, Scale, number
from pgolf.report.svg import picture
from tests.report.html_tree import parse


def drawn(chart):
    return parse(h("div", chart))


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
    figure = drawn(Curves("T", Axis("x", "m", low=0, high=4), Axis("y", "s", low=0, high=1),
                          [Series("one", [0, 1, 2, 4], [0, 1, np.nan, 0.5])]))  # fmt: skip
    path = figure.all("path", "curve")[-1].attributes["d"]
    assert path == "M0 1000L250 0M1000 500"
    told = json.loads(figure.one("script").text)
    assert told["s"][0]["y"] == [0, 1, None, 0.5] and told["s"][0]["f"] == [0, 0.25, 0.5, 1]


def test_one_curve_is_a_plain_line_and_coincident_ones_are_named():
    axes = Axis("x", "m"), Axis("y", "s")
    (style,) = (style for _, style in Curves("T", *axes, [Series("one", [0, 1], [0, 1], style=3)]).drawn())
    assert style == 0
    lines = [Series("one", [0, 1], [0, 1]), Series("two", [0, 1], [0, 1.001]), Series("three", [0, 1], [0, 0.5])]
    chart = Curves("T", *axes, lines)
    assert chart.coincident() == {"two": "one"}
    assert [small.text for small in drawn(chart).all("small")] == ["same as one"]
    assert "two (same as one)" in picture(chart)


def test_marks_at_one_place_lie_below_each_other():
    assert stacked([0.1, 0.11, 0.12, 0.5]) == [0, 1, 2, 0]
    chart = Curves("T", Axis("x", "m", low=0, high=1), Axis("y", "s"), [Series("one", [0, 1], [0, 1])],
                   [Mark(0.5, "first"), Mark(0.51, "second")])  # fmt: skip
    tops = [mark.attributes["style"].split("top:")[1] for mark in drawn(chart).all("span", "mark")]
    assert tops == ["-4px", "10px"]


def test_a_logarithmic_axis_says_so():
    assert Axis("norm", "before clipping", log=True).words == "norm (before clipping, log scale)"


@pytest.mark.parametrize(
    "chart, shapes",
    [
        (Curves("T", Axis("x", "m"), Axis("y", "s"), [Series("one & two", [0, 1], [0, 1])]), {"path": 2}),
        (DotRows("T", Axis("x", "m"), [Row("one & two", [Dot(1, error=0.5, origin=2), Dot(2)])]), {"circle": 2}),
        (BarRows("T", Axis("x", "m"), [Bar("one & two", [("a", 3, 0), ("b", 1, 1)], limit=5)]), {"rect": 2}),
    ],
    ids=["curves", "dots", "bars"],
)
def test_a_picture_is_well_formed(chart, shapes):
    root = ElementTree.fromstring(picture(chart))
    count = lambda name: len(root.findall(f".//{{http://www.w3.org/2000/svg}}{name}"))
    words = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert all(count(name) >= least for name, least in shapes.items()) and "T" in words and "one & two" in words
    assert "x (m)" in words


def test_charts_of_nothing_say_so():
    for chart in (
        Curves("T", Axis("x", "m"), Axis("y", "s"), []),
        DotRows("T", Axis("x", "m"), []),
        BarRows("T", Axis("x", "m"), []),
    ):
        assert "nothing was recorded" in h("div", chart) and "T" in h("div", chart) and picture(chart) == ""


def test_bars_end_where_their_numbers_say():
    figure = drawn(BarRows("T", Axis("x", "m"), [Bar("one", [("a", 30, 0), ("b", 10, 1)], limit=50)]))
    scale = 100 / (1.02 * 50)
    found = [part.attributes["style"] for part in figure.all("i", "bar")]
    assert found == [f"left:0.000%;width:{30 * scale:.3f}%", f"left:{30 * scale:.3f}%;width:{10 * scale:.3f}%"]
    assert figure.one("em", "limit").attributes["style"] == f"left:{50 * scale:.3f}%"


def test_dots_and_their_whiskers():
    figure = drawn(DotRows("T", Axis("x", "m", low=0, high=10), [Row("one", [Dot(5, error=2, origin=8)], "five")]))
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
