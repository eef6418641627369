"""The submissions' honest numbers: what each of them published by its own arithmetic, what its mixture adds up to, what its
legal counterpart scores, and how many bits a decoder really needed. One row a system, from finished runs."""

import numpy as np

from pgolf.audit.auditor import sums_of
from pgolf.audit.command import decode_run
from pgolf.audit.interface import AuditError
from pgolf.audit.run_audit import published_trials
from pgolf.audit.runs import RunSubject
from pgolf.audit.trials import Effort, Trials
from pgolf.config import read_toml
from pgolf.config.predictors import HONEST_COUNTERPARTS
from pgolf.data import Dataset
from pgolf.evaluation.predictors.selection import honest_class
from pgolf.folder import RunFolder

SYSTEMS = ("pr549", "pr688", "pr745", "pr953", "pr1014")
PROBES = 64


def honest_row(folder: RunFolder, dataset: Dataset, decoded: int) -> dict:
    """`decoded` tokens go through the codec and back; 0 leaves that out."""
    settings, summary = read_toml(folder.config), folder.read_summary()
    mixture = settings.evaluation.mixer.published
    if mixture == "none":
        published, honest = "adapted_published", "adapted"
    else:
        published, honest = "published", honest_class(HONEST_COUNTERPARTS[mixture]).name
    for result in (published, honest):
        if result not in summary.score:
            raise AuditError(f"{folder.path} has no score {result!r}; score it again")
    row = {
        "preset": settings.preset,
        "published_bpb": summary.score[published].bpb,
        "mass": mean_mass(folder, dataset, published if mixture != "none" else honest),
        "honest": honest,
        "honest_bpb": summary.score[honest].bpb,
        "targets": summary.score[honest].tokens,
        "decoded": None,
    }
    if decoded:
        proof = decode_run(folder, dataset, decoded, lambda name, share: None)
        tokens = np.asarray(dataset.val_tokens())[: decoded + 1]
        spelt = int(dataset.tokenizer.byte_table.count(tokens[:-1], tokens[1:]).sum())
        if proof["real_bits"] is None:
            raise AuditError(f"{folder.path}: {proof['said']}")
        row["decoded"] = {**proof, "bytes": spelt, "bpb": proof["real_bits"] / spelt}
    return row


def mean_mass(folder: RunFolder, dataset: Dataset, result: str) -> float:
    """The mean, over probed targets, of what the predictor gives to all symbols together."""
    tokens = np.asarray(dataset.val_tokens())
    if result == "published":
        trials = published_trials(RunSubject(folder, published=True), tokens, Effort(targets=4096, probes=PROBES // 2))
    else:
        sample = tokens[:4097].astype(np.int64)
        trials = Trials(sample, dataset.vocab_size)
        probes = np.random.default_rng(0).choice(len(sample) - 1, PROBES, replace=False).tolist()
        trials.probed = RunSubject(folder, [result]).score(sample, probes)
    return sums_of(trials)[result]["mean"]


def table(rows: list[dict]) -> str:
    """Markdown, which is what the command prints and what the documents quote."""
    lines = [
        "| system | published score | its probabilities sum to | honest score | bits claimed | bits decoded |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        proof = row["decoded"]
        bits = ("not tried", "") if proof is None else (f"{proof['claimed_bits']:,.0f}", decoded_cell(proof))
        lines.append(
            f"| `{row['preset']}` | {row['published_bpb']:.4f} | {row['mass']:.4g} | {row['honest_bpb']:.4f} "
            f"| {bits[0]} | {bits[1]} |"
        )
    return "\n".join(lines)


def decoded_cell(proof: dict) -> str:
    if not proof["equal"]:
        return "the text did not come back"
    return f"{proof['real_bits']:,.0f} ({proof['bpb']:.4f} a byte)"


def said(rows: list[dict], steps: int) -> str:
    """What stands below the table."""
    first = rows[0]
    words = f"Scores are bits per byte over {first['targets']:,} tokens, at `--scale tiny` after {steps:,} steps."
    proofs = [row["decoded"] for row in rows if row["decoded"] is not None]
    if proofs:
        words += f" {proofs[0]['tokens']:,} tokens were compressed with each system's own scorer and decoded again."
    return words
