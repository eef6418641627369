"""A run's figures as tables for the terminal."""

from typing import Any

from pgolf.summary import ArtifactSize, Compressor, Score, Summary, Train


def tables(summary: Summary) -> str:
    """The figures of summary.json; parts that are not there yet are left out."""
    lost = given_up(summary)
    parts = [f"given up for the clock: {', '.join(lost)}"] if lost else []
    parts.append(_head(summary))
    if summary.train:
        parts.append(_train(summary.train))
    if summary.artifact:
        parts.append(_artifact(summary.artifact))
    if summary.score:
        parts.append(_scores(summary.score, summary.compressors))
    return "\n\n".join(parts)


def columns(rows: list[list[str]]) -> str:
    """Rows of cells, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def left(rows: list[list[str]]) -> str:
    """Rows of cells, all to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


GIVEN_UP = {
    "coarser_stride": "of the stream scored at a coarser stride than asked for",
    "adaptation": "of the adaptation left out",
    "first_pass_stands": "of the stream scored by the first pass alone",
}


def given_up(summary: Summary) -> list[str]:
    """What scoring left out to end in time, one phrase each."""
    given = summary.scoring.gave_up if summary.scoring else {}
    numbers = {name: value for name, value in given.items() if not isinstance(value, list)}
    lines = [f"{share:.1%} {GIVEN_UP[name]}" for name, share in numbers.items() if name in GIVEN_UP and share]
    if documents := numbers.get("documents_without_adapters"):
        lines.append(f"{documents:,} documents without adapters")
    if isinstance(results := given.get("results"), list) and results:
        lines.append("predictors left out: " + ", ".join(name.replace("_", " ") for name in results))
    return lines


SAME_SHARE = 0.05
"""Shares of the stream that differ by less than this count as the same work."""


def same_work(one: Summary, other: Summary) -> bool:
    """Whether two runs scored as many tokens and gave up the same work for the clock."""
    ours: dict[str, Any] = one.scoring.gave_up if one.scoring else {}
    theirs: dict[str, Any] = other.scoring.gave_up if other.scoring else {}
    sizes = [{score.tokens for score in summary.score.values()} for summary in (one, other)]
    if sizes[0] != sizes[1] or set(ours.get("results", ())) != set(theirs.get("results", ())):
        return False
    if ours.get("documents_without_adapters", 0) != theirs.get("documents_without_adapters", 0):
        return False
    return all(abs(ours.get(name, 0.0) - theirs.get(name, 0.0)) <= SAME_SHARE for name in GIVEN_UP)


def _head(summary: Summary) -> str:
    corpus = summary.corpus
    return columns(
        [
            ["preset", summary.preset or "?"],
            ["seed", "?" if summary.seed is None else str(summary.seed)],
            ["corpus", f"{corpus.name} {corpus.digest[:12]}" if corpus else "?"],
            ["parameters", "?" if summary.parameters is None else f"{summary.parameters:,}"],
            ["device", summary.device or "?"],
            ["versions", ", ".join(f"{name} {version}" for name, version in summary.versions.items())],
        ]
    )


def _train(train: Train) -> str:
    rows = [["training", f"{train.seconds:.1f} s", f"of {train.limit:.0f} s"]]
    rows += [[f"  {name}", f"{seconds:.1f} s", ""] for name, seconds in train.parts.items()]
    rows.append(["  steps", f"{train.steps:,}", ""])
    rows.append(["  tokens", f"{train.tokens:,}", ""])
    return columns(rows)


def _artifact(artifact: ArtifactSize) -> str:
    rows = [["artifact", "bytes"]]
    rows += [[f"  {name}", f"{size:,}"] for name, size in artifact.parts.items()]
    rows.append(["  code", f"{artifact.code_bytes:,}"])
    rows.append(["model and code", f"{artifact.total_bytes:,}"])
    rows.append(["margin", f"{artifact.margin:,}"])
    return columns(rows)


def _scores(scores: dict[str, Score], compressors: dict[str, Compressor]) -> str:
    rows = [["score", "bits per byte", "nats per token", "tokens", "seconds", ""]]
    for name, score in scores.items():
        note = "code length" if score.legal else "as published, not a code length"
        note += ", partial" if score.partial else ""
        rows.append(
            [
                f"  {name.replace('_', ' ')}",
                f"{score.bpb:.4f}",
                f"{score.loss:.4f}",
                f"{score.tokens:,}",
                f"{score.seconds:.1f}",
                note,
            ]
        )
    for name, peer in compressors.items():
        primed = "" if peer.primed_bpb is None else f"; primed {peer.primed_bpb:.4f}, {peer.primed_bytes:,} bytes"
        rows.append([f"  {name}", f"{peer.bpb:.4f}", "", "", "", f"{peer.bytes:,} bytes, of {peer.text_bytes:,}{primed}"])
    return columns(rows)
