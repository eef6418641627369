"""Charts as HTML that fit any width: curves, rows of dots and rows of bars, with a title, axes, units and data for the hover.

A chart is a value; put into a page it becomes a <figure>, and pgolf/report/svg.py draws the same value as a file of its own.
Curves are drawn in a square of 1000 by 1000 that is stretched to the room there is; strokes and words are not stretched with
it. A series has a colour and a dash of its own, so that neither alone has to tell them apart.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pgolf.report.html import Html, data, h, join
from pgolf.report.scales import Axis, Scale, number, tick_label

SIDE = 1000
POINTS = 320
COLOURS = 6
COINCIDE = 0.004
"""Curves that differ by less than this share of the vertical axis are told to coincide."""


# ---- curves


@dataclass(frozen=True)
class Series:
    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    low: np.ndarray | None = None
    """A band around the curve."""
    high: np.ndarray | None = None
    style: int | None = None
    """Number of colour and dash; in order if not given."""
    dots: bool = False
    thin: bool = False
    """Raw values, drawn thin below the curve that summarises them."""


@dataclass(frozen=True)
class Mark:
    """An event at a place of the horizontal axis."""

    x: float
    label: str


def thinned(x, y, points: int = POINTS) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Means of x and y over about so many stretches, and the least and the greatest y of each; as they are where few."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) <= points:
        return x, y, None, None
    edges = np.linspace(0, len(x), points + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(x)))
    means = [np.add.reduceat(values, edges) / counts for values in (x, y)]
    return means[0], means[1], np.minimum.reduceat(y, edges), np.maximum.reduceat(y, edges)


@dataclass(frozen=True)
class Curves:
    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    note: str = ""

    def drawn(self) -> list[tuple[Series, int]]:
        """The series that have points, each with its style. A single one is a plain line."""
        series = [one for one in self.series if len(one.x)]
        if len(series) == 1 and not series[0].dots:
            return [(series[0], 0)]
        return [(one, (i if one.style is None else one.style) % COLOURS) for i, one in enumerate(series)]

    def scales(self) -> tuple[Scale, Scale]:
        series = [one for one, _ in self.drawn()]
        across = np.concatenate([np.asarray(one.x, float) for one in series])
        up = [np.asarray(values, float) for one in series for values in (one.y, one.low, one.high) if values is not None]
        return Scale(self.x, across), Scale(self.y, np.concatenate(up))

    def coincident(self) -> dict[str, str]:
        """By name, the earlier series that a series lies on."""
        _, vertical = self.scales()
        covered_by: dict[str, str] = {}
        series = [one for one, _ in self.drawn()]
        for i, one in enumerate(series):
            for other in series[:i]:
                if other.name not in covered_by and len(one.x) == len(other.x) and np.array_equal(one.x, other.x):
                    apart = np.abs(vertical.of(one.y) - vertical.of(other.y))
                    if np.isfinite(apart).any() and np.nanmax(apart) < COINCIDE:
                        covered_by[one.name] = other.name
                        break
        return covered_by

    def __html__(self) -> Html:
        if not self.drawn():
            return missing(self.title, "nothing was recorded for it")
        (horizontal, vertical), coincident = self.scales(), self.coincident()
        paths, known, legend = [], [], []
        for one, style in self.drawn():
            across, up = horizontal.of(one.x), vertical.of(one.y)
            if one.low is not None and one.high is not None:
                paths.append(_band(across, vertical.of(one.low), vertical.of(one.high), style))
            kind = f"curve s{style} thin" if one.thin else f"curve s{style}"
            paths.append(_dots(across, up, style) if one.dots else _path(across, up, kind))
            values = [_significant(value) for value in np.asarray(one.y, float)]
            known.append({"n": one.name, "f": [_short(value) for value in across], "y": values})
            same = h("small", f"same as {coincident[one.name]}") if one.name in coincident else None
            legend.append(h("li", swatch("dots" if one.dots else kind, style), h("span", one.name), same, h("output")))
        places = [horizontal.place(mark.x) for mark in self.marks]
        flags = [
            h("span", str(n), class_="mark", style=f"left:{100 * _inside(at):.2f}%;top:{14 * level - 4}px", title=mark.label)
            for n, (mark, at, level) in enumerate(zip(self.marks, places, stacked(places), strict=True), 1)
        ]
        told = {"x": {"n": self.x.label, "u": self.x.unit, "s": horizontal.as_data()}, "u": self.y.unit, "s": known}
        return h(
            "figure",
            _caption(self.title, self.note),
            h("ul", legend, class_="legend"),
            self._frame([_svg(_grid(horizontal, vertical), paths), flags, h("div", class_="cursor")], horizontal, vertical),
            h("p", class_="readout", aria_live="polite"),
            h("ol", [h("li", mark.label) for mark in self.marks], class_="marks") if self.marks else None,
            data(told),
            class_="chart curves",
            tabindex="0",
            role="group",
            aria_label=f"{self.title}: {self.y.words} against {self.x.words}. Left and right arrow keys read the values.",
        )

    def _frame(self, area, horizontal: Scale, vertical: Scale) -> Html:
        ticks = [h("span", tick_label(t, vertical), style=f"bottom:{100 * vertical.place(t):.2f}%") for t in vertical.ticks]
        return h(
            "div",
            h("div", self.y.words, class_="ylabel"),
            h("div", ticks, class_="yticks"),
            h("div", area, class_="area"),
            _ticks_below(horizontal),
            h("div", self.x.words, class_="xlabel"),
            class_="frame",
        )


def stacked(places: Sequence[float], room: float = 0.05) -> list[int]:
    """A level for each label, so that two that are close to one another do not lie over each other."""
    levels: list[int] = []
    for i, place in enumerate(places):
        taken = {levels[k] for k in range(i) if abs(places[k] - place) < room}
        levels.append(next(level for level in range(i + 1) if level not in taken))
    return levels


def _ticks_below(scale: Scale) -> Html:
    """Labels at the two ends stay inside."""
    labels = []
    for tick in scale.ticks:
        place = scale.place(tick)
        side = "start" if place < 0.04 else "end" if place > 0.96 else None
        labels.append(h("span", tick_label(tick, scale), style=f"left:{100 * place:.2f}%", class_=side))
    return h("div", labels, class_="xticks")


def _caption(title: str, note: str = "") -> Html:
    return h("figcaption", h("h3", title), h("p", note) if note else None)


def _svg(*children) -> Html:
    return h("svg", *children, viewBox=f"0 0 {SIDE} {SIDE}", preserveAspectRatio="none", aria_hidden="true")


def _grid(horizontal: Scale, vertical: Scale) -> list[Html]:
    lines = [f"M0 {_up(vertical.place(tick))}H{SIDE}" for tick in vertical.ticks]
    lines += [f"M{_across(horizontal.place(tick))} 0V{SIDE}" for tick in horizontal.ticks]
    return [h("path", d="".join(lines), class_="net")]


def _path(across: np.ndarray, up: np.ndarray, kind: str) -> Html:
    words, pen = [], "M"
    for a, b in zip(across, up, strict=True):
        if math.isfinite(a) and math.isfinite(b):
            words.append(f"{pen}{_across(a)} {_up(b)}")
            pen = "L"
        else:
            pen = "M"
    return h("path", d="".join(words), class_=kind)


def _dots(across: np.ndarray, up: np.ndarray, style: int) -> Html:
    """Lines of no length with round ends: circles that stay round when the square is stretched."""
    pairs = [(a, b) for a, b in zip(across, up, strict=True) if math.isfinite(a) and math.isfinite(b)]
    return h("path", d="".join(f"M{_across(a)} {_up(b)}h0" for a, b in pairs), class_=f"dots s{style}")


def _band(across: np.ndarray, low: np.ndarray, high: np.ndarray, style: int) -> Html:
    there = [f"{_across(a)} {_up(b)}" for a, b in zip(across, high, strict=True)]
    back = [f"{_across(a)} {_up(b)}" for a, b in zip(across[::-1], low[::-1], strict=True)]
    return h("path", d=f"M{'L'.join(there + back)}Z", class_=f"band s{style}")


def _across(share: float) -> str:
    return f"{SIDE * share:.1f}".removesuffix(".0")


def _up(share: float) -> str:
    return f"{SIDE * (1 - share):.1f}".removesuffix(".0")


def _inside(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def _short(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _significant(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def swatch(kind: str, style: int) -> Html:
    dots = kind == "dots"
    shape = h("path", d="M13 5h0" if dots else "M0 5H26", class_=f"dots s{style}" if dots else kind)
    return h("svg", shape, viewBox="0 0 26 10", width="26", height="10", class_="swatch", aria_hidden="true")


# ---- rows of dots


@dataclass(frozen=True)
class Dot:
    value: float
    style: int = 0
    error: float | None = None
    origin: float | None = None
    """Where a line to the dot begins."""
    label: str = ""
    span: tuple[float, float] | None = None
    """Ends of the whisker where they are not an error to either side."""

    @property
    def reach(self) -> tuple[float, ...]:
        if self.span:
            return self.span
        return (self.value - self.error, self.value + self.error) if self.error else ()


@dataclass(frozen=True)
class Row:
    name: str
    dots: Sequence[Dot]
    says: str = ""
    """Figures to the right."""
    strong: bool = False
    quiet: bool = False

    @property
    def kind(self) -> str:
        return " ".join(word for word, on in (("row", True), ("strong", self.strong), ("quiet", self.quiet)) if on)


@dataclass(frozen=True)
class DotRows:
    """One row a thing, with one dot or more on a common axis; the names are the other axis, which `head` names.

    zero  a value that gets a line of its own: what no difference or equal speed is
    """

    title: str
    x: Axis
    rows: Sequence[Row]
    legend: Sequence[tuple[int, str]] = ()
    head: str = ""
    note: str = ""
    zero: float | None = None

    def values(self) -> list[float]:
        dots = [dot for row in self.rows for dot in row.dots]
        figures = [value for dot in dots for value in (dot.value, dot.origin, *dot.reach) if value is not None]
        return [value for value in figures if math.isfinite(value)]

    def scale(self) -> Scale:
        values = self.values()
        return Scale(self.x, np.array(values + ([self.zero] if self.zero is not None else []), float))

    def __html__(self) -> Html:
        if not self.values():
            return missing(self.title, "nothing was recorded for it")
        scale = self.scale()
        edge = h("em", class_="zero", style=f"left:{100 * scale.place(self.zero):.2f}%") if self.zero is not None else None
        lines = [
            _line(row.name, row.says, row.kind, scale, [edge, [_dot(d, scale) for d in row.dots if math.isfinite(d.value)]])
            for row in self.rows
        ]
        return _rows(self, lines, scale, "dots")


def _dot(dot: Dot, scale: Scale) -> list[Html]:
    place = scale.place(dot.value)
    elements = []
    if dot.origin is not None:
        elements.append(_stretch("way", dot.style, place, scale.place(dot.origin)))
    if dot.reach:
        elements.append(_stretch("whisker", dot.style, *(_inside(scale.place(edge)) for edge in dot.reach)))
    elements.append(h("b", class_=f"dot f{dot.style}", style=f"left:{100 * place:.2f}%", title=dot.label or number(dot.value)))
    return elements


def _stretch(kind: str, style: int, one: float, other: float) -> Html:
    left, right = sorted((one, other))
    return h("i", class_=f"{kind} f{style}", style=f"left:{100 * left:.2f}%;width:{100 * (right - left):.2f}%")


def _grid_behind(scale: Scale) -> list[Html]:
    return [h("u", style=f"left:{100 * scale.place(tick):.2f}%") for tick in scale.ticks]


def _line(name: str, says: str, kind: str, scale: Scale, marks) -> Html:
    return h(
        "div",
        h("div", name, class_="name", role="rowheader"),
        h("div", _grid_behind(scale), marks, class_="track", role="cell"),
        h("div", says, class_="says", role="cell"),
        class_=kind,
        role="row",
    )


def _rows(chart: "DotRows | BarRows", lines, scale: Scale, kind: str) -> Html:
    keys = [h("li", h("b", class_=f"key f{style}"), h("span", words)) for style, words in chart.legend]
    return h(
        "figure",
        _caption(chart.title, chart.note),
        h("ul", keys, class_="legend") if keys else None,
        h(
            "div",
            h("div", h("div", chart.head, class_="name ylabel", role="columnheader"), class_="row head", role="row"),
            lines,
            h("div", h("div", class_="name"), _ticks_below(scale), h("div", class_="says"), class_="row axis", role="row"),
            class_="rows",
            role="table",
            aria_label=chart.title,
        ),
        h("div", chart.x.words, class_="xlabel"),
        class_=f"chart {kind}",
    )


# ---- rows of bars, from zero


@dataclass(frozen=True)
class Bar:
    name: str
    parts: Sequence[tuple[str, float, int]]
    """What each part is, its size and its colour."""
    says: str = ""
    strong: bool = False
    limit: float | None = None


@dataclass(frozen=True)
class BarRows:
    """Bars of one part or more. Parts of a bar with several are named below it."""

    title: str
    x: Axis
    rows: Sequence[Bar]
    head: str = ""
    note: str = ""
    show: Callable[[float], str] = number
    legend: Sequence[tuple[int, str]] = ()

    def scale(self) -> Scale:
        ends = [sum(size for _, size, _ in row.parts) for row in self.rows]
        limits = [row.limit for row in self.rows if row.limit]
        return Scale(Axis(self.x.label, self.x.unit, low=0.0, high=1.02 * max([*ends, *limits, 1e-9])), np.zeros(0))

    def __html__(self) -> Html:
        if not self.rows:
            return missing(self.title, "nothing was recorded for it")
        scale, lines = self.scale(), []
        for row in self.rows:
            begun, pieces = 0.0, []
            for what, size, style in row.parts:
                left, width = scale.place(begun), scale.place(size)
                place = f"left:{100 * left:.3f}%;width:{100 * width:.3f}%"
                title = f"{what}: {self.show(size)} {self.x.unit}"
                pieces.append(h("i", class_=f"bar f{style % COLOURS}", style=place, title=title))
                begun += size
            if row.limit:
                edge = f"left:{100 * scale.place(row.limit):.3f}%"
                pieces.append(h("em", class_="limit", style=edge, title=f"limit: {self.show(row.limit)} {self.x.unit}"))
            lines.append(_line(row.name, row.says, "row strong" if row.strong else "row", scale, pieces))
            if len(row.parts) > 1:
                keys = [
                    h("li", h("b", class_=f"key f{style % COLOURS}"), h("span", what), h("output", self.show(size)))
                    for what, size, style in row.parts
                ]
                lines.append(h("ul", keys, class_="legend parts"))
        return _rows(self, lines, scale, "bars")


Chart = Curves | DotRows | BarRows


# ---- tables, and what is not there


def table(head: Sequence[str], rows: Sequence[Sequence], *, caption: str = "") -> Html:
    """Inside a box that scrolls by itself where it is too wide for the page."""
    body = [h("tr", [h("th", row[0], scope="row"), [h("td", cell) for cell in row[1:]]]) for row in rows]
    return h(
        "div",
        h(
            "table",
            h("caption", caption) if caption else None,
            h("thead", h("tr", [h("th", cell, scope="col") for cell in head])),
            h("tbody", body),
        ),
        class_="wide",
        tabindex="0",
        role="region",
        aria_label=caption or "table",
    )


def missing(title: str, why: str) -> Html:
    return h("div", h("h3", title), h("p", why), class_="missing")


def choice(group: str, label: str, options: Sequence[tuple[str, Html]], *, kind: str = "panels") -> Html:
    """Radio buttons that show one of several contents. The style sheet does it; it works without the script.
    `group` is a name that no other choice of the page has."""
    buttons = [
        h("label", h("input", type="radio", name=group, value=i, checked=i == 0), h("span", name))
        for i, (name, _) in enumerate(options)
    ]
    panels = [h("div", content, class_=f"panel p{i}") for i, (_, content) in enumerate(options) if content]
    return h("div", h("fieldset", h("legend", label), buttons, class_="choice"), join(panels), class_=f"switch {kind}")
