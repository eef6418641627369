"""A chart as a picture of its own: an SVG file for a README, a slide or an issue, in the colours of the page."""

import math
import textwrap
from pathlib import Path

import numpy as np

from pgolf.files import write_whole
from pgolf.report.charts import COLOURS, BarRows, Chart, Curves, DotRows, stacked, swatch
from pgolf.report.html import Html, h, join
from pgolf.report.scales import Scale, tick_label

WIDTH = 960
CHARACTER = 6.4
"""Pixels of a letter of 12, about."""
HEIGHT = 300
"""Of the area of curves."""
LEFT, RIGHT = 74, 20
ROW = 34

LIGHT = ("#045ae3", "#b38a00", "#009eab", "#88187b", "#665d00", "#322d1c")
DARK = ("#597ced", "#fb7524", "#0cb799", "#f49aff", "#f4e137", "#c4eed6")
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1d1c1a}.quiet{fill:#625e56}.title{font-size:15px;font-weight:650}"
    ".strong{font-weight:650}.ground{fill:#fff}.net{stroke:#e5e2da;fill:none}.edge{stroke:#625e56;fill:none}"
    ".curve{fill:none;stroke-width:2;stroke-linejoin:round}.thin{stroke-width:1}"
    ".dots{fill:none;stroke-width:8;stroke-linecap:round}.band{stroke:none;opacity:.22}.way{opacity:.55}.whisker{opacity:.3}"
    ".curve:not(.thin).s1{stroke-dasharray:7 3}.curve:not(.thin).s2{stroke-dasharray:2 3}"
    ".curve:not(.thin).s3{stroke-dasharray:10 3 2 3}.curve:not(.thin).s4{stroke-dasharray:4 4}"
    ".curve:not(.thin).s5{stroke-dasharray:14 4}.limit{stroke:#b3261e;stroke-width:3}"
    + "".join(f".s{i}{{stroke:{colour}}}.f{i},.band.s{i}{{fill:{colour}}}" for i, colour in enumerate(LIGHT))
    + "@media (prefers-color-scheme:dark){text{fill:#e9e7e2}.quiet{fill:#a09c93}.ground{fill:#171a20}.net{stroke:#2c3038}"
    ".edge{stroke:#a09c93}.limit{stroke:#ff8a73}"
    + "".join(f".s{i}{{stroke:{colour}}}.f{i},.band.s{i}{{fill:{colour}}}" for i, colour in enumerate(DARK))
    + "}"
)


def write(chart: Chart, path: Path) -> Path | None:
    """The file, or None where the chart has nothing to show."""
    text = picture(chart)
    if not text:
        return None
    write_whole(path, text)
    return path


def picture(chart: Chart) -> str:
    """Empty where the chart has nothing to show."""
    if isinstance(chart, Curves):
        return _curves(chart) if chart.drawn() else ""
    if isinstance(chart, DotRows):
        return _dot_rows(chart) if chart.values() else ""
    return _bar_rows(chart) if chart.rows else ""


def _document(title: str, height: float, children) -> str:
    root = h(
        "svg",
        h("title", title),
        Html(f"<style>{STYLE}</style>"),
        h("rect", class_="ground", width=WIDTH, height=f"{height:.0f}"),
        join(children),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height:.0f}",
        role="img",
    )
    return f"{root}\n"


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> Html:
    return h("text", words, x=f"{x:.1f}", y=f"{y:.1f}", class_=kind or None, text_anchor=anchor if anchor != "start" else None)


def _heading(title: str, note: str) -> tuple[list[Html], float]:
    """Title and note, and where they end."""
    lines = textwrap.wrap(note, int((WIDTH - 40) / CHARACTER))
    texts = [_text(20, 26, title, "title"), *(_text(20, 46 + 16 * i, line, "quiet") for i, line in enumerate(lines))]
    return texts, 38 + 16 * len(lines)


def _legend(items: list[tuple[Html, str]], top: float) -> tuple[list[Html], float]:
    """Keys with their names, in as many lines as they need."""
    elements, x, y = [], 20.0, top + 12
    for key, words in items:
        width = 34 + CHARACTER * len(words) + 18
        if x + width > WIDTH - 20 and x > 20:
            x, y = 20.0, y + 20
        elements += [h("g", key, transform=f"translate({x:.0f} {y - 9:.0f})"), _text(x + 32, y, words)]
        x += width
    return elements, y + 10 if items else top


# ---- curves


def _curves(chart: Curves) -> str:
    horizontal, vertical = chart.scales()
    coincident = chart.coincident()
    elements, top = _heading(chart.title, chart.note)
    keys = []
    for one, style in chart.drawn():
        kind = "dots" if one.dots else f"curve s{style}{' thin' if one.thin else ''}"
        keys.append((swatch(kind, style), one.name + (f" (same as {coincident[one.name]})" if one.name in coincident else "")))
    legend, top = _legend(keys, top)
    levels = stacked([horizontal.place(mark.x) for mark in chart.marks])
    top += 26 + 14 * (max(levels, default=-1) + 1)
    bottom, wide = top + HEIGHT, WIDTH - LEFT - RIGHT
    x_of = lambda share: LEFT + wide * share
    y_of = lambda share: bottom - HEIGHT * share
    elements += [*legend, _text(20, top - 12 - 14 * (max(levels, default=-1) + 1), chart.y.words, "quiet")]
    for tick in vertical.ticks:
        y = y_of(vertical.place(tick))
        elements.append(h("path", class_="net", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}"))
        elements.append(_text(LEFT - 8, y + 4, tick_label(tick, vertical), "quiet", "end"))
    elements += _axis_below(horizontal, x_of, top, bottom)
    for one, style in chart.drawn():
        across, up = x_of(horizontal.of(one.x)), y_of(vertical.of(one.y))
        if one.low is not None and one.high is not None:
            elements.append(_band(across, y_of(vertical.of(one.low)), y_of(vertical.of(one.high)), style))
        points = [(a, b) for a, b in zip(across, up, strict=True) if math.isfinite(a) and math.isfinite(b)]
        if one.dots:
            elements.append(h("path", class_=f"dots s{style}", d="".join(f"M{a:.1f} {b:.1f}h0" for a, b in points)))
        else:
            kind = f"curve s{style}{' thin' if one.thin else ''}"
            elements.append(h("path", class_=kind, d="M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)))
    for mark, level in zip(chart.marks, levels, strict=True):
        x = x_of(horizontal.place(mark.x))
        side = "end" if x > WIDTH * 0.7 else "start"
        elements.append(h("path", class_="edge", d=f"M{x:.1f} {top}V{bottom}", stroke_dasharray="3 3"))
        elements.append(_text(x + (-4 if side == "end" else 4), top - 12 - 14 * level, mark.label, "quiet", side))
    elements.append(_text(LEFT + wide / 2, bottom + 40, chart.x.words, "quiet", "middle"))
    return _document(chart.title, bottom + 54, elements)


def _band(across: np.ndarray, low: np.ndarray, high: np.ndarray, style: int) -> Html:
    there = [f"{a:.1f} {b:.1f}" for a, b in zip(across, high, strict=True)]
    back = [f"{a:.1f} {b:.1f}" for a, b in zip(across[::-1], low[::-1], strict=True)]
    return h("path", d=f"M{'L'.join(there + back)}Z", class_=f"band s{style}")


def _axis_below(scale: Scale, x_of, top: float, bottom: float) -> list[Html]:
    elements = []
    for tick in scale.ticks:
        x = x_of(scale.place(tick))
        elements.append(h("path", class_="net", d=f"M{x:.1f} {top:.1f}V{bottom:.1f}"))
        elements.append(_text(x, bottom + 18, tick_label(tick, scale), "quiet", "middle"))
    return elements


# ---- rows


def _dot_rows(chart: DotRows) -> str:
    scale = chart.scale()
    names, track = _columns(chart.rows)
    x_of = lambda share: names + track * min(max(share, 0.0), 1.0)
    lines = []
    for row in chart.rows:
        marks = []
        for dot in row.dots:
            if not math.isfinite(dot.value):
                continue
            x, style = x_of(scale.place(dot.value)), dot.style % COLOURS
            if dot.origin is not None:
                marks.append(
                    h("path", class_=f"way s{style}", stroke_width=2, d=f"M{x_of(scale.place(dot.origin)):.1f} 0H{x:.1f}")
                )
            if dot.reach:
                left, right = (x_of(scale.place(edge)) for edge in dot.reach)
                marks.append(h("path", class_=f"whisker s{style}", stroke_width=8, d=f"M{left:.1f} 0H{right:.1f}"))
            marks.append(h("circle", class_=f"f{style}", cx=f"{x:.1f}", cy=0, r=6))
        lines.append((row.name, row.says, row.kind, marks))
    keys = [(h("circle", class_=f"f{style % COLOURS}", cx=13, cy=5, r=6), words) for style, words in chart.legend]
    return _rows(chart, scale, (names, track), x_of, keys, lines)


def _bar_rows(chart: BarRows) -> str:
    scale = chart.scale()
    names, track = _columns(chart.rows)
    x_of = lambda share: names + track * min(max(share, 0.0), 1.0)
    lines, parts, several = [], {}, len(chart.rows) > 1
    for row in chart.rows:
        begun, marks = 0.0, []
        for what, size, style in row.parts:
            left, right = x_of(scale.place(begun)), x_of(scale.place(begun + size))
            marks.append(
                h("rect", class_=f"f{style % COLOURS}", x=f"{left:.1f}", y=-9, width=f"{right - left:.1f}", height=18)
            )
            begun += size
            if len(row.parts) > 1 and not several:
                parts[what] = style % COLOURS
        if row.limit:
            marks.append(h("path", class_="limit", d=f"M{x_of(scale.place(row.limit)):.1f} -14v28"))
        says = row.says
        if len(row.parts) > 1 and several:  # one key for all rows would give a colour two meanings
            says += ": " + ", ".join(f"{what} {chart.show(size)}" for what, size, _ in row.parts)
        lines.append((row.name, says, "strong" if row.strong else "", marks))
    keys = [(h("rect", class_=f"f{style}", x=7, y=-1, width=12, height=12), what) for what, style in parts.items()]
    return _rows(chart, scale, (names, track), x_of, keys, lines)


def _columns(rows) -> tuple[float, float]:
    """Pixels up to the axis, and of the axis: names and figures get what they need in two lines."""
    names, says = (CHARACTER * max(map(len, words), default=0) for words in ([r.name for r in rows], [r.says for r in rows]))
    left = min(max(0.56 * names + 36, 150), 400)
    right = min(max(0.56 * says + 36, 170), 350)
    return left, WIDTH - left - right


def _rows(chart: DotRows | BarRows, scale: Scale, columns: tuple[float, float], x_of, keys, lines) -> str:
    names, track = columns
    elements, top = _heading(chart.title, chart.note)
    legend, top = _legend(keys, top)
    elements += legend
    top += 14
    bottom = top + ROW * len(lines)
    elements += _axis_below(scale, x_of, top, bottom)
    zero = getattr(chart, "zero", None)
    if zero is not None:
        elements.append(h("path", class_="edge", d=f"M{x_of(scale.place(zero)):.1f} {top:.1f}V{bottom:.1f}"))
    for i, (name, says, kind, marks) in enumerate(lines):
        middle = top + ROW * (i + 0.5)
        strong = "strong" if "strong" in kind else "quiet" if "quiet" in kind else ""
        elements += _wrapped(20, middle, name, names - 36, strong)
        elements.append(h("g", marks, transform=f"translate(0 {middle:.1f})"))
        elements += _wrapped(names + track + 16, middle, says, WIDTH - names - track - 24, strong)
    elements.append(_text(names + track / 2, bottom + 38, chart.x.words, "quiet", "middle"))
    return _document(chart.title, bottom + 52, elements)


def _wrapped(x: float, middle: float, words: str, width: float, kind: str) -> list[Html]:
    """In two lines at most; a longer text ends in dots."""
    lines = textwrap.wrap(words, max(int(width / CHARACTER), 8), max_lines=2, placeholder=" …")
    first = middle + 4 - 7 * (len(lines) - 1)
    return [_text(x, first + 14 * i, line, kind) for i, line in enumerate(lines)]
