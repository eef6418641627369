"""What sections are made of."""

from pgolf.report.html import Html, h


def spoken(name: str) -> str:
    return name.replace("_", " ")


def section(anchor: str, title: str, *children, says: str = "") -> Html:
    return h("section", h("h2", title), h("p", says, class_="says") if says else None, *children, id=anchor)
