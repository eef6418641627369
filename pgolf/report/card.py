"""A run's model card: README.md of a repository on the Hugging Face Hub, in the form that the Hub reads."""

from pgolf.report.sections.section import label
from pgolf.report.tables import given_up
from pgolf.summary import Summary

FRONT = """---
library_name: pgolf
tags:
- pgolf
- language-model
- compression
---
"""


def card(name: str, repo: str, summary: Summary, sha256: str) -> str:
    """Markdown. `sha256` is that of model.pgolf."""
    score, size, train, corpus = summary.main_score, summary.artifact, summary.train, summary.corpus
    assert score and size
    part = " a part of" if score.partial else ""
    facts = [
        f"{summary.parameters:,} parameters" if summary.parameters else "",
        f"preset {summary.preset}, seed {summary.seed}",
    ]
    facts += [f"{train.steps:,} steps, {train.tokens:,} tokens, {train.seconds:.0f} s on {summary.device}"] if train else []
    facts += [f"{size.total_bytes:,} bytes with its code, of {size.limit:,}"]
    facts += [f"text: {corpus.name}, sha256 {corpus.digest[:12]}"] if corpus else []
    facts += [f"given up for the clock: {line}" for line in given_up(summary)]
    audit = summary.audit
    if audit:
        facts.append("the audit " + ("passed" if audit.passed else f"failed: {', '.join(audit.failed)}"))
    rows = [
        f"| {label(key)} | {one.bpb:.4f} | {one.loss:.4f} | {one.tokens:,} | {'yes' if one.legal else 'no, as published'} |"
        for key, one in summary.score.items()
    ]
    return "\n".join(
        [
            FRONT,
            f"# {name}",
            "",
            f"A language model in {size.model_bytes:,} bytes that needs **{score.bpb:.4f} bits per byte** for{part} its "
            f"validation text, with the predictor “{label(summary.main)}”. The whole report is `report.html`.",
            "",
            *(f"- {fact}" for fact in facts if fact),
            "",
            "| predictor | bits per byte | nats per token | tokens | a code length |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "```bash",
            f"pgolf pull {repo} --out MODEL",
            "pgolf compress TEXT --artifact MODEL/model.pgolf --out BITS",
            "pgolf decompress BITS --artifact MODEL/model.pgolf --out TEXT2",
            "```",
            "",
            f"`model.pgolf` holds numbers and settings, nothing that is executed; its sha256 is `{sha256}`.",
            "",
        ]
    )
