"""The audit's tests, reading by reading, and which of them failed."""

from collections.abc import Sequence

from pgolf.report.charts import missing, number, table
from pgolf.report.files import Run
from pgolf.report.html import Html, h
from pgolf.report.sections.parts import section, spoken

VERDICTS = {True: ("good", "✓", "passed"), False: ("bad", "✗", "failed"), None: ("open", "–", "not applicable")}


def audit(run: Run) -> Html:
    title = "Audit"
    if not run.audit:
        why = "There is no audit.json: nobody has tried to break this score yet."
        return section("audit", title, missing("Not audited", why))
    tests, shown = audit_tests(run), audit_tests(run, "shown")
    failed = [test for test in tests if test["passed"] is False]
    decoded = run.audit.get("decoded")
    passed, seconds = run.audit.get("passed"), run.audit.get("seconds")
    says = "The audit has no verdict"
    if isinstance(passed, bool):
        says = "Every test that applies passed" if passed else "At least one test failed"
    says += f", in {seconds:.1f} s." if isinstance(seconds, (int, float)) else "."
    return section(
        "audit",
        title,
        h("p", decoding(decoded)) if isinstance(decoded, dict) else None,
        _in_words("What failed", failed) if failed else None,
        _matrix([*tests, *shown], not_counted=[test["result"] for test in shown]),
        h("details", h("summary", "Every test in words"), _in_words("Tests of the audit", [*tests, *shown])),
        says=says,
    )


def _in_words(caption: str, tests: Sequence[dict]) -> Html:
    rows = []
    for test in tests:
        kind, sign, word = VERDICTS[test["passed"]]
        figure = test.get("figure")
        figure = number(figure, 3) if isinstance(figure, (int, float)) else str(figure if figure is not None else "")
        verdict = h("span", f"{sign} {word}", class_=kind)
        rows.append([test["title"], spoken(test["result"]), verdict, figure, str(test.get("says") or "")])
    return table(["test", "result", "verdict", "figure", "in words"], rows, caption=caption)


def _matrix(tests: Sequence[dict], not_counted: Sequence[str]) -> Html:
    """A row a test, a column a predictor."""
    results = list(dict.fromkeys(test["result"] for test in tests))
    rows = []
    for title in dict.fromkeys(test["title"] for test in tests):
        cells: list[Html | str] = []
        for result in results:
            found = [test["passed"] for test in tests if test["title"] == title and test["result"] == result]
            if not found:
                cells.append("")
                continue
            # where a test was made more than once, the worst counts
            kind, sign, word = VERDICTS[False if False in found else True if True in found else None]
            cells.append(h("span", sign, h("span", f" {word}", class_="unseen"), class_=kind))
        rows.append([title, *cells])
    heads = [spoken(result) + (" (does not count)" if result in not_counted else "") for result in results]
    return table(["test", *heads], rows, caption="✓ passed, ✗ failed, – not applicable")


def audit_tests(run: Run, part: str = "tests") -> list[dict]:
    """With a title, a predictor, and a verdict that is true, false or None. `part` "shown" are those of predictors that are no
    code lengths by their own account: they do not count."""
    tests = run.audit.get(part, [])
    found = [test for test in tests if isinstance(test, dict)] if isinstance(tests, list) else []
    return [
        {
            **test,
            "title": str(test.get("title", test.get("id", ""))),
            "result": str(test.get("result") or "all"),
            "passed": test["passed"] if isinstance(test.get("passed"), bool) else None,
        }
        for test in found
    ]


def decoding(decoded: dict) -> str:
    """How the proof by decoding went."""
    whole = "came back whole" if decoded.get("equal") else "did not come back"
    bits = [f"{decoded[key]:,.0f} {words}" for key, words in (("claimed_bits", "claimed"), ("real_bits", "in the stream"))]
    return f"Compressed and decoded again, {decoded['tokens']:,} tokens {whole}: {bits[0]} bits, {bits[1]}."
