"""The audit for a terminal: every test, and the pre-flight list. Its page is pgolf/report/audit_page.py."""

from pgolf.audit.auditor import Report
from pgolf.audit.checks import Finding

MARKS = {True: "holds", False: "FAILS", None: "n/a"}
# what a person checks before handing in: line, the tests on it
PREFLIGHT = (
    ("C2", "the sum over the vocabulary", ("P2", "N1", "N2", "N3", "N4", "N5", "N5b")),
    ("C1", "the past alone", ("P1", "C1a", "C1b", "C1c", "C1d", "D1")),
    ("C3", "scored first, learnt from later", ("C3",)),
    ("C4", "scored once", ("C4", "R1")),
    ("F ", "the record", ("F1", "F2")),
    ("B1", "bytes", ("B1",)),
    ("L1", "documents", ("L1",)),
    ("L2", "passages", ("L2",)),
    ("A1", "sandbox", ("A1",)),
    ("A2", "size", ("A2",)),
    ("T1", "clocks", ("T1",)),
    ("S ", "seeds", ("S",)),
)


# ---- a terminal


def lines(report: Report) -> list[str]:
    """Every test, with the figure of the run's own predictor; predictors that fare otherwise have lines of their own."""
    rows = []
    for id, title in dict.fromkeys((one.id, one.title) for one in report.findings):
        mine = [one for one in report.findings if (one.id, one.title) == (id, title)]
        judged = [one for one in mine if one in report.judged]
        alike: dict[bool | None, Finding] = {one.passed: one for one in judged}
        for passed, one in alike.items():
            names = [other.result for other in judged if other.passed is passed]
            where = "" if len(alike) == 1 else f" ({', '.join(name.replace('_', ' ') for name in names)})"
            rows.append(f"{id:4} {MARKS[passed]:6} {title}{where}: {one.figure}")
            if passed is not True:
                rows.append(f"            {one.says}")
        for one in mine:
            if one not in judged:
                rows.append(f"{id:4} {MARKS[one.passed]:6} {title} ({one.result}, which counts for nothing): {one.figure}")
                rows.append(f"            {one.says}")
    for result, sums in report.sums.items():
        if result not in report.results:
            rows.append(f"mean sum over the vocabulary, {result}: {sums['mean']:.4g}")
    return rows


def preflight(report: Report) -> list[str]:
    """The short list: one line a rule, over all predictors that are judged."""
    rows = ["pre-flight list"]
    for mark, title, ids in PREFLIGHT:
        mine = [one for one in report.judged if one.id in ids]
        verdicts = [one.passed for one in mine]
        verdict = False if False in verdicts else True if True in verdicts else None
        failed = [one for one in mine if one.passed is False]
        shown = failed or [one for one in mine if one.passed] or mine
        figures = "; ".join(dict.fromkeys(f"{one.id} {one.figure}" for one in shown[: 3 if len(ids) > 1 else 1]))
        rows.append(f"  [{mark}] {MARKS[verdict]:6} {title}: {figures}")
    return rows


def headline(report: Report) -> list[str]:
    """What may not be earned, and how the processes were isolated."""
    sentences = [*report.notes]
    if report.bound is not None:
        sentences = [
            report.bound["says"],
            f"Positions were drawn after the claim by the seed {report.bound['seed']}.",
            *sentences,
        ]
    return sentences


def verdict(report: Report) -> str:
    held, failed, rest = (sum(one.passed is kind for one in report.judged) for kind in (True, False, None))
    words = f"{held} tests hold, {failed} fail, {rest} do not apply; {report.seconds:.1f} s"
    return f"audit {'passed' if report.passed else 'FAILED'}: {words}"
