"""A page as its elements, so that tests can ask what is in it."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br"}


@dataclass
class Element:
    name: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list["Element | str"] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, name: str = "", kind: str = "") -> list["Element"]:
        """Elements below with this name and class."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if (not name or child.name == name) and (not kind or kind in child.classes):
                    found.append(child)
                found += child.all(name, kind)
        return found

    def one(self, name: str = "", kind: str = "") -> "Element":
        found = self.all(name, kind)
        assert found, f"no {name}.{kind}"
        return found[0]


class Page(HTMLParser):
    """Refuses what browsers repair: elements closed in another order than they were opened."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.root = Element("")
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert len(self.open) == 1, f"never closed: {[element.name for element in self.open[1:]]}"

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, text):
        self.open[-1].children.append(text)


def parse(text: str) -> Element:
    return Page(text).root
