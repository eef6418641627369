"""The audit for a person: lines for a terminal, the pre-flight list, and one HTML page that needs nothing beside it."""

import html
import math
from collections.abc import Iterable, Sequence

from pgolf.audit.auditor import Report
from pgolf.audit.checks import Finding

MARKS = {True: "holds", False: "FAILS", None: "n/a"}
# what a person checks before handing in: line, the tests on it
PREFLIGHT = (
    ("C2", "the sum over the vocabulary", ("N1", "N2", "N3", "N4", "N5", "N5b")),
    ("C1", "the past alone", ("C1a", "C1b", "C1c", "C1d", "D1")),
    ("C3", "scored first, learnt from later", ("C3",)),
    ("C4", "scored once", ("C4", "R1")),
    ("B1", "bytes", ("B1",)),
    ("L1", "documents", ("L1",)),
    ("A1", "sandbox", ("A1",)),
    ("A2", "size", ("A2",)),
    ("T1", "clocks", ("T1",)),
    ("S ", "seeds", ("S",)),
)


# ---- a terminal


def lines(report: Report) -> list[str]:
    """Every test, with the figure of the run's own predictor; predictors that fare otherwise have lines of their own."""
    found = []
    for id, title in dict.fromkeys((one.id, one.title) for one in report.findings):
        mine = [one for one in report.findings if (one.id, one.title) == (id, title)]
        judged = [one for one in mine if one in report.judged]
        alike: dict[bool | None, Finding] = {one.passed: one for one in judged}
        for passed, one in alike.items():
            names = [other.result for other in judged if other.passed is passed]
            where = "" if len(alike) == 1 else f" ({', '.join(name.replace('_', ' ') for name in names)})"
            found.append(f"{id:4} {MARKS[passed]:6} {title}{where}: {one.figure}")
            if passed is not True:
                found.append(f"            {one.says}")
        for one in mine:
            if one not in judged:
                found.append(f"{id:4} {MARKS[one.passed]:6} {title} ({one.result}, which counts for nothing): {one.figure}")
                found.append(f"            {one.says}")
    for result, sums in report.sums.items():
        if result not in report.results:
            found.append(f"mean sum over the vocabulary, {result}: {sums['mean']:.4g}")
    return found


def preflight(report: Report) -> list[str]:
    """The short list: one line a rule, over all predictors that are judged."""
    found = ["pre-flight list"]
    for mark, title, ids in PREFLIGHT:
        mine = [one for one in report.judged if one.id in ids]
        verdicts = [one.passed for one in mine]
        verdict = False if False in verdicts else True if True in verdicts else None
        failed = [one for one in mine if one.passed is False]
        shown = failed or [one for one in mine if one.passed] or mine
        figures = "; ".join(dict.fromkeys(f"{one.id} {one.figure}" for one in shown[: 3 if len(ids) > 1 else 1]))
        found.append(f"  [{mark}] {MARKS[verdict]:6} {title}: {figures}")
    return found


def verdict(report: Report) -> str:
    held, failed, rest = (sum(one.passed is kind for one in report.judged) for kind in (True, False, None))
    words = f"{held} tests hold, {failed} fail, {rest} do not apply; {report.seconds:.1f} s"
    return f"audit {'passed' if report.passed else 'FAILED'}: {words}"


# ---- a page

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
body { color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0 }
tr { border-bottom: 1px solid #ddd } .figure { color: #555; font-size: .85rem }
.holds { color: #00629b } .fails { color: #b34700; font-weight: 700 } .none { color: #666 }
svg { width: 100%; height: auto; background: #fafafa } svg text { font: 12px system-ui, sans-serif; fill: #444 }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } .figure, .none { color: #aaa }
  tr { border-color: #444 } .holds { color: #6cb6ff } .fails { color: #ff9b5e }
  svg { background: #222 } svg text { fill: #bbb } }
"""
CLASSES = {True: "holds", False: "fails", None: "none"}
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#888888"
WIDTH, HEIGHT, LEFT, BOTTOM = 760, 260, 70, 40


def page(report: Report, title: str) -> str:
    parts = [
        f"<h1>Audit of {html.escape(title)}</h1>",
        f'<p class="{CLASSES[report.passed]}">{html.escape(verdict(report))}</p>',
        "<p>A score is honest if a decoder could reproduce the text from so many bits. Each test below tries the scorer on "
        "texts made for the purpose, or recounts what it says of itself.</p>",
    ]
    if report.decoded is not None:
        parts.append(_decoded(report.decoded))
    if report.sums:
        parts.append("<h2>The probabilities of all symbols together, at the places that were looked at</h2>")
        parts.append(_sums(report))
    for curves in [report.uniform, *report.uniform.get("further", ())]:
        if curves.get("results"):
            parts.append("<h2>What uniform noise cost beyond what it must, bits added up</h2>")
            parts.append("<p>Noise cannot be compressed: a curve that falls below the dashed line belongs to no code.</p>")
            parts.append(_noise(curves))
    for result in dict.fromkeys(one.result for one in report.findings):
        name = "The submission" if result == "all" else f"Predictor: {result.replace('_', ' ')}"
        note = "" if result in ("all", *report.results) else " (as published; not counted)"
        parts.append(f"<h2>{html.escape(name + note)}</h2>")
        parts.append(_table(one for one in report.findings if one.result == result))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>Audit of {html.escape(title)}</title><style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _table(findings: Iterable[Finding]) -> str:
    rows = [
        f'<tr><td>{one.id}</td><td class="{CLASSES[one.passed]}">{MARKS[one.passed]}</td>'
        f'<td>{html.escape(one.says)}<div class="figure">{html.escape(one.title)}: {html.escape(one.figure)}</div></td></tr>'
        for one in findings
    ]
    return f"<table>{''.join(rows)}</table>"


def _decoded(decoded: dict) -> str:
    bits = f"{decoded['claimed_bits']:,.0f} bits claimed, {decoded['real_bits']:,.0f} bits in the stream"
    word = "came back whole" if decoded["equal"] else "did NOT come back"
    return (
        f"<h2>Proof by decoding</h2><p>{decoded['tokens']:,} tokens {word}: {bits}, "
        f"{100 * (decoded['real_bits'] / max(decoded['claimed_bits'], 1) - 1):+.2f} %.</p>"
    )


def _sums(report: Report) -> str:
    """Sums on a logarithmic scale; the line is one."""
    values = [value for known in report.sums.values() for value in known["sums"] if value]
    low, high = min([0.1, *values]), max([10.0, *values])
    last = max(max(known["targets"]) for known in report.sums.values()) or 1
    scale = _scale(math.log10(low), math.log10(high))
    marks = [_line(scale(0.0), "1", dashed=True)]
    ticks = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    marks += [_line(scale(tick), f"{10.0**tick:g}") for tick in ticks if tick]
    for known, colour in zip(report.sums.values(), _colours(report.sums), strict=True):
        for target, value in zip(known["targets"], known["sums"], strict=True):
            if value:
                x, y = _across(target / last), scale(math.log10(value))
                marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" fill-opacity=".6"/>')
    return _picture(marks, _legend(report.sums), f"target, 0 to {last:,}", "Sum of all probabilities at probed targets")


def _noise(curves: dict) -> str:
    allowed = curves["allowed"]
    values = [value for known in curves["results"].values() for value in known]
    scale = _scale(min([allowed * 3, *values]), max([-allowed, *values]))
    last = curves["at"][-1]
    marks = [_line(scale(0.0), "0"), _line(scale(allowed), "", dashed=True)]
    marks.append(f'<text x="4" y="{scale(max(values)) + 12:.0f}">{max(values):,.0f}</text>')
    names = list(curves["results"])
    for name, colour in zip(names, _colours(names), strict=True):
        points = zip(curves["at"], curves["results"][name], strict=True)
        path = " ".join(f"{_across(at / last):.1f},{scale(value):.1f}" for at, value in points)
        marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return _picture(marks, _legend(names), f"symbols of noise, 0 to {last:,}", "Bits beyond n ln V")


def _scale(low: float, high: float):
    span = (high - low) or 1.0
    return lambda value: 20 + (HEIGHT - 20 - BOTTOM) * (high - value) / span


def _across(share: float) -> float:
    return LEFT + (WIDTH - LEFT - 10) * share


def _line(y: float, label: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    line = f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GREY}"{dash}/>'
    return line + (f'<text x="4" y="{y + 4:.0f}">{label}</text>' if label else "")


def _colours(names: Iterable[str]) -> list[str]:
    """Orange for what is no code length, blues for the rest."""
    blues = (BLUE, "#56b4e9", "#009e73", "#cc79a7", "#444444", "#999933")
    return [ORANGE if name == "published" else blues[i % len(blues)] for i, name in enumerate(names)]


def _legend(names: Iterable[str]) -> str:
    found, names = [], list(names)
    for i, (name, colour) in enumerate(zip(names, _colours(names), strict=True)):
        x = LEFT + 10 + 125 * i
        found.append(f'<circle cx="{x}" cy="10" r="4" fill="{colour}"/>')
        found.append(f'<text x="{x + 8}" y="14">{html.escape(name[:16].replace("_", " "))}</text>')
    return "".join(found)


def _picture(marks: Sequence[str], legend: str, across: str, title: str) -> str:
    label = f'<text x="{LEFT}" y="{HEIGHT - 12}">{html.escape(across)}</text>'
    inside = f"<title>{html.escape(title)}</title>{legend}{''.join(marks)}{label}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{inside}</svg>'
