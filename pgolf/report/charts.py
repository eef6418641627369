"""Charts as HTML: curves, dots and bars that fit any width, with a title, axes and units, and data for the hover.

Curves are drawn in a square of 1000 by 1000 that is stretched to the place there is; strokes and words are not stretched
with it. A series has a colour and a dash of its own, so that neither alone has to tell them apart.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pgolf.report.html import Html, data, h, join

SIDE = 1000
POINTS = 320
COLOURS = 6


def number(value: float | None, digits: int = 4) -> str:
    """A figure as short as it can be said with so many digits."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    for least, size, suffix in ((0.9999e9, 1e9, " G"), (0.9999e6, 1e6, " M"), (1e4, 1e3, " k")):
        if abs(value) >= least:
            scaled = value / size
            found = f"{scaled:.{max(digits - 1 - int(math.log10(abs(scaled))), 0)}f}"
            return (found.rstrip("0").rstrip(".") if "." in found else found) + suffix
    if abs(value) < 1e-3:
        return f"{value:.{max(digits - 2, 0)}e}"
    return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"


@dataclass(frozen=True)
class Axis:
    label: str
    unit: str
    log: bool = False
    low: float | None = None
    high: float | None = None

    @property
    def words(self) -> str:
        """What is on it, and in which unit."""
        return f"{self.label} ({self.unit})"


class Scale:
    """Values of an axis to 0..1, and the values that get a tick."""

    def __init__(self, axis: Axis, values: np.ndarray, ticks: int = 5):
        values = values[np.isfinite(values)]
        if axis.log:
            values = values[values > 0]
        low = axis.low if axis.low is not None else float(values.min()) if len(values) else 1.0
        high = axis.high if axis.high is not None else float(values.max()) if len(values) else 2.0
        self.log = axis.log
        if axis.log:
            low, high = (low / 1.5, high * 1.5) if high < 1.5 * low else (low / 1.05, high * 1.05)
            self.ticks = _log_ticks(low, high)
        else:
            if high <= low:
                low, high = low - 0.5 * (abs(low) or 1), low + 0.5 * (abs(low) or 1)
            self.ticks = _linear_ticks(low, high, ticks)
            room = 0.04 * (high - low)
            low = low - room if axis.low is None else axis.low
            high = high + room if axis.high is None else axis.high
            self.ticks = [tick for tick in self.ticks if low <= tick <= high]
        self.low, self.high = low, high

    def of(self, values) -> np.ndarray:
        values = np.asarray(values, float)
        if not self.log:
            return (values - self.low) / ((self.high - self.low) or 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.log(values / self.low) / (math.log(self.high / self.low) or 1.0)
        return np.where(values > 0, found, np.nan)

    def place(self, value: float) -> float:
        return float(self.of(value))

    def as_data(self) -> list:
        return [self.low, self.high, int(self.log)]


def _linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Of 1, 2, 3, 5, ... and powers of ten, the finest set that is not too many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for mantissas in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**e for e in range(first, last + 1) for m in mantissas if low <= m * 10.0**e <= high]
        if len(found) <= 6:
            return found
    return found[:: -(-len(found) // 6)]


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
    """What a thicker curve stands for, which is drawn over it."""


@dataclass(frozen=True)
class Mark:
    """Something that happened at a place of the horizontal axis."""

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


def curves(title: str, x: Axis, y: Axis, series: Sequence[Series], *, marks: Sequence[Mark] = (), note: str = "") -> Html:
    series = [one for one in series if len(one.x)]
    if not series:
        return missing(title, "nothing was recorded for it")
    xs = np.concatenate([np.asarray(one.x, float) for one in series])
    bands = [np.asarray(band, float) for one in series for band in (one.y, one.low, one.high) if band is not None]
    horizontal, vertical = Scale(x, xs), Scale(y, np.concatenate(bands))
    drawn, known, legend = [], [], []
    for i, one in enumerate(series):
        style = (i if one.style is None else one.style) % COLOURS
        across, up = horizontal.of(one.x), vertical.of(one.y)
        if one.low is not None and one.high is not None:
            drawn.append(_band(across, vertical.of(one.low), vertical.of(one.high), style))
        kind = f"curve s{style} thin" if one.thin else f"curve s{style}"
        drawn.append(_dots(across, up, style) if one.dots else _path(across, up, kind))
        known.append(
            {
                "n": one.name,
                "f": [_short(value) for value in across],
                "y": [_significant(value) for value in np.asarray(one.y, float)],
            }
        )
        legend.append(h("li", swatch("dots" if one.dots else kind, style), h("span", one.name), h("output")))
    area = [
        _svg(_grid(horizontal, vertical), drawn),
        [h("span", str(n + 1), class_="mark", style=f"left:{100 * _inside(horizontal.place(mark.x)):.2f}%", title=mark.label)
         for n, mark in enumerate(marks)],
        h("div", class_="cursor"),
    ]  # fmt: skip
    flags = None
    if marks:
        flags = h("ol", [h("li", mark.label) for mark in marks], class_="marks")
    told = {"x": {"n": x.label, "u": x.unit, "s": horizontal.as_data()}, "u": y.unit, "s": known}
    return h(
        "figure",
        _caption(title, note),
        h("ul", legend, class_="legend"),
        _frame(area, horizontal, vertical, x, y),
        h("p", class_="readout", aria_live="polite"),
        flags,
        data(told),
        class_="chart curves",
        tabindex="0",
        role="group",
        aria_label=f"{title}: {y.words} against {x.words}. Left and right arrow keys read the values.",
    )


def _frame(area, horizontal: Scale, vertical: Scale, x: Axis, y: Axis) -> Html:
    return h(
        "div",
        h("div", y.words, class_="ylabel"),
        h(
            "div",
            [h("span", _tick(t, vertical), style=f"bottom:{100 * vertical.place(t):.2f}%") for t in vertical.ticks],
            class_="yticks",
        ),
        h("div", area, class_="area"),
        _ticks_below(horizontal),
        h("div", x.words, class_="xlabel"),
        class_="frame",
    )


def _ticks_below(scale: Scale) -> Html:
    """Words at the two ends stay inside."""
    found = []
    for tick in scale.ticks:
        place = scale.place(tick)
        side = "start" if place < 0.04 else "end" if place > 0.96 else None
        found.append(h("span", _tick(tick, scale), style=f"left:{100 * place:.2f}%", class_=side))
    return h("div", found, class_="xticks")


def _tick(value: float, scale: Scale) -> str:
    if not scale.log and value and abs(value) < 1e4:
        step = min((abs(b - a) for a, b in pairwise(scale.ticks)), default=abs(value))
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        if round(step * 10**decimals, 6) % 1:
            decimals += 1
        return f"{value:,.{decimals}f}" if decimals < 5 else f"{value:.1e}"
    if scale.log and 1e-3 <= abs(value) < 1e4:
        return f"{value:,g}"
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == ' k' else size):g}{suffix}"
    return number(value, 3) if value else "0"


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


# ---- dots in rows


@dataclass(frozen=True)
class Dot:
    value: float
    style: int = 0
    error: float | None = None
    origin: float | None = None
    """Where a line to the dot begins."""
    label: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    dots: Sequence[Dot]
    says: str = ""
    """Figures to the right."""
    strong: bool = False
    quiet: bool = False


def dot_rows(title: str, x: Axis, rows: Sequence[Row], *, legend: Sequence[tuple[int, str]] = (), head="", note="") -> Html:
    """One row a thing, with one dot or more on a common axis; the names are the other axis, which `head` names."""
    values = [v for row in rows for dot in row.dots for v in (dot.value, dot.origin, *_reach(dot)) if v is not None]
    if not values:
        return missing(title, "nothing was recorded for it")
    scale = Scale(x, np.array(values, float))
    lines = []
    for row in rows:
        marks = [_dot(dot, scale) for dot in row.dots if math.isfinite(dot.value)]
        kind = " ".join(word for word, on in (("row", True), ("strong", row.strong), ("quiet", row.quiet)) if on)
        lines.append(
            h(
                "div",
                h("div", row.name, class_="name", role="rowheader"),
                h("div", _grid_behind(scale), marks, class_="track", role="cell"),
                h("div", row.says, class_="says", role="cell"),
                class_=kind,
                role="row",
            )
        )
    return _rows(title, x, lines, scale, legend, head, note, "dots")


def _reach(dot: Dot) -> tuple[float, ...]:
    return (dot.value - dot.error, dot.value + dot.error) if dot.error else ()


def _dot(dot: Dot, scale: Scale) -> list[Html]:
    place = scale.place(dot.value)
    found = []
    if dot.origin is not None:
        left, right = sorted((place, scale.place(dot.origin)))
        found.append(h("i", class_=f"way f{dot.style}", style=f"left:{100 * left:.2f}%;width:{100 * (right - left):.2f}%"))
    if dot.error:
        left, right = (scale.place(edge) for edge in _reach(dot))
        found.append(h("i", class_=f"whisker f{dot.style}", style=f"left:{100 * left:.2f}%;width:{100 * (right - left):.2f}%"))
    found.append(h("b", class_=f"dot f{dot.style}", style=f"left:{100 * place:.2f}%", title=dot.label or number(dot.value)))
    return found


def _grid_behind(scale: Scale) -> list[Html]:
    return [h("u", style=f"left:{100 * scale.place(tick):.2f}%") for tick in scale.ticks]


def _rows(title, x: Axis, lines, scale: Scale, legend, head: str, note: str, kind: str) -> Html:
    keys = [h("li", h("b", class_=f"key f{style}"), h("span", words)) for style, words in legend]
    return h(
        "figure",
        _caption(title, note),
        h("ul", keys, class_="legend") if keys else None,
        h(
            "div",
            h("div", h("div", head, class_="name ylabel", role="columnheader"), class_="row head", role="row"),
            lines,
            h("div", h("div", class_="name"), _ticks_below(scale), h("div", class_="says"), class_="row axis", role="row"),
            class_="rows",
            role="table",
            aria_label=title,
        ),
        h("div", x.words, class_="xlabel"),
        class_=f"chart {kind}",
    )


# ---- bars from zero


@dataclass(frozen=True)
class Bar:
    name: str
    parts: Sequence[tuple[str, float, int]]
    """What each part is, its size and its colour."""
    says: str = ""
    strong: bool = False
    limit: float | None = None


def bars(title: str, x: Axis, rows: Sequence[Bar], *, head="", note="", show: Callable[[float], str] = number) -> Html:
    """Bars of one part or more. Parts of a bar with several are named below it."""
    totals = [sum(size for _, size, _ in row.parts) for row in rows]
    if not totals:
        return missing(title, "nothing was recorded for it")
    limits = [row.limit for row in rows if row.limit]
    scale = Scale(Axis(x.label, x.unit, low=0.0, high=1.02 * max([*totals, *limits, 1e-9])), np.zeros(0))
    lines = []
    for row in rows:
        begun, pieces = 0.0, []
        for what, size, style in row.parts:
            left, width = scale.place(begun), scale.place(size)
            place = f"left:{100 * left:.3f}%;width:{100 * width:.3f}%"
            pieces.append(h("i", class_=f"bar f{style % COLOURS}", style=place, title=f"{what}: {show(size)} {x.unit}"))
            begun += size
        if row.limit:
            edge = f"left:{100 * scale.place(row.limit):.3f}%"
            pieces.append(h("em", class_="limit", style=edge, title=f"limit: {show(row.limit)} {x.unit}"))
        lines.append(
            h(
                "div",
                h("div", row.name, class_="name", role="rowheader"),
                h("div", _grid_behind(scale), pieces, class_="track", role="cell"),
                h("div", row.says, class_="says", role="cell"),
                class_="row strong" if row.strong else "row",
                role="row",
            )
        )
        if len(row.parts) > 1:
            keys = [
                h("li", h("b", class_=f"key f{style % COLOURS}"), h("span", what), h("output", show(size)))
                for what, size, style in row.parts
            ]
            lines.append(h("ul", keys, class_="legend parts"))
    return _rows(title, x, lines, scale, (), head, note, "bars")


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
        h(
            "label",
            h("input", type="radio", name=group, value=i, checked=i == 0),
            h("span", name),
        )
        for i, (name, _) in enumerate(options)
    ]
    panels = [h("div", content, class_=f"panel p{i}") for i, (_, content) in enumerate(options) if content]
    return h("div", h("fieldset", h("legend", label), buttons, class_="choice"), join(panels), class_=f"switch {kind}")
