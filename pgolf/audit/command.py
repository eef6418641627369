"""`python -m pgolf.run audit`: the audit of a run, or of somebody's scorer; what it prints and what it leaves behind."""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pgolf.audit import checks, page, streams
from pgolf.audit.auditor import Report, audit, joined, sums_of, uniform_of
from pgolf.audit.checks import Finding
from pgolf.audit.interface import SECONDS_LIMIT, AuditError, Claims
from pgolf.audit.runs import RunSubject
from pgolf.audit.subjects import scorer_named
from pgolf.audit.trials import Effort, OneScorer, Trials
from pgolf.config import Settings, load_preset, read_toml
from pgolf.data import Dataset, default_dataset, open_shard
from pgolf.files import write_whole
from pgolf.folder import RunFolder
from pgolf.report import audit_page
from pgolf.score_log import ScoreLog
from pgolf.summary import Summary

# of the scoring clock
SHARE = 0.2
# calls as long as the sample beside those for every cut, and as long as the sandbox takes
WHOLE_CALLS = 20.0
MOST_TARGETS = 200_000
# futures that are changed where the clock is short
FEWEST_CUTS = 2
# training tokens whose documents are hashed; more takes longer than the audit may
HASHED_TOKENS = 200_000_000
FINEWEB_DOCUMENTS = 50_000
# of the published mixtures: before this many tokens #688's rests
WARMUP = 10_000
PUBLISHED_TESTS = ("N1", "N2", "N5")
RECORD_TOLERANCE = 2e-4

# what a stream may be longer than its score says: the coder's rounding, and its head
DECODED_SHARE, DECODED_BITS = 0.01, 8 * 64
# tokens of a text that is made up for a scorer
MADE_UP = 20_000
SCORER_SECONDS = 60.0

Progress = Callable[[str, float], None]


def audit_run(
    folder: RunFolder,
    dataset: Dataset,
    code: bytes,
    *,
    device="cpu",
    targets: int = 0,
    seed: int = 0,
    progress: Progress = lambda name, share: None,
) -> Report:
    """All predictors of a run that call themselves code lengths, and what the published one adds up to."""
    begun = time.perf_counter()
    settings, summary = read_toml(folder.config), folder.read_summary()
    if not summary.artifact or not summary.score or not summary.scoring:
        raise AuditError(f"{folder.path} is not finished: it has no {'score' if summary.artifact else 'artifact'} to audit")
    tokens = np.asarray(dataset.val_tokens())
    partial = any(score.partial for score in summary.score.values())
    scored = tokens[: settings.evaluation.scored_targets(len(tokens) - 1) + 1]
    legal = [name for name, score in summary.score.items() if score.legal]
    subject = RunSubject(folder, legal, device=device)
    seconds = SHARE * settings.evaluation.seconds
    effort = effort_for(subject, scored, seconds - (time.perf_counter() - begun), targets)
    with tempfile.TemporaryDirectory(prefix="pgolf-audit-") as place:
        script = Path(place) / "train_gpt.py"
        script.write_bytes(code)
        subject.claims = claims_of_run(subject, settings, summary, dataset, tokens, script, partial)
        # the sandbox gets the artifact and the settings of its scoring, nothing else of the run
        clean = RunFolder.create(Path(place) / "clean")
        shutil.copyfile(folder.config, clean.config)
        shutil.copyfile(folder.artifact, clean.artifact)
        name = f"run={clean.path}"
        report = audit(subject, scored, effort=effort, stream=tokens, name=name, seed=seed, progress=progress)
    report.findings += record_findings(folder, subject, scored, effort)
    if settings.evaluation.mixer.published != "none":
        report = joined([report, audit_published(folder, scored, effort, device, seed)])
    report.seconds = time.perf_counter() - begun
    return report


def effort_for(subject: RunSubject, tokens: np.ndarray, seconds: float, targets: int = 0) -> Effort:
    """As large a sample as the time allows, but never one in which the scorer has nothing to do."""
    effort = Effort(substitutions=1, probes=32)
    if not targets:
        least = subject.least_targets
        trial = tokens[: least // 2 + 1]
        # once for whatever is compiled or loaded on the way
        subject.score(tokens[: subject.settings.window + 1])
        begun = time.perf_counter()
        subject.score(trial)
        rate = (time.perf_counter() - begun) / (len(trial) - 1)
        affordable = seconds / rate
        if affordable < least * (WHOLE_CALLS + effort.cuts):
            effort = replace(effort, cuts=FEWEST_CUTS)
        targets = int(max(least, min(affordable / (WHOLE_CALLS + effort.cuts), MOST_TARGETS)))
    return replace(effort, targets=min(targets, len(tokens) - 1))


def claims_of_run(
    subject: RunSubject,
    settings: Settings,
    summary: Summary,
    dataset: Dataset,
    tokens: np.ndarray,
    script: Path,
    partial: bool,
) -> Claims:
    folder_claims, table = subject.claims, subject.table
    train, scoring, artifact = summary.train, summary.scoring, summary.artifact
    assert scoring and artifact and summary.main_score
    known = json.loads((dataset.folder / "dataset.json").read_bytes()) if (dataset.folder / "dataset.json").exists() else {}
    shards, note = hashed_shards(dataset)
    assert folder_claims.may_read is not None
    return replace(
        folder_claims,
        bytes_of=lambda stream: table.count(stream[:-1], stream[1:]),
        decode=lambda stream: subject.tokenizer.decode_bytes(np.asarray(stream).tolist()),
        original_bytes=known.get("bytes", {}).get("val", 0) if known.get("lossless") else 0,
        artifact_files=(folder_claims.may_read[1],),
        code_files=(str(script),),
        uncounted_bytes=artifact.tokenizer_bytes,
        claimed_bytes=artifact.total_bytes,
        size_limit=settings.artifact.limit,
        train_seconds=train.seconds if train else None,
        # a fixed number of steps has no clock of its own, only the challenge's
        train_limit=SECONDS_LIMIT if settings.training.steps else settings.training.seconds,
        train_parts=train.parts if train else {},
        score_seconds=scoring.seconds,
        score_limit=scoring.limit,
        score_parts=scoring.parts,
        scored_targets=None if partial else summary.main_score.tokens,
        stream_targets=None if partial else settings.evaluation.scored_targets(len(tokens) - 1),
        training_documents=lambda: documents_of(dataset, map(open_shard, shards)),
        validation_documents=lambda: documents_of(dataset, [tokens]),
        canonical_count=FINEWEB_DOCUMENTS if dataset.name.startswith("fineweb") else 0,
        documents_note=note,
    )


def hashed_shards(dataset: Dataset) -> tuple[list[Path], str]:
    """Training shards up to a number of tokens, and a word if these are not all."""
    chosen: list[Path] = []
    sum_of_tokens = 0
    for shard in dataset.train_shards:
        sum_of_tokens += shard.stat().st_size // 2
        if chosen and sum_of_tokens > HASHED_TOKENS:
            return chosen, f" ({len(chosen)} of {len(dataset.train_shards)} shards)"
        chosen.append(shard)
    return chosen, ""


def documents_of(dataset: Dataset, arrays: Iterable[np.ndarray]) -> Iterable[bytes]:
    for tokens in arrays:
        yield from dataset._document_hashes(np.asarray(tokens))


# ---- what was recorded


def record_findings(folder: RunFolder, subject: RunSubject, tokens: np.ndarray, effort: Effort) -> list[Finding]:
    """Whether score.jsonl adds up to the scores, and whether scoring its beginning again gives the same."""
    summary, found = folder.read_summary(), []
    record = ScoreLog(folder.scores).read()
    plan = json.loads(folder.plan.read_text(encoding="utf-8")) if folder.plan.exists() else None
    subject.plan = plan
    beginning = tokens[: effort.targets + 1]
    again = subject.score(beginning, total=len(tokens) - 1)
    for result in subject.results:
        score = summary.score[result]
        nats = record.nats.get(result, np.empty(0))
        same_text = np.array_equal(record.tokens, tokens[1:])
        total = math.fsum(nats)
        off = abs(total - score.nats)
        holds = same_text and len(nats) == score.tokens == len(tokens) - 1 and off <= 1e-5 * len(nats)
        says = "The recorded costs, one a target of the validation text, add up to the score."
        if not holds:
            says = "The recorded costs are not those of the validation text's targets, or do not add up to the score."
        figure = f"{len(nats):,} costs, {off:.1e} nats off"
        found.append(Finding("C4", "C4", "the record adds up to the score", result, figure, holds, says))
        count = min(len(again[result].nats), len(nats))
        gap = checks.apart(again[result].nats[:count], nats[:count])
        allowed = max(RECORD_TOLERANCE, subject.claims.noise)
        figure = f"{count:,} targets, at most {gap:.1e} nats apart"
        says = "Scored again, the beginning of the text costs what the record says."
        if gap > allowed:
            says = "Scored again, the beginning of the text costs something else than the record says."
        found.append(Finding("R1", "C4", "the record comes out again", result, figure, count > 0 and gap <= allowed, says))
    return found


# ---- the published mixtures: what they add up to


def audit_published(folder: RunFolder, tokens: np.ndarray, effort: Effort, device, seed: int) -> Report:
    """Their sums at probed places, and the noise. #688's mixer rests until it has counted 10,000 tokens, so it is given
    those first: the text before, or noise before noise."""
    subject = RunSubject(folder, published=True, device=device)
    trials = published_trials(subject, tokens, effort, seed)
    findings = list(checks.findings(trials, "published", subject.claims, PUBLISHED_TESTS))
    return Report(findings, [], 0.0, sums_of(trials), uniform_of(trials))


def published_trials(subject: RunSubject, tokens: np.ndarray, effort: Effort, seed: int = 0) -> Trials:
    rng = np.random.default_rng(seed)
    settings = subject.settings
    waits = settings.mixer.published == "hedge"
    targets = max(2 * settings.adaptation.chunk_tokens if waits else 0, min(effort.targets, 4096))
    skipped = min(WARMUP, max(0, len(tokens) - 1 - targets)) if waits else 0
    text = tokens[skipped : skipped + targets + 1]
    # a text too short for both is counted again
    before = np.resize(tokens[: max(skipped, 1)], WARMUP) if waits else None
    noise_before = streams.uniform(WARMUP, subject.vocab, rng, int(tokens[0])) if waits else None
    trials = Trials(text.astype(np.int64), subject.vocab)
    trials.probes = sorted(rng.choice(trials.targets, min(2 * effort.probes, trials.targets), replace=False).tolist())
    trials.plain = trials.probed = subject.score(text, trials.probes, before=before)
    coins = streams.uniform(len(text), subject.vocab, rng, int(text[0]))
    trials.uniform = coins, subject.score(coins, before=noise_before)
    return trials


# ---- somebody's scorer


def audit_scorer(name: str, tokens: str, cache: Path, targets: int, seed: int, progress: Progress) -> Report:
    subject = OneScorer(scorer_named(name))
    text = tokens_from(Path(tokens)) if tokens else text_for(subject.vocab, subject.claims.bos, cache)
    if not targets:
        begun = time.perf_counter()
        tried = min(256, len(text) - 1)
        subject.score(text[: tried + 1])
        rate = (time.perf_counter() - begun) / tried
        targets = max(Effort.targets, min(int(SCORER_SECONDS / rate / (WHOLE_CALLS + Effort.cuts)), len(text) - 1, MADE_UP))
    path, _, what = name.rpartition(":")
    elsewhere = f"{Path(path).resolve()}:{what}" if path.endswith(".py") else name
    effort = Effort(targets=targets)
    return audit(subject, text, effort=effort, name=f"scorer={elsewhere}", seed=seed, progress=progress)


def tokens_from(path: Path) -> np.ndarray:
    if path.suffix != ".npy":
        return np.asarray(open_shard(path))
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise AuditError(f"{path} holds no tokens: {error}") from None
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise AuditError(f"{path} holds no tokens: it has the shape {found.shape} and the type {found.dtype}")
    return found


def text_for(vocab: int, bos: int | None, cache: Path) -> np.ndarray:
    """The built-in corpus for scorers of its vocabulary; for others documents of an n-gram back-off with few successors."""
    built_in = load_preset("quick").model.vocab_size
    if vocab == built_in:
        return np.asarray(default_dataset(cache, vocab_size=built_in).val_tokens())
    rng = np.random.default_rng(0)
    followers = rng.integers(0, vocab, (vocab, 4))
    tokens = [0 if bos is None else bos]
    while len(tokens) < MADE_UP:
        if bos is not None and rng.random() < 0.005:
            tokens.append(bos)
        else:
            tokens.append(int(followers[tokens[-1], min(rng.geometric(0.5) - 1, 3)]))
    return np.array(tokens)


# ---- the proof by decoding


def decode_run(folder: RunFolder, dataset: Dataset, count: int, progress: Progress) -> dict:
    """The first `count` tokens of the validation text through the codec and back, beside what they are said to cost."""
    from pgolf.evaluation.codec import prove

    tokens = np.asarray(dataset.val_tokens())[: count + 1]
    settings = read_toml(folder.config)
    found = prove(folder.artifact, tokens, settings, progress=lambda share: progress("compressing and decoding", share))
    allowed = found["claimed_bits"] * (1 + DECODED_SHARE) + DECODED_BITS
    found["passed"] = bool(found["equal"] and found["real_bits"] <= allowed)
    return found


# ---- what is left behind


def publish(report: Report, folder: Path, title: str, say: Callable[[str], None]) -> int:
    """Says it, writes audit.json and audit.html, and gives the exit code."""
    for line in (*page.lines(report), *page.preflight(report), page.verdict(report)):
        say(line)
    write_whole(folder / "audit.json", json.dumps(report.as_dict(), indent=1) + "\n")
    write_whole(folder / "audit.html", audit_page.page(report.as_dict(), title))
    say(f"page {folder / 'audit.html'}")
    return 0 if report.passed else 1
