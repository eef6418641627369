"""What rounding did to the matrices."""

import math

from pgolf.report.charts import Axis, Dot, Row, dot_rows, missing, table
from pgolf.report.files import Run
from pgolf.report.html import Html, h
from pgolf.report.sections.parts import section


def quantisation(run: Run) -> Html:
    title = "Quantisation"
    matrices = run.quantisation.get("matrices", [])
    if not matrices:
        why = "There is no quantisation.json: the run has not been packed, or by an earlier version."
        return section("quantisation", title, missing("What rounding did", why))
    kinds: dict[str, list[dict]] = {}
    for matrix in matrices:
        kinds.setdefault(kind_of(matrix["name"]), []).append(matrix)
    charts = [
        dot_rows(chart, Axis(label, unit, low=0.0), [_matrix_row(kind, some, key, show) for kind, some in kinds.items()],
                 head="matrix", note=note)
        for chart, label, unit, key, show, note in (
            ("Rounding error", "error", "% of the weights' norm", "error", lambda v: f"{100 * v:.2f} %",
             "Root of the squared error over that of the weights. A dot a layer."),
            ("Bits", "entropy of the codes", "bits per weight", "entropy", lambda v: f"{v:.2f}",
             "If codes are drawn one by one from the matrix's own histogram."),
            ("Clip", "where rows are clipped", "standard deviations", "clip", lambda v: f"{v:.1f}", ""),
            ("Outliers", "farthest weight", "standard deviations", "farthest", lambda v: f"{v:.1f}",
             "The greatest weight of a matrix, in standard deviations of its row."),
        )
    ]  # fmt: skip
    rows = [
        [
            matrix["name"],
            "×".join(map(str, matrix["shape"])),
            matrix["bits"],
            f"{matrix['entropy']:.3f}",
            f"{100 * matrix['error']:.3f} %",
            f"{matrix['clip']:.2f} σ",
            f"{100 * matrix['outliers']:.4f} %",
            f"{matrix['farthest']:.1f} σ",
            f"{100 * matrix['zeros']:.1f} %",
        ]
        for matrix in matrices
    ]
    heads = ["matrix", "shape", "bits", "entropy", "error", "clip", "beyond the clip", "farthest weight", "zeros"]
    weights = sum(math.prod(matrix["shape"]) for matrix in matrices)
    codes = run.summary.get("artifact", {}).get("parts", {}).get("codes")
    says = f"{len(matrices)} matrices with {weights:,} weights, rounded by {run.quantisation.get('rounding', '?')}"
    says += f"; the file needs {8 * codes / weights:.3f} bits a weight for their codes." if codes else "."
    details = h("details", h("summary", "Every matrix"), table(heads, rows, caption="Rounding, matrix by matrix"))
    return section("quantisation", title, h("div", charts, class_="grid"), details, says=says)


def kind_of(name: str) -> str:
    """A matrix's name without its layer."""
    words = name.split(".")
    return ".".join(word for i, word in enumerate(words) if not word.isdigit() and not (i == 0 and word == "blocks"))


def _matrix_row(kind: str, some: list[dict], key: str, show) -> Row:
    factor = 100 if key == "error" else 1
    dots = [Dot(factor * matrix[key], 0, label=f"{matrix['name']}: {show(matrix[key])}") for matrix in some]
    low, high = min(m[key] for m in some), max(m[key] for m in some)
    return Row(kind.removesuffix(".weight"), dots, show(low) if len(some) == 1 else f"{show(low)} – {show(high)}")
