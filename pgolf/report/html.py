"""HTML that is escaped unless it was made here: a text can be anything, a run's name and the validation text included."""

import html
import json
import math
from collections.abc import Iterable
from pathlib import Path

EMPTY = {"input", "meta", "br"}


class Html(str):
    """Markup that is safe as it stands."""


def h(name: str, /, *children, **attributes) -> Html:
    """An element. Children that are no Html are escaped; lists are flattened; None is left out; a value with an `__html__`
    renders itself. In the names of attributes an underscore stands for a hyphen, and one at the end is dropped (class_)."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    opened = f"<{' '.join(words)}>"
    return Html(opened if name in EMPTY else f"{opened}{join(children)}</{name}>")


def join(children: Iterable) -> Html:
    parts: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, (list, tuple)):
            parts.append(join(child))
        elif hasattr(child, "__html__"):
            parts.append(child.__html__())
        else:
            parts.append(html.escape(str(child)))
    return Html("".join(parts))


def data(content) -> Html:
    """Data for the page's own script, inside an element that no browser executes."""
    text = json.dumps(_finite(content), separators=(",", ":"), ensure_ascii=False)
    # nothing in it can end the element or begin a comment
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return Html(f'<script type="application/json">{text}</script>')


def _finite(content):
    """JSON has no infinity and no NaN: both become null."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content


def document(title: str, body: Html, *, refresh: str = "") -> str:
    """A whole page that asks nothing of any other place; with `refresh` it asks its own server, at that path, what is new."""
    here = Path(__file__).parent
    style = (here / "page.css").read_text(encoding="utf-8")
    script = (here / "page.js").read_text(encoding="utf-8")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    policy += "; connect-src 'self'" if refresh else ""
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", http_equiv="Content-Security-Policy", content=policy),
        h("meta", name="referrer", content="no-referrer"),
        # an empty picture, so that no browser asks a server for one
        Html('<link rel="icon" href="data:,">'),
        h("title", title),
        Html(f"<style>{style}</style>"),
    )
    body = h("body", body, Html(f"<script>{script}</script>"))
    page = h("html", head, body, lang="en", data_refresh=refresh or None)
    return f"<!doctype html>\n{page}\n"
