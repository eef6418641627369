"""What sections are made of."""

from pgolf.report.html import Html, h

LABELS = {"ngram_backoff": "n-gram back-off", "non_overlapping": "non-overlapping windows", "sliding": "sliding windows"}
"""Predictors whose name in the files is not their name in a sentence."""


def spoken(name: str) -> str:
    """A name of the files as a reader of the page sees it."""
    return LABELS.get(name) or name.replace("_", " ")


def section(anchor: str, title: str, *children, says: str = "") -> Html:
    return h("section", h("h2", title), h("p", says, class_="says") if says else None, *children, id=anchor)
