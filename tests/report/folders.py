"""Run folders as the stages leave them, without their work; every number is made up from a seed."""

import json
import math
from pathlib import Path

import numpy as np

TOKEN_KINDS = ["boundary", "byte", "space", "digit", "punctuation", "word start", "continuation"]
READINGS = ["non_overlapping", "sliding", "adapted", "ngram_backoff", "published"]
BOS, VOCAB = 1, 40
LENGTHS = (3, 700, 50, 1200, 17, 300)
RATES = {"matrix (muon)": 0.04, "token (adamw)": 0.006, "scalar (adamw)": 0.01, "projection (adamw)": 0.01}
CONFIG = """preset = "quick"
description = "a test"
seed = {seed}

[training]
seconds = 60.0
batch_tokens = 2048
muon_lr = {rate}
token_lr = 0.006
scalar_lr = 0.01
validate_every = 0

[evaluation]
words = 20

[evaluation.adaptation]
method = "chunks"

[evaluation.mixer]
honest = ["ngram_backoff"]
"""


def stream(lengths=LENGTHS, seed=0):
    """Tokens of documents of so many targets, the bytes of each target, and its nats by every predictor."""
    rng = np.random.default_rng(seed)
    tokens = np.concatenate([np.append(rng.integers(2, VOCAB, length - 1), BOS) for length in lengths])
    size = np.where(tokens == BOS, 0, rng.integers(1, 6, len(tokens)))
    base = rng.gamma(2.0, 1.2, len(tokens))
    nats = {name: base * (1 - 0.06 * i) + 0.1 * rng.random(len(tokens)) for i, name in enumerate(READINGS)}
    return tokens, size, nats


def write_scores(path: Path, tokens, size, nats, per_line=100, head=None):
    head = head or {
        "targets": len(tokens), "results": list(nats), "unit": "nats", "bos": BOS, "kinds": TOKEN_KINDS,
        "kind_of_token": "".join(str(i % 7) for i in range(VOCAB)),
    }  # fmt: skip
    with open(path, "w") as file:
        file.write(json.dumps(head) + "\n")
        for at in range(0, len(tokens), per_line):
            part = slice(at, at + per_line)
            line = {"start": at, "tokens": tokens[part].tolist(), "bytes": size[part].tolist()}
            file.write(json.dumps(line | {name: values[part].round(5).tolist() for name, values in nats.items()}) + "\n")


def trained(path: Path, *, seed=1, rate=0.04, steps=120, ended=True) -> Path:
    """After training, or in the middle of it."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.toml").write_text(CONFIG.format(seed=seed, rate=rate))
    events = [
        {"kind": "start", "parameters": 1234, "plan": {}, "rates": RATES},
        {"kind": "phase", "step": 0, "name": "warm-up"},
    ]
    for step in range(1, steps + 1):
        events.append({
            "kind": "step", "step": step, "loss": 3 + 4 / step + 0.1 * rng.random(), "multiplier": min(1.0, 2 - step / 60),
            "gradient_norm": 0.3 + rng.random(), "tokens_per_second": 9000 + 500 * rng.random(), "elapsed": 0.5 * step,
            "remaining": 60 - 0.5 * step,
        })  # fmt: skip
        if step == 60:
            events.append({"kind": "phase", "step": 60, "name": "quantisation-aware"})
            events.append({"kind": "validation", "step": 60, "weights": "raw", "loss": 3.3})
    if ended:
        events.append({"kind": "end", "steps": steps})
        summary = {
            "version": 2, "preset": "quick", "seed": seed, "corpus": {"name": "builtin", "digest": "ab" * 32},
            "parameters": 1234, "device": "a CPU", "versions": {"pgolf": "0.1.0"},
            "train": {"seconds": 55.0, "limit": 60.0, "parts": {"steps": 52.0, "rounding": 2.5, "other": 0.5},
                      "untimed": {"warm-up": 3.0}, "steps": steps, "tokens": 2048 * steps, "loss": 3.1, "weights": "ema"},
        }  # fmt: skip
        (path / "summary.json").write_text(json.dumps(summary))
    (path / "train.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def packed(path: Path, **options) -> Path:
    trained(path, **options)
    summary = json.loads((path / "summary.json").read_text())
    parts = {"meta": 500, "codes": 300_000, "scales": 2000, "small": 4000, "tokenizer": 5000, "frame": 200}
    summary["artifact"] = {
        "model_bytes": 306_700, "code_bytes": 200_000, "tokenizer_bytes": 5000, "limit": 16_000_000, "parts": parts,
        "total_bytes": 506_700, "margin": 15_493_300, "seconds": 3.0,
    }  # fmt: skip
    matrices = [
        {"name": name, "role": role, "shape": [64, 32], "bits": 6, "entropy": 3.5 + 0.1 * i, "error": 0.05 + 0.01 * i,
         "clip": 12.0 + i, "outliers": 0.0, "farthest": 5.0 + i, "zeros": 0.2, "correction": 0}
        for i, (name, role) in enumerate(
            (("blocks.0.attn.c_q.weight", "matrix"), ("blocks.1.attn.c_q.weight", "matrix"), ("tok_emb.weight", "embedding"))
        )
    ]  # fmt: skip
    (path / "quantisation.json").write_text(json.dumps({"rounding": "gptq-sdclip", "matrices": matrices}))
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def scored(path: Path, *, shift=0.0, partial=False, **options) -> Path:
    """A whole run; `shift` bits per byte are added to every predictor."""
    packed(path, **options)
    tokens, size, nats = stream()
    nats = {name: values + shift * math.log(2) * size for name, values in nats.items()}
    write_scores(path / "score.jsonl", tokens, size, nats)
    summary = json.loads((path / "summary.json").read_text())
    score, below = {}, ""
    for name, values in nats.items():
        bpb = values.sum() / math.log(2) / size.sum()
        score[name] = {
            "bpb": bpb, "loss": values.mean(), "nats": values.sum(), "tokens": len(tokens), "bytes": int(size.sum()),
            "legal": name != "published", "seconds": 2.0, "partial": partial,
        }  # fmt: skip
        if below:
            score[name] |= {"baseline": below, "gain": score[below]["bpb"] - bpb, "gain_error": 0.01}
        below = name
    compressors = {
        name: {"bytes": int(size.sum() * rate / 8), "bpb": rate, "text_bytes": int(size.sum())}
        for name, rate in (("xz -9e", 2.3), ("zstd --ultra -22", 2.5), ("bzip2 -9", 2.2), ("brotli -11", 2.4))
    }
    compressors["with the artifact"] = {"bytes": 99_000, "bpb": 52.6, "text_bytes": int(size.sum())}
    scoring = {
        "seconds": 30.0, "limit": 120.0, "parts": {"loading": 2.0, "scoring": 27.0, "other": 1.0}, "replayed": False,
        "adaptation_steps": 5, "gave_up": {"coarser_stride": 0.25, "adaptation": 0.5, "results": ["sliding"]},
    }  # fmt: skip
    summary |= {"score": score, "main": "ngram_backoff", "scoring": scoring, "compressors": compressors}
    (path / "summary.json").write_text(json.dumps(summary))
    traces = [
        {"target": at, "temperature": {"temperature": 1 + at / 1e5}, "ngram_backoff": {"order 1": 0.1, "order 2": at / 1e4}}
        for at in (500, 1000, 1500)
    ]
    (path / "weights.jsonl").write_text("".join(json.dumps(trace) + "\n" for trace in traces))
    plan = {"targets": len(tokens), "window": 256, "wanted": [64, 2], "spans": [[0, 64, 2], [900, 128, 1]], "choices": {}}
    (path / "plan.json").write_text(json.dumps(plan))
    write_words(path, tokens, size, nats)
    return path


def write_words(path: Path, tokens, size, nats, text=" w"):
    pieces = {str(token): f"{text}{token}\n" if token % 9 == 0 else f"{text}{token}" for token in range(2, VOCAB)} | {"1": ""}
    excerpts = []
    shown = (("the longest document, its end", 800, (753, 1953)), ("a document of middle length", 0, (0, 3)))
    for why, start, document in shown:
        span = slice(start, min(start + 20, document[1]))
        guesses = {name: [[[int(t), 0.5], [2, 0.25]] for t in tokens[span]] for name in ("adapted", "ngram_backoff")}
        excerpts.append({
            "why": why, "start": start, "document": document, "tokens": tokens[span].tolist(), "bytes": size[span].tolist(),
            "nats": {name: values[span].tolist() for name, values in nats.items()}, "guesses": guesses,
        })  # fmt: skip
    (path / "top_predictions.json").write_text(json.dumps({"pieces": pieces, "excerpts": excerpts}))


def audited(path: Path, *, passed=True, **options) -> Path:
    scored(path, **options)
    tests = [
        {
            "id": "mass",
            "title": "sums to one",
            "result": "ngram_backoff",
            "figure": 1e-9,
            "passed": True,
            "says": "the mass is one",
        },
        {
            "id": "future",
            "title": "knows no future",
            "result": "ngram_backoff",
            "figure": 0.0,
            "passed": passed,
            "says": "swapped",
        },
        {"id": "code", "title": "decodes", "result": None, "figure": None, "passed": None, "says": "not decoded"},
    ]
    shown = [{"id": "mass", "title": "sums to one", "result": "published", "figure": 2.1, "passed": False, "says": "two"}]
    decoded = {"tokens": 80_640, "claimed_bits": 1000.2, "real_bits": 1010, "equal": True, "passed": True}
    places = [0, 500, 1000]
    sums = {name: {"targets": places, "sums": values} for name, values in (("sliding", [1.0] * 3), ("published", [2.0] * 3))}
    noise = {"at": places, "allowed": -40.0, "results": {"sliding": [0.0, 3.0, 1.0], "published": [0.0, -500.0, -900.0]}}
    audit = {"passed": passed, "seconds": 12.0, "tests": tests, "shown": shown, "decoded": decoded}
    audit |= {"sums": sums, "uniform": noise}
    (path / "audit.json").write_text(json.dumps(audit))
    return path
