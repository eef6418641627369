"""A finished run's summary.json, recounted from its other files (config.toml, model.pgolf, score.jsonl, plan.json,
train.jsonl), the dataset and the script. Whatever it says otherwise is named.

What only the run itself could know (seconds, the device, versions) is held against train.jsonl and against its own parts.
"""

import functools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from pgolf.artifact.compression import pack_text
from pgolf.artifact.container import read_container
from pgolf.artifact.pack import META_LIMIT, REQUIRED, Size, read_artifact, size_of
from pgolf.audit.checks.base import Finding
from pgolf.audit.interface import SIZE_LIMIT, AuditError
from pgolf.budget import Budget
from pgolf.compressors import ALWAYS, OWN, measured
from pgolf.config import Settings, from_table, scoring_table
from pgolf.data import Dataset
from pgolf.evaluation.evaluate import Result
from pgolf.evaluation.metric import score_of
from pgolf.evaluation.planner import PlanError, Planner
from pgolf.evaluation.predictors.selection import bases_of, predictors_of, wants_main_pass
from pgolf.evaluation.predictors.temperature import policy
from pgolf.evaluation.records import paired_gain
from pgolf.evaluation.stream import document_starts
from pgolf.folder import RunFolder
from pgolf.model import count_parameters
from pgolf.score_log import Part

# score.jsonl keeps five decimals of each cost
NATS_TOLERANCE = 1e-5
SHARE_TOLERANCE = 1e-6
SHOWN = 4
# bytes of text that are compressed again
MOST_RECOUNTED = 4_000_000


@dataclass(frozen=True)
class Expected:
    """What the settings say of a run's results."""

    legal: dict[str, bool]
    """Of every result, in order, whether it is a code length."""
    bases: dict[str, str]
    main: str


def expected_results(settings: Settings, vocab: int, targets: int) -> Expected:
    options = settings.evaluation
    legal = {"non_overlapping": True}
    bases: dict[str, str] = {}
    if wants_main_pass(options):
        predictors = predictors_of(options, vocab, targets, policy(options.temperature))
        if options.adaptation.method != "none" and options.sliding:
            legal["sliding"] = True
            if options.published_tail:
                legal["sliding_published"] = False
        legal |= {predictor.name: predictor.legal for predictor in predictors}
        bases = bases_of(predictors, legal) | ({"sliding": "non_overlapping"} if "sliding" in legal else {})
    return Expected(legal, bases, [name for name, is_legal in legal.items() if is_legal][-1])


def recount(
    folder: RunFolder, settings: Settings, summary: dict, dataset: Dataset, tokens: np.ndarray, record: Part, code: bytes
) -> Iterator[Finding]:
    """F1: figures of the scores. F2: sizes, data and training. `tokens` is what was scored of the validation text."""
    artifact = read_artifact(folder.artifact)
    expected = expected_results(settings, artifact.model_settings.vocab_size, len(tokens) - 1)
    plan = read_plan(folder.plan)
    wrong = [*score_differences(summary, expected, settings, dataset, tokens, record, plan, folder.artifact.stat().st_size)]
    yield finding("F1", "the summary's scores are those of its files", wrong)
    wrong = [*size_differences(summary, folder, settings, dataset, artifact, code)]
    wrong += [*training_differences(summary, folder, settings, dataset, artifact)]
    yield finding("F2", "sizes, data and training are those of its files", wrong)


def finding(id: str, title: str, wrong: list[str]) -> Finding:
    if not wrong:
        return Finding(id, "record", title, "all", "recounted", True, "Recounted from its files, the summary says the same.")
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    says = f"summary.json says otherwise than its files: {'; '.join(wrong[:SHOWN])}{more}."
    return Finding(id, "record", title, "all", f"{len(wrong)} figures", False, says)


def differences(said, found, where: str, tolerance: float = SHARE_TOLERANCE) -> Iterator[str]:
    """Every figure of `found` that `said` gives otherwise, by its dotted name."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            known = said.get(key) if isinstance(said, Mapping) else None
            yield from differences(known, value, f"{where}.{key}" if where else str(key), tolerance)
        return
    if isinstance(found, float) and isinstance(said, int | float) and not isinstance(said, bool):
        if math.isclose(said, found, rel_tol=tolerance, abs_tol=tolerance) or (math.isnan(said) and math.isnan(found)):
            return
    elif said == found and type(said) is type(found):
        return
    yield f"{where} is {shown(said)}, recounted {shown(found)}"


def shown(value) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)[:60]


# ---- scores


def score_differences(
    summary: dict,
    expected: Expected,
    settings: Settings,
    dataset: Dataset,
    tokens: np.ndarray,
    record: Part,
    plan: dict | None,
    artifact_bytes: int,
) -> Iterator[str]:
    said = summary.get("score", {})
    table = dataset.tokenizer.byte_table
    sizes = table.count(tokens[:-1], tokens[1:])
    given_up = gave_up(settings, len(tokens) - 1, plan)
    may_be_missing = set(given_up.get("results", ()))
    partial = 0 < settings.evaluation.max_tokens < len(dataset.val_tokens()) - 1
    for name in said:
        if name not in expected.legal:
            yield f"score.{name} is no result that the settings ask for"
    for name, legal in expected.legal.items():
        if name not in said:
            if name.removesuffix("_published") not in may_be_missing:
                yield f"score.{name} is missing"
            continue
        yield from differences(said[name].get("legal"), legal, f"score.{name}.legal")
        yield from differences(said[name].get("partial", False), partial, f"score.{name}.partial")
        nats = record.nats.get(name)
        if nats is None:
            yield f"score.jsonl has no costs of {name}"
            continue
        if len(nats) != len(sizes) or not np.array_equal(record.tokens, tokens[1:]):
            yield f"score.jsonl has other targets than the validation text, of {name}"
            continue
        if not legal and said[name].get("tokens") != len(nats):
            # published windows score the last targets more than once, which score.jsonl does not repeat
            yield from consistent(said[name], f"score.{name}")
            continue
        score = score_of(nats, sizes, legal)
        tolerance = NATS_TOLERANCE / max(abs(score.loss), 1e-9)
        yield from differences(said[name], score.as_dict(), f"score.{name}", tolerance)
        base = expected.bases.get(name)
        if base is None and said[name].get("gain") is not None:
            yield f"score.{name}.gain is {said[name]['gain']}, but it builds on nothing"
        if base in record.nats and base in said:
            yield from differences(said[name].get("baseline"), base, f"score.{name}.baseline")
            below, above = (Result(score, 0.0, costs) for costs in (record.nats[base], nats))
            gain, error = paired_gain(below, above, sizes, document_starts(tokens, dataset.tokenizer.bos))
            found = {"gain": gain, "gain_error": error}
            yield from differences(said[name], found, f"score.{name}", 1e-4)
    yield from differences(summary.get("main"), expected.main, "main")
    if not np.array_equal(record.bytes, sizes):
        yield "score.jsonl counts other bytes than the tokens spell"
    scoring = summary.get("scoring", {})
    said_given_up = scoring.get("gave_up", {})
    if set(said_given_up) != set(given_up):
        yield f"scoring.gave_up names {sorted(said_given_up)}, but the plan {sorted(given_up)}"
    yield from differences(said_given_up, given_up, "scoring.gave_up")
    yield from differences(scoring.get("limit"), settings.evaluation.seconds, "scoring.limit")
    yield from differences(scoring.get("seconds"), seconds_of(scoring), "scoring.seconds", 1e-3)
    yield from differences(
        scoring.get("over_limit", False), scoring.get("seconds", 0.0) > settings.evaluation.seconds, "scoring.over_limit"
    )
    if expected.main in record.nats and summary.get("compressors"):
        own = math.ceil(math.fsum(record.nats[expected.main]) / math.log(2) / 8) + artifact_bytes
        yield from compressor_differences(summary["compressors"], dataset, tokens, own)


# of the same text in one process
measured_once = functools.cache(measured)


def consistent(score: dict, where: str) -> Iterator[str]:
    """Whether loss and bits per byte are those of its own nats, tokens and bytes."""
    try:
        found = {"loss": score["nats"] / score["tokens"], "bpb": score["nats"] / math.log(2) / score["bytes"]}
    except (KeyError, TypeError, ZeroDivisionError):
        found = {"nats": math.nan}
    yield from differences(score, found, where)


def seconds_of(stage: Mapping) -> float | None:
    """What a stage's parts add up to."""
    parts = stage.get("parts")
    if not isinstance(parts, Mapping) or not all(isinstance(value, int | float) for value in parts.values()):
        return None
    return float(math.fsum(parts.values()))


def compressor_differences(said: dict, dataset: Dataset, tokens: np.ndarray, own: int) -> Iterator[str]:
    """Of what the score is held against: those that are everywhere are run again, of the others bits follow from bytes."""
    text = dataset.tokenizer.decode_bytes(tokens.tolist())
    training = dataset.training_text() if dataset.reads_whole() else b""
    names = tuple(name for name in ALWAYS if name in said and len(text) + len(training) <= MOST_RECOUNTED)
    found = {name: asdict(peer) for name, peer in measured_once(text, training, names=names).items()}
    for name, peer in said.items():
        known: dict[str, float] = {"text_bytes": len(text)}
        for size, bits in (("bytes", "bpb"), ("primed_bytes", "primed_bpb")):
            if isinstance(count := peer.get(size), int):
                known[bits] = 8 * count / len(text)
        yield from differences(peer, found.get(name, known), f"compressors.{name}")
    if OWN in said and abs(said[OWN].get("bytes", 0) - own) > 1:
        yield f"compressors.{OWN}.bytes is {said[OWN].get('bytes')}, recounted {own:,}"


def read_plan(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise AuditError(f"{path} is no plan: {error}") from None


def gave_up(settings: Settings, targets: int, plan: dict | None) -> dict:
    """What the plan says that was given up for the clock."""
    options = settings.evaluation
    epochs = options.adaptation.epochs if options.adaptation.method == "chunks" else 0
    try:
        planner = Planner(
            Budget(1e9), targets=targets, window=options.window, stride=options.stride, epochs=epochs, replay=plan
        )
        if plan:
            planner.spans, planner.choices = list(plan["spans"]), dict(plan["choices"])
            planner.plain_documents = list(plan["plain_documents"])
        return planner.gave_up()
    except (PlanError, KeyError, TypeError, ValueError) as error:
        raise AuditError(f"plan.json cannot be followed: {error}; score the run again") from None


# ---- everything else


def counted_size(path: Path, dataset: Dataset, limit: int, code_bytes: int) -> Size:
    """What the artifact takes as the rules count it: the tokenizer is free only as far as it is the dataset's own."""
    size = size_of(read_container(path), limit, code_bytes)
    own = dataset.tokenizer_path.read_bytes()
    free = min(size.tokenizer_bytes, len(pack_text(own))) if read_artifact(path).tokenizer == own else 0
    return replace(size, model_bytes=size.model_bytes + size.tokenizer_bytes - free, tokenizer_bytes=free)


def size_differences(
    summary: dict, folder: RunFolder, settings: Settings, dataset: Dataset, artifact, code: bytes
) -> Iterator[str]:
    size = counted_size(folder.artifact, dataset, min(settings.artifact.limit, SIZE_LIMIT), len(code))
    if artifact.tokenizer != dataset.tokenizer_path.read_bytes():
        yield "model.pgolf carries another tokenizer than the dataset's"
    own = set(artifact.sections) - {*REQUIRED, "ngram_backoff", "text"}
    if own:
        yield f"model.pgolf holds sections that nothing reads: {', '.join(sorted(own))}"
    stored = artifact.meta.get("scoring", {})
    if len(json.dumps(artifact.meta)) > META_LIMIT or stored != json.loads(json.dumps(scoring_table(settings))):
        yield "model.pgolf says that it is scored otherwise than config.toml does"
    else:
        from_table(stored, Settings(model=artifact.model_settings), "the artifact's settings")
    if artifact.model_settings != settings.model:
        yield "model.pgolf holds another network than config.toml describes"
    yield from differences(summary.get("artifact", {}), size.as_dict(), "artifact")


def training_differences(summary: dict, folder: RunFolder, settings: Settings, dataset: Dataset, artifact) -> Iterator[str]:
    corpus: dict[str, str | float | None] = {"name": dataset.name, "digest": dataset.digest}
    if (summary.get("corpus") or {}).get("shared") is not None:
        corpus["shared"] = dataset.shared
    known = {"preset": settings.preset, "seed": settings.seed, "corpus": corpus}
    for name, value in known.items():
        if summary.get(name) is not None:
            yield from differences(summary[name], value, name)
    if summary.get("parameters") is not None:
        parameters = count_parameters(artifact.build_model())
        yield from differences(summary["parameters"], parameters, "parameters")
    train = summary.get("train")
    if not train:
        return
    yield from differences(train.get("limit"), settings.training.seconds, "train.limit")
    end = last_event(folder.train_log, "end")
    if end is None:
        return
    yield from differences(train, {name: end[name] for name in ("steps", "tokens", "loss", "weights") if name in end}, "train")
    parts = end.get("seconds", {}).get("parts", {})
    yield from differences(train.get("parts", {}), parts, "train.parts")
    yield from differences(train.get("seconds"), seconds_of(train), "train.seconds", 1e-3)
    over = not settings.training.steps and train.get("seconds", 0.0) > settings.training.seconds
    yield from differences(train.get("over_limit", False), over, "train.over_limit")


def last_event(path: Path, kind: str) -> dict | None:
    if not path.exists():
        return None
    found = None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("kind") == kind:
            found = event
    return found
