"""What a section of the report is: one place that owns its figures for the page, the terminal and the pictures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pgolf.report.charts import Chart
from pgolf.report.files import Run
from pgolf.report.html import Html, h

LABELS = {"ngram_backoff": "n-gram back-off", "non_overlapping": "non-overlapping windows", "sliding": "sliding windows"}
"""Predictors whose name in the files is not their name in a sentence."""


def label(name: str) -> str:
    """A name of the files as a reader of the page sees it."""
    return LABELS.get(name) or name.replace("_", " ")


@dataclass(frozen=True)
class Section:
    """
    body    what the page shows below the title
    text    the same figures as tables for the terminal; empty where there are none
    charts  charts by the name of the picture that `report` writes of them
    """

    anchor: str
    title: str
    body: Callable[[Run], Html]
    text: Callable[[Run], str] = lambda run: ""
    charts: Callable[[Run], Mapping[str, Chart]] = lambda run: {}

    def html(self, run: Run) -> Html:
        return section(self.anchor, self.title, self.body(run))


def section(anchor: str, title: str, *children, says: str = "") -> Html:
    return h("section", h("h2", title), lead(says), *children, id=anchor)


def lead(says: str) -> Html | None:
    return h("p", says, class_="says") if says else None


def grid(charts) -> Html:
    return h("div", list(charts), class_="grid")
