"""report.html: everything a run folder tells, on one page that needs nothing but itself."""

from collections.abc import Sequence

from pgolf.report import sections
from pgolf.report.files import Run
from pgolf.report.html import Html, document, h, join

SECTIONS = (
    ("budgets", "Budgets", sections.budgets),
    ("audit", "Audit", sections.audit),
    ("training", "Training", sections.training),
    ("scoring", "Scoring", sections.scoring),
    ("words", "Words", sections.words),
    ("compression", "Compression", sections.compression),
    ("quantisation", "Quantisation", sections.quantisation),
    ("settings", "Settings", sections.settings),
)


def page(run: Run, *, refresh: str = "") -> str:
    anchors = [("result", "Result"), *((anchor, name) for anchor, name, _ in SECTIONS)]
    body = join([
        bar(anchors),
        h(
            "main",
            h("header", h("p", "pgolf report", class_="kicker"), h("h1", run.name)),
            sections.damage(run),
            sections.head(run),
            [make(run) for _, _, make in SECTIONS],
        ),
    ])
    return document(f"{run.name} – pgolf", body, refresh=refresh)


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
