"""A run's figures as tables for the terminal."""


def tables(summary: dict) -> str:
    """What summary.json says, for a person; parts that are not there yet are left out."""
    parts = [_head(summary)]
    if "train" in summary:
        parts.append(_train(summary["train"]))
    if "artifact" in summary:
        parts.append(_artifact(summary["artifact"]))
    if "score" in summary:
        parts.append(_scores(summary["score"], summary.get("compressors", {})))
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


def _head(summary: dict) -> str:
    corpus = summary.get("corpus", {})
    versions = ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items())
    return columns(
        [
            ["preset", str(summary.get("preset", "?"))],
            ["seed", str(summary.get("seed", "?"))],
            ["corpus", f"{corpus.get('name', '?')} {corpus.get('digest', '')[:12]}"],
            ["parameters", f"{summary.get('parameters', 0):,}"],
            ["device", summary.get("device", "?")],
            ["versions", versions],
        ]
    )


def _train(train: dict) -> str:
    rows = [["training", f"{train['seconds']:.1f} s", f"of {train['limit']:.0f} s"]]
    rows += [[f"  {name}", f"{seconds:.1f} s", ""] for name, seconds in train["parts"].items()]
    rows.append(["  steps", f"{train['steps']:,}", ""])
    rows.append(["  tokens", f"{train['tokens']:,}", ""])
    return columns(rows)


def _artifact(artifact: dict) -> str:
    rows = [["artifact", "bytes"]]
    rows += [[f"  {name}", f"{size:,}"] for name, size in artifact["parts"].items()]
    rows.append(["  code", f"{artifact['code_bytes']:,}"])
    rows.append(["model and code", f"{artifact['total_bytes']:,}"])
    rows.append(["margin", f"{artifact['margin']:,}"])
    return columns(rows)


def _scores(scores: dict, compressors: dict) -> str:
    rows = [["score", "bits per byte", "nats per token", "tokens", "seconds", ""]]
    for name, score in scores.items():
        note = "code length" if score["legal"] else "as published, not a code length"
        note += ", partial" if score.get("partial") else ""
        rows.append(
            [
                f"  {name.replace('_', ' ')}",
                f"{score['bpb']:.4f}",
                f"{score['loss']:.4f}",
                f"{score['tokens']:,}",
                f"{score['seconds']:.1f}",
                note,
            ]
        )
    for name, peer in compressors.items():
        rows.append([f"  {name}", f"{peer['bpb']:.4f}", "", "", "", f"{peer['bytes']:,} bytes, of {peer['of']:,}"])
    return columns(rows)
