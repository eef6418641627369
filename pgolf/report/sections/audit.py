"""The audit's tests, reading by reading, and which of them failed."""

from collections.abc import Sequence

from pgolf.report.charts import Chart, Curves, Series, missing, table
from pgolf.report.files import Run
from pgolf.report.html import Html, h, join
from pgolf.report.scales import Axis, number
from pgolf.report.sections.section import Section, grid, label, lead
from pgolf.report.tables import left

VERDICTS = {True: ("good", "✓", "passed"), False: ("bad", "✗", "failed"), None: ("open", "–", "not applicable")}


def body(run: Run) -> Html:
    if not run.audit:
        return missing(
            "Not audited", "There is no audit.json: nobody has tried to break this score yet. pgolf audit RUN does."
        )
    tests, shown = audit_tests(run), audit_tests(run, "shown")
    failed = [test for test in tests if test["passed"] is False]
    decoded = run.audit.get("decoded")
    return join(
        [
            lead(verdict(run.audit)),
            h("p", decoding(decoded)) if isinstance(decoded, dict) else None,
            in_words("What failed", failed) if failed else None,
            matrix([*tests, *shown], not_counted=[test["result"] for test in shown]),
            h("details", h("summary", "Every test in words"), in_words("Tests of the audit", [*tests, *shown])),
            grid(drawn) if (drawn := charts(run).values()) else None,
        ]
    )


def text(run: Run) -> str:
    rows = [
        [test["title"], label(test["result"]), VERDICTS[test["passed"]][-1], str(test.get("says") or "")]
        for test in audit_tests(run)
    ]
    if not rows:
        return ""
    decoded = run.audit.get("decoded")
    proof = "\n" + decoding(decoded) if isinstance(decoded, dict) else ""
    return f"{verdict(run.audit)}\n{left([['audit', 'predictor', 'verdict', ''], *rows])}{proof}"


def charts(run: Run) -> dict[str, Chart]:
    drawn: dict[str, Chart] = {}
    sums = run.audit.get("sums")
    if sums:
        drawn["audit_sums"] = _sums(sums)
    uniform = run.audit.get("uniform") or {}
    for i, curves in enumerate([uniform, *uniform.get("further", ())]):
        if curves.get("results"):
            drawn[f"audit_noise_{i + 1}"] = _noise(curves)
    return drawn


def _sums(sums: dict) -> Chart:
    series = []
    for i, (name, known) in enumerate(sums.items()):
        pairs = [(at, value) for at, value in zip(known["targets"], known["sums"], strict=True) if value]
        series.append(Series(label(name), [at for at, _ in pairs], [value for _, value in pairs], style=i, dots=True))
    note = "At the places that were looked at. Probabilities of a code sum to one; a larger sum is no code length."
    axis = Axis("sum over the vocabulary", "probability", log=True)
    return Curves("Sum of all probabilities", Axis("probed at", "tokens"), axis, series, note=note)


def _noise(curves: dict) -> Chart:
    series = [Series(label(name), curves["at"], values) for name, values in curves["results"].items()]
    series.append(Series("allowed", [curves["at"][0], curves["at"][-1]], [curves["allowed"]] * 2, style=5))
    note = "Noise cannot be compressed: a curve that falls below the allowed line belongs to no code."
    axis = Axis("beyond n ln V", "bits, added up")
    return Curves("Cost of uniform noise", Axis("noise", "tokens"), axis, series, note=note)


def verdict(audit: dict) -> str:
    """How much of the score may not be earned, and whether every test passed."""
    passed, seconds, bound = audit.get("passed"), audit.get("seconds"), audit.get("bound")
    says = "The audit has no verdict"
    if isinstance(passed, bool):
        says = "Every test that applies passed" if passed else "At least one test failed"
    says += f", in {seconds:.1f} s." if isinstance(seconds, (int, float)) else "."
    if isinstance(bound, dict) and bound.get("says"):
        says = f"{bound['says']} {says}"
    return says


def in_words(caption: str, tests: Sequence[dict], *, predictor: bool = True) -> Html:
    """A row a test: what was tried, how it went, the figure and a sentence."""
    rows = []
    for test in tests:
        kind, sign, word = VERDICTS[test["passed"]]
        figure = test.get("figure")
        figure = number(figure, 3) if isinstance(figure, (int, float)) else str(figure if figure is not None else "")
        names = [label(test["result"])] if predictor else []
        verdict = h("span", f"{sign} {word}", class_=kind)
        rows.append([test["title"], *names, verdict, figure, str(test.get("says") or "")])
    head = ["test", *(["predictor"] if predictor else []), "verdict", "figure", "in words"]
    return table(head, rows, caption=caption)


def matrix(tests: Sequence[dict], not_counted: Sequence[str]) -> Html:
    """A row a test, a column a predictor."""
    results = list(dict.fromkeys(test["result"] for test in tests))
    rows = []
    for title in dict.fromkeys(test["title"] for test in tests):
        cells: list[Html | str] = []
        for result in results:
            verdicts = [test["passed"] for test in tests if test["title"] == title and test["result"] == result]
            if not verdicts:
                cells.append("")
                continue
            # where a test was made more than once, the worst counts
            kind, sign, word = VERDICTS[False if False in verdicts else True if True in verdicts else None]
            cells.append(h("span", sign, h("span", f" {word}", class_="unseen"), class_=kind))
        rows.append([title, *cells])
    heads = [label(result) + (" (does not count)" if result in not_counted else "") for result in results]
    return table(["test", *heads], rows, caption="✓ passed, ✗ failed, – not applicable")


def audit_tests(run: Run, part: str = "tests") -> list[dict]:
    """With a title, a predictor, and a verdict that is true, false or None. `part` "shown" are those of predictors that are no
    code lengths by their own account: they do not count."""
    tests = run.audit.get(part, [])
    rows = [test for test in tests if isinstance(test, dict)] if isinstance(tests, list) else []
    return [
        {
            **test,
            "title": str(test.get("title", test.get("id", ""))),
            "result": str(test.get("result") or "all"),
            "passed": test["passed"] if isinstance(test.get("passed"), bool) else None,
        }
        for test in rows
    ]


def decoding(decoded: dict) -> str:
    """How the proof by decoding went."""
    whole = "came back whole" if decoded.get("equal") else "did not come back"
    says = f"Compressed and decoded again, {decoded['tokens']:,} tokens {whole}"
    claimed = decoded.get("claimed_bits")
    if claimed is not None and decoded.get("real_bits") is not None:
        says += f": {claimed:,.0f} bits claimed, {decoded['real_bits']:,.0f} bits in the stream"
    if decoded.get("header_bits") is not None:
        says += f", {decoded['header_bits']:,.0f} of them its header"
    return f"{says}{': ' + str(decoded['said']) if decoded.get('said') and not decoded.get('equal') else ''}."


SECTION = Section("audit", "Audit", body, text, charts)
