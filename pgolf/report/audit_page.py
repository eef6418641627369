"""audit.html: one audit as a page of its own, from what audit.json holds."""

from pathlib import Path

from pgolf.report.charts import table
from pgolf.report.files import Run
from pgolf.report.html import Html, document, h, join
from pgolf.report.page import bar
from pgolf.report.sections.audit import VERDICTS, audit_tests, charts, decoding, in_words, matrix, verdict
from pgolf.report.sections.section import grid, label, section

RULES = {
    "C1": "What a token costs depends on the tokens before it alone.",
    "C2": "The probabilities of all tokens sum to one.",
    "C3": "Text is scored first and learned from afterwards.",
    "C4": "Every token is scored once, and the record adds up to the score.",
    "record": "summary.json says what its files say.",
    "metric": "The bytes that the score is divided by are those of the text.",
    "data": "No document of the validation text is in the training text.",
    "sandbox": "Scoring works in a sandbox with the artifact alone.",
    "size": "Artifact and code fit the limit of bytes.",
    "clocks": "Training and scoring end within their clocks.",
    "evidence": "The score holds for several seeds.",
}


def page(audit: dict, title: str) -> str:
    run = Run(Path(title), audit=audit)
    tests, shown = audit_tests(run), audit_tests(run, "shown")
    results = list(dict.fromkeys(test["result"] for test in (*tests, *shown)))
    anchors = [("verdict", "Verdict"), ("rules", "Rules"), ("tests", "Tests")]
    drawn = charts(run)
    anchors += [("measurements", "Measurements")] if drawn else []
    counted = {kind: sum(test["passed"] is kind for test in tests) for kind in (True, False, None)}
    passed = audit.get("passed")
    kind = "good" if passed else "bad" if passed is False else "open"
    decoded = audit.get("decoded")
    conclusion = f"{counted[True]} tests hold, {counted[False]} fail, {counted[None]} do not apply."
    main = h(
        "main",
        h("header", h("p", "pgolf audit", class_="kicker"), h("h1", title)),
        section(
            "verdict",
            "Verdict",
            h("ul", h("li", h("b", verdict(audit)), f" {conclusion}", class_=kind), class_="verdicts"),
            h("p", f"Proof by decoding: {decoding(decoded)}") if isinstance(decoded, dict) else None,
            says="A score is honest if a decoder could reproduce the text from so many bits. Each test tries the scorer on "
            "texts made for the purpose, or recounts what it says of itself.",
        ),
        section("rules", "Rules", _rules(tests)),
        section(
            "tests",
            "Tests",
            matrix([*tests, *shown], not_counted=[test["result"] for test in shown]),
            [_by_predictor(result, [*tests, *shown], result in {test["result"] for test in shown}) for result in results],
        ),
        section("measurements", "Measurements", grid(drawn.values())) if drawn else None,
    )
    return document(f"Audit of {title} – pgolf", join([bar(anchors), main]))


def _rules(tests: list[dict]) -> Html:
    """One line a rule, with what it demands and what came out."""
    by_rule: dict[str, list[dict]] = {}
    for test in tests:
        by_rule.setdefault(str(test.get("rule", test.get("id", "?"))), []).append(test)
    rows = []
    for rule, mine in by_rule.items():
        verdicts = [test["passed"] for test in mine]
        kind, sign, word = VERDICTS[False if False in verdicts else True if True in verdicts else None]
        told = next((test for test in mine if test["passed"] is False), mine[0])
        says = f"{told['title']}: {told.get('figure', '')}"
        rows.append([rule, RULES.get(rule, mine[0]["title"]), h("span", f"{sign} {word}", class_=kind), says])
    return table(["rule", "what it demands", "verdict", "figure"], rows, caption="The rules, over all predictors that count")


def _by_predictor(result: str, tests: list[dict], not_counted: bool) -> Html:
    name = "The submission as a whole" if result == "all" else f"Predictor: {label(result)}"
    name += " (as published; not counted)" if not_counted else ""
    mine = [test for test in tests if test["result"] == result]
    return h("details", h("summary", name), in_words(name, mine, predictor=False))
