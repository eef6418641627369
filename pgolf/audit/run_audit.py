"""The audit of a finished run: its record, everything scored again, sampled positions replayed, and the trials."""

import json
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from pgolf.audit import checks, replay, streams
from pgolf.audit.auditor import Report, alone, audit, fresh_seed, in_order, joined, sums_of, uniform_of
from pgolf.audit.checks import Finding
from pgolf.audit.external import Processes, ScorerFailed
from pgolf.audit.interface import NOISE_CAP, SECONDS_LIMIT, SIZE_LIMIT, AuditError, Claims
from pgolf.audit.records import counted_size, expected_results, recount
from pgolf.audit.runs import RunSubject, processes_of
from pgolf.audit.sandbox import note
from pgolf.audit.trials import Effort, Trials
from pgolf.config import Settings, read_toml
from pgolf.data import Dataset, open_shard
from pgolf.files import temporary_folder
from pgolf.folder import RunFolder
from pgolf.score_log import Part, ScoreLog
from pgolf.summary import Summary

# for the trials: a share of the scoring clock, and seconds at most
SHARE, MOST_SECONDS = 0.2, 24.0
# calls as long as the sample beside those for every cut
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
RUN_REPLAY_SECONDS = 6.0

Progress = Callable[[str, float], None]


def audit_run(
    folder: RunFolder,
    dataset: Dataset,
    code: bytes,
    *,
    device="cpu",
    targets: int = 0,
    seed: int | None = None,
    progress: Progress = lambda name, share: None,
) -> Report:
    """All predictors of a run that call themselves code lengths, its record, and what the published one adds up to.

    The record is its claim. All of it is scored again in a process that has the artifact and the settings alone, and
    sampled positions are replayed from their past (replay.py).
    """
    begun = time.perf_counter()
    settings, summary = read_toml(folder.config), folder.read_summary()
    if not summary.artifact or not summary.score or not summary.scoring:
        raise AuditError(f"{folder.path} is not finished: it has no {'score' if summary.artifact else 'artifact'} to audit")
    tokens = np.asarray(dataset.val_tokens())
    count = settings.evaluation.scored_targets(len(tokens) - 1)
    partial = 0 < settings.evaluation.max_tokens < len(tokens) - 1
    scored = tokens[: count + 1].astype(np.int64)
    record = ScoreLog(folder.scores).read()
    findings = list(recount(folder, settings, asdict(summary), dataset, scored, record, code))
    expected = expected_results(settings, settings.model.vocab_size, len(scored) - 1)
    legal = [name for name, is_legal in expected.legal.items() if is_legal and name in record.nats]
    if expected.main not in legal:
        raise AuditError(f"{folder.scores} has no costs of {expected.main}, the run's score; score the run again")
    subject = RunSubject(folder, legal, device=device)
    effort = effort_for(subject, scored, min(SHARE * settings.evaluation.seconds, MOST_SECONDS), targets)
    with temporary_folder("audit") as place, ThreadPoolExecutor(2) as pool:
        script = place / "train_gpt.py"
        script.write_bytes(code)
        subject.claims = claims_of_run(subject, settings, summary, dataset, tokens, script, partial)
        again = processes_of(subject, folder, place / "again", expected.main, legal)
        replays = processes_of(subject, folder, place / "replays", expected.main, [expected.main])
        seed = fresh_seed() if seed is None else seed
        whole = len(record.tokens) == len(scored) - 1 == len(record.nats[expected.main])
        rescored = pool.submit(scored_again, again, scored, expected.main)
        replayed = pool.submit(replayed_run, replays, scored, record.nats[expected.main], seed) if whole else None
        report = audit(subject, scored, effort=effort, stream=tokens, seed=seed, progress=progress)
        progress("scoring it again", 0.8)
        costs, failure = rescored.result()
        losses, more = record_findings(subject, scored, record, costs)
        report.findings += [*findings, *more, alone(again, scored, failure)]
        if replayed is not None:
            evidence = replayed.result()
            if evidence is not None:
                counts = subject.table.count(scored[:-1], scored[1:])
                report.findings += replay.findings_of(evidence, subject.claims.noise, expected.main)
                report.bound = bound_of_run(losses.get(expected.main), replace(evidence, byte_counts=counts))
    if settings.evaluation.mixer.published != "none":
        report = joined([report, audit_published(folder, scored, effort, device, seed)])
    report.notes.append(note())
    report.findings = in_order(report.findings, [*subject.results, "published"])
    report.seconds = time.perf_counter() - begun
    return report


def scored_again(processes: Processes, tokens: np.ndarray, main: str) -> tuple[dict[str, np.ndarray], str]:
    """Every result's costs of the whole stream by a fresh process, and what went wrong."""
    process = processes.start()
    try:
        scored = process.score(tokens)
        return {main: scored.nats, **scored.remarkable}, ""
    except ScorerFailed as error:
        return {}, str(error)
    finally:
        processes.finish(process)


def replayed_run(processes: Processes, tokens: np.ndarray, nats: np.ndarray, seed: int) -> replay.Replayed | None:
    try:
        speed = replay.measure(processes, tokens, False)
        return replay.replay(
            processes, replay.Claim(tokens, nats), speed, seed=seed, seconds=RUN_REPLAY_SECONDS, least=(20, 1)
        )
    except ScorerFailed:
        return None  # the process that scores everything again says why


def bound_of_run(losses: np.ndarray | None, replayed: replay.Replayed) -> dict:
    """The headline of a run. All of its record was scored again, so what that gives less is known, not estimated; the sampled
    replays, under "replayed", try whether this program's own scores come from the past alone."""
    figures = replayed.as_dict()
    if losses is None:
        return figures
    assert replayed.byte_counts is not None
    bits, count = float(losses.sum()) / math.log(2), int(replayed.byte_counts.sum())
    per_byte = bits / count if count else None
    says = (
        f"At most {bits / max(count, 1):.4f} bits per byte of this score are not earned: all {len(losses):,} targets were "
        f"scored again, alone with the artifact, and {figures['whole']['replays']:,} of them from their past alone."
    )
    known = {"targets": len(losses), "bytes": count, "bits": bits, "bits_per_token": bits / len(losses)}
    return {**figures["whole"], **known, "bits_per_byte": per_byte, "seed": figures["seed"], "replayed": figures, "says": says}


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
    assert scoring and artifact
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
        uncounted_bytes=counted_size(Path(folder_claims.may_read[1]), dataset, SIZE_LIMIT, 0).tokenizer_bytes,
        claimed_bytes=artifact.total_bytes,
        size_limit=min(settings.artifact.limit, SIZE_LIMIT),
        train_seconds=train.seconds if train else None,
        # a fixed number of steps has no clock of its own, only the challenge's
        train_limit=SECONDS_LIMIT if settings.training.steps else min(settings.training.seconds, SECONDS_LIMIT),
        train_parts=train.parts if train else {},
        score_seconds=scoring.seconds,
        score_limit=min(settings.evaluation.seconds, SECONDS_LIMIT),
        score_parts=scoring.parts,
        scored_targets=None if partial or not summary.main_score else summary.main_score.tokens,
        stream_targets=None if partial else settings.evaluation.scored_targets(len(tokens) - 1),
        training_documents=lambda: documents_of(dataset, map(open_shard, shards)),
        validation_documents=lambda: documents_of(dataset, [tokens]),
        shared_passages=lambda: dataset.shared,
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


def record_findings(
    subject: RunSubject, tokens: np.ndarray, record: Part, again: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[Finding]]:
    """Whether the record is one of this text, and whether scoring all of it again gives the same; and by how much each
    target costs more than its record says, in nats."""
    findings, losses = [], {}
    same_text = np.array_equal(record.tokens, tokens[1:])
    for result in subject.results:
        nats = record.nats[result]
        holds = same_text and len(nats) == len(tokens) - 1 and bool((nats >= 0).all())
        says = "The recorded costs are one for each target of the validation text, in order."
        if not holds:
            says = "The recorded costs are not those of the validation text's targets."
        findings.append(Finding("C4", "C4", "the record is of the whole text", result, f"{len(nats):,} costs", holds, says))
        if result not in again or len(again[result]) != len(nats):
            continue
        gap = checks.apart(again[result], nats)
        allowed = max(RECORD_TOLERANCE, min(subject.claims.noise, NOISE_CAP))
        moved = np.flatnonzero(~(np.abs(again[result] - nats) <= allowed))
        figure = f"{len(nats):,} targets, at most {gap:.1e} nats apart"
        says = "Scored again, every target costs what the record says."
        if len(moved):
            says = f"Scored again, {len(moved):,} targets cost something else than the record says, the first {moved[0]:,}."
        findings.append(Finding("R1", "C4", "the record comes out again", result, figure, not len(moved), says))
        losses[result] = np.maximum(np.nan_to_num(again[result] - nats, nan=0.0, posinf=0.0), 0.0)
    return losses, findings


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
