"""report.html: everything a run folder tells, on one page that needs nothing but itself."""

from collections.abc import Callable, Sequence

from pgolf.report.charts import missing
from pgolf.report.files import ODD, Run
from pgolf.report.html import Html, document, h, join
from pgolf.report.sections.audit import audit
from pgolf.report.sections.budgets import budgets
from pgolf.report.sections.parts import section
from pgolf.report.sections.quantisation import quantisation
from pgolf.report.sections.result import damage, head
from pgolf.report.sections.scoring import compression, scoring
from pgolf.report.sections.settings import settings
from pgolf.report.sections.training import training
from pgolf.report.sections.words import words

SECTIONS = (
    ("budgets", "Budgets", budgets),
    ("audit", "Audit", audit),
    ("training", "Training", training),
    ("scoring", "Scoring", scoring),
    ("words", "Words", words),
    ("compression", "Compression", compression),
    ("quantisation", "Quantisation", quantisation),
    ("settings", "Settings", settings),
)


def page(run: Run, *, refresh: str = "") -> str:
    anchors = [("result", "Result"), *((anchor, name) for anchor, name, _ in SECTIONS)]
    body = join(
        [
            bar(anchors),
            h(
                "main",
                h("header", h("p", "pgolf report", class_="kicker"), h("h1", run.name)),
                damage(run),
                drawn(run, "result", "Result", head),
                [drawn(run, *one) for one in SECTIONS],
            ),
        ]
    )
    return document(f"{run.name} – pgolf", body, refresh=refresh)


def drawn(run: Run, anchor: str, name: str, make: Callable[[Run], Html]) -> Html:
    """A section, or what kept it from being drawn: one file of another form must not cost the whole page."""
    try:
        return make(run)
    except ODD as error:
        why = f"A file has another form than expected ({type(error).__name__}: {error})."
        return section(anchor, name, missing("This part could not be drawn", why))


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
