"""`pgolf audit`: the audit of a run or of an external scorer; what it says and what it leaves behind."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.audit import terminal
from pgolf.audit.auditor import Report, audit_external
from pgolf.audit.external import ExternalScorer
from pgolf.audit.interface import AuditError
from pgolf.audit.records import read_plan
from pgolf.audit.run_audit import Progress
from pgolf.audit.trials import Effort
from pgolf.config import load_preset, read_toml
from pgolf.data import Dataset, default_dataset, open_shard
from pgolf.errors import PgolfError
from pgolf.evaluation.codec.coding import PRECISION, SLACK_BITS
from pgolf.files import write_whole
from pgolf.folder import RunFolder
from pgolf.report import audit_page
from pgolf.report.sections.audit import decoding
from pgolf.score_log import ScoreLog

# tokens of a text that is made up for a scorer
MADE_UP = 32_768


# ---- somebody's scorer


def audit_scorer(
    name: str,
    tokens: str,
    cache: Path,
    *,
    targets: int = 0,
    replays: int = 0,
    decode: int = 0,
    seed: int | None = None,
    progress: Progress = lambda name, share: None,
) -> Report:
    """The audit of FILE.py:NAME or MODULE:NAME on a file of tokens, or on a text that fits its vocabulary."""
    scorer = ExternalScorer(name)
    try:
        if tokens:
            text, counts = tokens_from(Path(tokens)), None
        else:
            text, counts = text_for(scorer.vocab, scorer.claims.bos, cache)
        effort = Effort(targets=targets) if targets else None
        return audit_external(
            scorer,
            text,
            seed=seed,
            effort=effort,
            replays=replays,
            decode=decode,
            byte_counts=counts,
            progress=progress,
        )
    finally:
        scorer.close()


def tokens_from(path: Path) -> np.ndarray:
    if path.suffix != ".npy":
        return np.asarray(open_shard(path))
    try:
        tokens = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise AuditError(f"{path} holds no tokens: {error}") from None
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise AuditError(f"{path} holds no tokens: it has the shape {tokens.shape} and the type {tokens.dtype}")
    return tokens


def text_for(vocab: int, bos: int | None, cache: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The built-in corpus for scorers of a vocabulary that it comes in, with the bytes of each target; for others documents
    of an n-gram model with few successors."""
    if vocab in {load_preset(name).model.vocab_size for name in ("quick", "pr549")}:
        dataset = default_dataset(cache, vocab_size=vocab)
        tokens = np.asarray(dataset.val_tokens())
        return tokens, dataset.tokenizer.byte_table.count(tokens[:-1], tokens[1:])
    rng = np.random.default_rng(0)
    followers = rng.integers(0, vocab, (vocab, 4))
    made = [0 if bos is None else bos]
    while len(made) < MADE_UP:
        if bos is not None and rng.random() < 0.005:
            made.append(bos)
        else:
            made.append(int(followers[made[-1], min(rng.geometric(0.5) - 1, 3)]))
    return np.array(made), None


# ---- the proof by decoding


def decode_run(folder: RunFolder, dataset: Dataset, count: int, progress: Progress) -> dict:
    """The first `count` tokens of the validation text through the codec and back, by the run's plan, beside their recorded
    costs. The bits are those of the record, the header as it is, and the coder's rounding."""
    from pgolf.evaluation.codec import Codec, prove

    settings = read_toml(folder.config)
    tokens = np.asarray(dataset.val_tokens())[: count + 1]
    proof: dict[str, Any] = {
        "tokens": len(tokens) - 1,
        "equal": False,
        "passed": False,
        "claimed_bits": None,
        "real_bits": None,
    }
    try:
        record, result = ScoreLog(folder.scores).read(), Codec(folder.artifact, settings).result
        recorded = record.nats.get(result, np.empty(0))[: proof["tokens"]]
        if len(recorded) < proof["tokens"] or not np.array_equal(record.tokens[: proof["tokens"]], tokens[1:]):
            return {**proof, "said": f"score.jsonl has no costs of {result} for these tokens"}
        claimed = float(recorded.sum()) / math.log(2)
        proof |= prove(
            folder.artifact,
            tokens,
            settings,
            plan=read_plan(folder.plan),
            claimed_bits=claimed,
            progress=lambda share: progress("compressing and decoding", share),
        )
    except PgolfError as error:
        return {**proof, "said": str(error)}
    proof["header_bits"] = proof["real_bits"] - proof["code_bits"]
    # the coder counts in units of 2^-24 and gives every symbol at least one; score.jsonl keeps five decimals
    rounding = proof["tokens"] * (dataset.vocab_size * 2.0**-PRECISION + 1e-5) / math.log(2)
    proof["passed"] = bool(proof["equal"] and proof["code_bits"] <= claimed + SLACK_BITS + rounding)
    return proof


# ---- what is left behind


def publish(report: Report, folder: Path, title: str, say: Callable[[str], None]) -> int:
    """Says it, writes audit.json and audit.html, and gives the exit code."""
    for line in (*terminal.lines(report), *terminal.preflight(report), *terminal.headline(report)):
        say(line)
    if report.decoded is not None:
        say(decoding(report.decoded))
    say(terminal.verdict(report))
    write_whole(folder / "audit.json", json.dumps(plain(report.as_dict()), indent=1, allow_nan=False) + "\n")
    write_whole(folder / "audit.html", audit_page.page(report.as_dict(), title))
    say(f"page {folder / 'audit.html'}")
    return 0 if report.passed else 1


def plain(value):
    """JSON has no infinities and nothing that is not a number: those are null."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
