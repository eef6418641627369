"""Tests of what a submission says beside its scores: bytes, files, seconds, documents, seeds. Each figure is recounted from
its source."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from pgolf.audit.checks import Finding, Verdict
from pgolf.audit.interface import Claims
from pgolf.data.passages import PASSAGE

BYTES_TOLERANCE = 1e-4
# of the challenge's validation text, by tokens of the whole stream
KNOWN_BYTES = {40_540_803: 151_080_891, 47_851_520: 151_074_499}
SEEDS_WANTED = 3
# of a text's bytes: short passages are in every two texts of one language
PASSAGES_ALLOWED = 0.001


def findings(claims: Claims, tokens: np.ndarray) -> Iterator[Finding]:
    """`tokens` are the whole validation stream, as far as the auditor has it."""
    for id, rule, title, function in CHECKS:
        figure, passed, says = function(claims, tokens)
        yield Finding(id, rule, title, "all", figure, None if passed is None else bool(passed), says)


def byte_count(claims: Claims, tokens: np.ndarray) -> Verdict:
    if claims.bytes_of is None or claims.decode is None:
        return "not said", None, "It does not say how many bytes each token counts for, or nothing says what the tokens spell."
    counted = int(np.asarray(claims.bytes_of(tokens), dtype=np.int64).sum())
    spelt = len(claims.decode(tokens[1:]))
    figure = f"{counted:,} counted, {spelt:,} decoded"
    if abs(counted - spelt) > BYTES_TOLERANCE * max(spelt, 1):
        share = 100 * (counted / max(spelt, 1) - 1)
        return figure, False, f"It divides by {share:+.2f} % other bytes than the text has, which changes the score as much."
    if claims.original_bytes:
        figure += f", {claims.original_bytes:,} in the documents"
        if abs(spelt - claims.original_bytes) > BYTES_TOLERANCE * claims.original_bytes:
            return figure, False, "The tokens spell another number of bytes than the documents have."
    known = KNOWN_BYTES.get(len(tokens) - 1)
    if known is not None:
        figure += f", {known:,} published"
        if abs(counted - known) > BYTES_TOLERANCE * known:
            return figure, False, "The challenge's text has another number of bytes."
    return figure, True, "It divides by the bytes that the text really has."


def size(claims: Claims, tokens: np.ndarray) -> Verdict:
    if not claims.artifact_files or not claims.code_files:
        return "not said", None, "It does not name the files of its model and its code."
    sizes = {}
    for name in (*claims.artifact_files, *claims.code_files):
        path = Path(name)
        if not path.is_file():
            return "missing", False, f"{path.name}, which it names, does not exist."
        sizes[path.resolve()] = path.stat().st_size
    total = sum(sizes.values()) - claims.uncounted_bytes
    helpers = sum(path.stat().st_size for path in local_files_beside(claims))
    figure = f"{total:,} bytes, {claims.size_limit - total:+,} to the limit"
    if helpers:
        figure += f"; {total + helpers:,} with the files that its code imports"
    if total + helpers > claims.size_limit:
        return figure, False, "Model, code and everything that the code needs do not fit the limit."
    if claims.claimed_bytes is not None and claims.claimed_bytes < total:
        says = f"It reports {claims.claimed_bytes:,} bytes, fewer than its files have; if the code has changed, pack again."
        return figure, False, says
    return figure, True, "Model and code, counted again, fit the limit."


def local_files_beside(claims: Claims) -> list[Path]:
    """Python and C files next to the code files that these name in an import or as a string, and that were not counted."""
    counted = {Path(name).resolve() for name in (*claims.code_files, *claims.artifact_files)}
    paths: set[Path] = set()
    waiting = [path for path in counted if path.suffix == ".py"]
    while waiting:
        path = waiting.pop()
        text = path.read_text(encoding="utf-8", errors="replace")
        for other in path.parent.iterdir():
            names = other.suffix in (".py", ".c", ".cpp", ".cu", ".so") and other.resolve() not in counted | paths
            if names and (other.name in text or (other.suffix == ".py" and _imports(text, other.stem))):
                paths.add(other.resolve())
                waiting += [other.resolve()] if other.suffix == ".py" else []
    return sorted(paths)


def _imports(text: str, module: str) -> bool:
    import ast

    try:
        tree = ast.parse(text)
    except SyntaxError:
        return module in text
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == module for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom):
            names = [(node.module or "").split(".")[-1], *(alias.name for alias in node.names)]
            if module in names:
                return True
    return False


def seconds(claims: Claims, tokens: np.ndarray) -> Verdict:
    figures, late = [], []
    for name, spent, limit, parts in (
        ("training", claims.train_seconds, claims.train_limit, claims.train_parts),
        ("scoring", claims.score_seconds, claims.score_limit, claims.score_parts),
    ):
        if spent is None:
            continue
        rest = spent - sum(parts.values()) if parts else 0.0
        figures.append(f"{name} {spent:.1f} s of {limit:.0f}" + (f", {rest:+.1f} s in no part" if parts else ""))
        if spent > limit:
            late.append(f"{name} took {spent:.0f} s, {spent - limit:.0f} more than allowed")
        if rest < -0.01 * max(spent, 1.0):
            late.append(f"{' and '.join(parts)} together take {sum(parts.values()):.0f} s, more than {name} is said to take")
    if not figures:
        return "not said", None, "It does not say how long training and scoring took."
    if late:
        return "; ".join(figures), False, f"{'; '.join(late)}.".capitalize()
    return "; ".join(figures), True, "Training and scoring, with all their parts, kept to their clocks."


def documents(claims: Claims, tokens: np.ndarray) -> Verdict:
    if claims.validation_documents is None or claims.training_documents is None:
        return "not said", None, "It does not say which documents it was trained and scored on."
    held_out = list(claims.validation_documents())
    shared = set(held_out) & set(claims.training_documents())
    figure = f"{len(held_out):,} validation documents, {len(shared):,} of them in training{claims.documents_note}"
    if shared:
        return figure, False, f"{len(shared):,} documents that it is scored on were there to train on."
    if claims.canonical_count and len(held_out) != claims.canonical_count:
        says = f"The validation text is meant to have {claims.canonical_count:,} documents, and has {len(held_out):,}."
        return figure, False, says
    if claims.canonical_documents is not None:
        canonical = list(claims.canonical_documents())
        if canonical != held_out:
            extra = len(set(held_out) - set(canonical)) or abs(len(held_out) - len(canonical))
            says = f"It is scored on another text than everybody: {extra:,} of the documents are others, or in another order."
            return f"{figure}, {len(canonical):,} canonical", False, says
    return figure, True, "No document that it is scored on was there to train on."


def passages(claims: Claims, tokens: np.ndarray) -> Verdict:
    share = claims.shared_passages() if claims.shared_passages is not None else None
    if share is None:
        return "not said", None, "It does not say which passages its training text shares with the text that it is scored on."
    figure = f"{share:.2%} of the validation text in passages of {PASSAGE} bytes or more that were there to train on"
    if claims.canonical_count:
        return figure, None, "The challenge's own split: nothing that this submission could change."
    if share > PASSAGES_ALLOWED:
        return figure, False, "Part of what it is scored on stands in other documents that it was trained on."
    return figure, True, "What it is scored on was not copied from what it was trained on."


def seeds(claims: Claims, tokens: np.ndarray) -> Verdict:
    runs = claims.seeds
    if not runs:
        return "one run", None, "One run says nothing of the spread between seeds; a record needs three runs."
    scores = [run.score for run in runs]
    spread = stdev(scores) if len(scores) > 1 else math.nan
    figure = f"{len(runs)} seeds, mean {mean(scores):.4f}, standard deviation {spread:.4f}"
    if len({run.configuration for run in runs}) > 1:
        return figure, False, "The runs have different settings or hardware, not only different seeds."
    if len({run.seed for run in runs}) < SEEDS_WANTED:
        return figure, False, f"There are {len({run.seed for run in runs})} seeds where {SEEDS_WANTED} are wanted."
    return figure, True, "Three runs or more, of one configuration and different seeds."


CHECKS: tuple[tuple[str, str, str, Callable[[Claims, np.ndarray], Verdict]], ...] = (
    ("B1", "metric", "bytes are counted as the text has them", byte_count),
    ("A2", "size", "model and code fit the limit", size),
    ("T1", "clocks", "training and scoring keep to their clocks", seconds),
    ("L1", "data", "no document is in training and validation", documents),
    ("L2", "data", "no passage is in training and validation", passages),
    ("S", "evidence", "several seeds of one configuration", seeds),
)
