"""A run's report in three forms: report.html, which needs nothing but itself, tables for the terminal, and SVG files."""

from collections.abc import Sequence
from pathlib import Path

from pgolf.report.charts import missing
from pgolf.report.files import ODD, Run
from pgolf.report.html import Html, document, h, join
from pgolf.report.sections import SECTIONS
from pgolf.report.sections.result import damage
from pgolf.report.sections.section import Section, section
from pgolf.report.svg import write


def page(run: Run, *, refresh: str = "") -> str:
    first, *others = [drawn(run, one) for one in SECTIONS]
    heading = h("header", h("p", "pgolf report", class_="kicker"), h("h1", run.name))
    body = join([bar([(one.anchor, one.title) for one in SECTIONS]), h("main", heading, damage(run), first, others)])
    return document(f"{run.name} – pgolf", body, refresh=refresh)


def drawn(run: Run, one: Section) -> Html:
    """A section, or what kept it from being drawn: one file of another form must not cost the whole page."""
    try:
        return one.html(run)
    except ODD as error:
        why = f"A file has another form than expected ({type(error).__name__}: {error})."
        return section(one.anchor, one.title, missing("This part could not be drawn", why))


def bar(anchors: Sequence[tuple[str, str]]) -> Html:
    """Where to go, and light or dark."""
    themes = [
        h("label", h("input", type="radio", name="theme", value=value, checked=value == "light dark"), h("span", name))
        for name, value in (("auto", "light dark"), ("light", "light"), ("dark", "dark"))
    ]
    return h(
        "nav",
        h("div", [h("a", name, href=f"#{anchor}") for anchor, name in anchors], class_="links"),
        h("fieldset", h("legend", "colours", class_="unseen"), themes, class_="choice theme"),
        aria_label="Sections of this page",
    )


def further_tables(run: Run) -> str:
    """The sections' figures for the terminal, beyond what the summary alone tells. The verdict comes last, where a reader of a
    terminal looks first."""
    first, *others = SECTIONS
    parts = ["\n".join(run.damaged)]
    for one in (*others, first):
        try:
            parts.append(one.text(run))
        except ODD as error:
            parts.append(f"a part is left out: a file has another form than expected ({type(error).__name__}: {error})")
    return "\n\n".join(part for part in parts if part)


def draw(run: Run, folder: Path) -> list[Path]:
    """An SVG file of every chart that the run's files allow."""
    paths = []
    for one in SECTIONS:
        try:
            charts = one.charts(run)
        except ODD:
            continue  # the page says what is wrong with the file
        paths += [path for name, chart in charts.items() if (path := write(chart, folder / f"{name}.svg"))]
    return paths
