"""The page's figures as tables for the terminal, beyond what the summary alone tells."""

import math

from pgolf.report.files import ODD, Run
from pgolf.report.sections.audit import VERDICTS, audit_tests, decoding
from pgolf.report.sections.parts import spoken
from pgolf.report.sections.quantisation import kind_of
from pgolf.report.sections.result import WORDS, checks
from pgolf.report.sections.scoring import given_up, results_shown
from pgolf.report.tables import columns


def further_tables(run: Run) -> str:
    parts = ["\n".join(run.damaged)]
    for make in (_training, _quantisation, _gains, _where, _kinds, _weights, _planner, _audit, _verdict):
        try:
            parts.append(make(run))
        except ODD as error:
            parts.append(f"a part is left out: a file has another form than expected ({type(error).__name__}: {error})")
    return "\n\n".join(part for part in parts if part)


def _verdict(run: Run) -> str:
    rows = [[name, WORDS[holds], says] for name, holds, says in checks(run)]
    return _left([["rule", "", ""], *rows])


def _left(rows: list[list[str]]) -> str:
    """Columns of words, all to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _audit(run: Run) -> str:
    rows = [
        [test["title"], spoken(test["result"]), VERDICTS[test["passed"]][-1], str(test.get("says") or "")]
        for test in audit_tests(run)
    ]
    if not rows:
        return ""
    decoded = run.audit.get("decoded")
    proof = "\n" + decoding(decoded) if isinstance(decoded, dict) else ""
    return _left([["audit", "result", "verdict", ""], *rows]) + proof


def _training(run: Run) -> str:
    steps = run.steps
    if not steps:
        return ""
    picked = [steps[i] for i in sorted({round(share * (len(steps) - 1)) for share in (0, 0.1, 0.25, 0.5, 0.75, 1)})]
    head = ["training", "tokens", "seconds", "loss", "gradient norm", "rate", "tokens/s"]
    rows = [
        [
            f"  step {step['step']:,}",
            f"{step['step'] * run.batch_tokens:,}",
            f"{step['elapsed']:.1f}",
            f"{step['loss']:.4f}",
            f"{step['gradient_norm']:.3f}",
            f"x{step['multiplier']:.2f}",
            f"{step['tokens_per_second']:,.0f}",
        ]
        for step in picked
    ]
    return columns([head, *rows])


def _gains(run: Run) -> str:
    rows = []
    for name, score in run.summary.get("score", {}).items():
        if "over" not in score:
            continue
        error = score.get("gain_error")
        better = ""
        if run.scores and {name, score["over"]} <= set(run.scores.results):
            better = f"{run.scores.paired(score['over'], name):.0%}"
        spread = f"{error:.5f}" if error is not None else "–"
        rows.append([f"  {spoken(name)}", spoken(score["over"]), f"{score['gain']:+.5f}", spread, better])
    head = ["gain in bits per byte", "over", "gain", "standard error", "documents better"]
    return columns([head, *rows]) if rows else ""


def _where(run: Run) -> str:
    if not run.scores:
        return ""
    shown = [(i, name) for i, name, _ in results_shown(run)]
    tables = []
    for title, cells in (("tokens from", run.scores.by_position), ("documents of tokens from", run.scores.by_length)):
        head = [f"bits per byte, {title}", "bytes", *(spoken(name) for _, name in shown)]
        rows = []
        for k, name in enumerate(cells.names):
            figures = [f"{cells.per_byte(i)[k]:.4f}" if cells.bytes[k] else "–" for i, _ in shown]
            rows.append([f"  {name}", f"{int(cells.bytes[k]):,}", *figures])
        tables.append(columns([head, *rows]))
    return "\n\n".join(tables)


def _kinds(run: Run) -> str:
    cells = run.scores.by_kind if run.scores else None
    if cells is None:
        return ""
    shown = [(i, name) for i, name, _ in results_shown(run)]
    head = ["bits per token", "tokens", *(spoken(name) for _, name in shown)]
    rows = []
    for k, name in enumerate(cells.names):
        rows.append([f"  {name}", f"{int(cells.tokens[k]):,}", *(f"{cells.per_token(i)[k]:.3f}" for i, _ in shown)])
    return columns([head, *rows])


def _weights(run: Run) -> str:
    rows = []
    for predictor, points in run.traces.items():
        for name in points[0][1]:
            values = [weights.get(name, math.nan) for _, weights in points]
            rows.append([f"  {spoken(predictor)}: {spoken(name)}", f"{values[0]:.4f}", f"{values[-1]:.4f}"])
    return columns([["weights along the stream", "first", "last"], *rows]) if rows else ""


def _planner(run: Run) -> str:
    given = run.summary.get("scoring", {}).get("gave_up")
    if given is None:
        return ""
    return "given up for the clock: " + (", ".join(given_up(given)) or "nothing")


def _quantisation(run: Run) -> str:
    """Layers of one kind together; report.html has them one by one."""
    kinds: dict[str, list[dict]] = {}
    for matrix in run.quantisation.get("matrices", []):
        kinds.setdefault(kind_of(matrix["name"]), []).append(matrix)
    head = ["rounding", "matrices", "bits", "entropy", "error %", "clip σ", "beyond %", "farthest σ"]
    rows = []
    for kind, some in kinds.items():
        means = {key: sum(m[key] for m in some) / len(some) for key in ("entropy", "error", "clip", "outliers")}
        rows.append(
            [
                f"  {kind}",
                str(len(some)),
                str(some[0]["bits"]),
                f"{means['entropy']:.3f}",
                f"{100 * means['error']:.3f}",
                f"{means['clip']:.2f}",
                f"{100 * means['outliers']:.4f}",
                f"{max(m['farthest'] for m in some):.1f}",
            ]
        )
    return columns([head, *rows]) if rows else ""
