"""What rounding did to the matrices."""

import math

from pgolf.report.charts import Chart, Dot, DotRows, Row, missing, table
from pgolf.report.files import Run
from pgolf.report.html import Html, h, join
from pgolf.report.scales import Axis
from pgolf.report.sections.section import Section, grid, lead
from pgolf.report.tables import columns

CONSTANT = 0.02
"""A quantity that varies by less than this share gets a sentence and no chart."""
# title, axis, key, how a value is said, note
QUANTITIES = {
    "rounding_error": ("Rounding error", Axis("error", "% of the weights' norm", low=0.0), "error", "{:.2f} %",
                       "Root of the squared error over that of the weights. A dot a layer."),
    "entropy": ("Entropy of the codes", Axis("entropy", "bits per weight", low=0.0), "entropy", "{:.2f}",
                "Of codes drawn one by one from the matrix's own histogram."),
    "clip": ("Clip", Axis("where rows are clipped", "standard deviations", low=0.0), "clip", "{:.1f}", ""),
    "outliers": ("Outliers", Axis("farthest weight", "standard deviations", low=0.0), "farthest", "{:.1f}",
                 "The largest weight of a matrix, in standard deviations of its row."),
}  # fmt: skip


def charts(run: Run) -> dict[str, Chart]:
    kinds = _by_kind(run)
    drawn: dict[str, Chart] = {}
    for name, (title, axis, key, form, note) in QUANTITIES.items():
        if kinds and _varies(run, key):
            rows = [_row(kind, some, key, form) for kind, some in kinds.items()]
            drawn[name] = DotRows(title, axis, rows, head="matrix", note=note)
    return drawn


def body(run: Run) -> Html:
    matrices = run.quantisation.get("matrices", [])
    if not matrices:
        why = "There is no quantisation.json: the run has not been packed, or by an earlier version."
        return missing("What rounding did", why)
    weights = sum(math.prod(matrix["shape"]) for matrix in matrices)
    codes = run.summary.artifact.parts.get("codes") if run.summary.artifact else None
    says = f"{len(matrices)} matrices with {weights:,} weights, rounded by {run.quantisation.get('rounding', '?')}"
    says += f"; the file needs {8 * codes / weights:.3f} bits a weight for their codes." if codes else "."
    for title, axis, key, form, _ in QUANTITIES.values():
        if not _varies(run, key):
            says += f" {title}: {form.format(_scale(key) * matrices[0][key])} ({axis.unit}) for every matrix."
    return join([lead(says), grid(charts(run).values()), h("details", h("summary", "Every matrix"), _every(matrices))])


def text(run: Run) -> str:
    """Layers of one kind together; the page has them one by one."""
    head = ["rounding", "matrices", "bits", "entropy", "error %", "clip σ", "beyond %", "farthest σ"]
    rows = []
    for kind, some in _by_kind(run).items():
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


def _every(matrices: list[dict]) -> Html:
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
    return table(heads, rows, caption="Rounding, matrix by matrix")


def _by_kind(run: Run) -> dict[str, list[dict]]:
    kinds: dict[str, list[dict]] = {}
    for matrix in run.quantisation.get("matrices", []):
        kinds.setdefault(kind_of(matrix["name"]), []).append(matrix)
    return kinds


def kind_of(name: str) -> str:
    """A matrix's name without its layer."""
    words = name.split(".")
    return ".".join(word for i, word in enumerate(words) if not word.isdigit() and not (i == 0 and word == "blocks"))


def _scale(key: str) -> int:
    return 100 if key == "error" else 1


def _varies(run: Run, key: str) -> bool:
    values = [matrix[key] for matrix in run.quantisation.get("matrices", [])]
    return max(values) - min(values) > CONSTANT * max(map(abs, values)) if values else False


def _row(kind: str, some: list[dict], key: str, form: str) -> Row:
    values = [_scale(key) * matrix[key] for matrix in some]
    dots = [Dot(value, 0, label=f"{m['name']}: {form.format(value)}") for m, value in zip(some, values, strict=True)]
    low, high = form.format(min(values)), form.format(max(values))
    return Row(kind.removesuffix(".weight"), dots, low if low == high else f"{low} – {high}")


SECTION = Section("quantisation", "Quantisation", body, text, charts)
