"""The validation text itself, shaded by what each token cost."""

import math

import numpy as np

from pgolf.report.charts import choice, missing
from pgolf.report.files import Run
from pgolf.report.html import Html, data, h, join
from pgolf.report.sections.section import Section, label, lead

HEAT_BITS = 12.0
"""Tokens of so many bits get the darkest shade."""


def body(run: Run) -> Html:
    excerpts = run.top_predictions.get("excerpts", [])
    if not excerpts:
        why = "No excerpts were recorded: the run is not scored, or evaluation.top_predictions is 0."
        return missing("The text itself", why)
    pieces = run.top_predictions.get("pieces", {})
    says = (
        "The validation text, each token shaded by its cost. Point at a token, or move with the arrow keys, to see what was "
        "predicted there. Which documents are shown depends on their lengths alone: the end of the longest one, and the "
        "beginning of one of middle length."
    )
    return join([lead(says), [_excerpt(run, one, pieces, i) for i, one in enumerate(excerpts)]])


def _excerpt(run: Run, excerpt: dict, pieces: dict[str, str], index: int) -> Html:
    results = list(excerpt["nats"])
    main = run.main if run.main in results else results[-1]
    base = results[0]
    bits = {name: np.array(excerpt["nats"][name], float) / math.log(2) for name in results}
    tokens = []
    for i, token in enumerate(excerpt["tokens"]):
        cost, before = bits[main][i], bits[base][i]
        gain = before - cost
        shades = [_shade(cost), _shade(before), _shade(max(gain, 0.0), 6.0), _shade(max(-gain, 0.0), 6.0)]
        place = ";".join(f"--{name}:{shade}" for name, shade in zip("abgl", shades, strict=True) if shade)
        text, kind = _visible(pieces.get(str(token), ""))
        tokens.append(h("i", text, style=place or None, class_=kind))
        if "\n" in pieces.get(str(token), ""):
            tokens.append(Html("<br>"))
    first, last = excerpt["document"]
    total = int(sum(excerpt["bytes"]))
    rate = f"{bits[main].sum() / total:.3f} bits per byte here" if total else ""
    before = f", {bits[base].sum() / total:.3f} with {label(base)}" if total and base != main else ""
    begun = excerpt["start"] - first
    where = f"tokens {begun + 1:,} to {begun + len(excerpt['tokens']):,} of {last - first:,}"
    told = {
        "r": [label(name) for name in results],
        "m": results.index(main),
        "b": [[round(float(value), 2) for value in bits[name]] for name in results],
        "g": {label(name): excerpt["guesses"][name] for name in results if name in excerpt["guesses"]},
        "p": {token: _visible(text)[0] for token, text in pieces.items()} if index == 0 else {},
        "t": excerpt["tokens"],
    }
    text = h(
        "div",
        tokens,
        class_="text",
        tabindex="0",
        role="application",
        aria_label=f"Text of {excerpt['why']}. Arrow keys move from token to token.",
    )
    panel = h("div", h("p", "Point at a token."), class_="panel-of-token", aria_live="polite")
    shading = choice(
        f"text-{index}",
        "shade by",
        [
            (f"cost with {label(main)}", Html("")),
            (f"cost with {label(base)}", Html("")),
            ("what was gained between them", Html("")),
        ],
        kind="shading",
    )
    scale = h(
        "p",
        h("span", "0 bits"),
        h("b", class_="ramp"),
        h("span", f"{HEAT_BITS:.0f} bits or more"),
        h("span", "gained", class_="gained"),
        h("span", "lost", class_="lost"),
        class_="scale",
    )
    return h(
        "figure",
        h("figcaption", h("h3", excerpt["why"][:1].upper() + excerpt["why"][1:]), h("p", f"{where}; {rate}{before}")),
        shading,
        scale,
        h("div", text, panel, class_="beside"),
        data(told),
        class_="chart excerpt",
    )


def _shade(bits: float, most: float = HEAT_BITS) -> int:
    return max(0, min(round(100 * bits / most), 100)) if math.isfinite(bits) else 100


def _visible(piece: str) -> tuple[str, str | None]:
    """A token as it can be seen."""
    if not piece:
        return "¶", "end"
    return piece.replace("\n", "↵").replace("\t", "⇥").replace("\r", "\\r"), None


SECTION = Section("text", "The text itself", body)
