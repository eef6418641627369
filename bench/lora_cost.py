"""What adapters for each document gain and cost, form by form, on a trained run:

    python bench/lora_cost.py RUN [--targets N] [--lr RATE]

Documents of the validation stream are scored without adapters, as the submissions do (every window anew for every
chunk), and in cheaper ways. `work` is in forward passes over the text, a backward pass counted as two more.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch

from pgolf.artifact.pack import read_artifact
from pgolf.cli.common import CACHE
from pgolf.config import LoraSettings, read_toml
from pgolf.data import default_dataset, open_dataset
from pgolf.evaluation.adaptation import LoraScorer, batches_of
from pgolf.evaluation.metric import score_of
from pgolf.evaluation.stream import ScoredStream, document_bounds
from pgolf.kernels.logit_stats import logit_stats

ALL = ("q", "k", "v", "o", "mlp", "head")


def forms(context: int) -> dict[str, dict]:
    """Changes of the settings, by name; the chunk of the first is a sixteenth of the window."""
    small, layers = context // 16, {"layers": 1}
    return {
        "no adapters": {"minimum_tokens": 1 << 30},
        "no adapters, none refreshed": {"minimum_tokens": 1 << 30, "refresh_tokens": 0},
        "published": {},
        "chunk x 2": {"chunk_tokens": 2 * small},
        "chunk x 4": {"chunk_tokens": 4 * small},
        "chunk x 4, 2 passes": {"chunk_tokens": 4 * small, "passes": 2},
        "chunk x 4, 4 passes": {"chunk_tokens": 4 * small, "passes": 4},
        "q, k, v, o, mlp, head": {"targets": ALL},
        "last half": {"layers": 2},
        "last layer": layers,
        "last layer, all targets": {"targets": ALL, **layers},
        "head": {"targets": ("head",)},
        "head, 4 passes": {"targets": ("head",), "passes": 4},
        "half refreshed": {"refresh_tokens": context // 2},
        "quarter refreshed": {"refresh_tokens": context // 4},
        "2 chunks refreshed": {"refresh_tokens": 2 * small},
        "none refreshed": {"refresh_tokens": 0},
        "none refreshed, 2 passes": {"refresh_tokens": 0, "passes": 2},
        "none refreshed, all targets": {"refresh_tokens": 0, "targets": ALL},
        "2 chunks refreshed, all targets": {"refresh_tokens": 2 * small, "targets": ALL},
        "none refreshed, head": {"refresh_tokens": 0, "targets": ("head",)},
        "none refreshed, last layer, all targets": {"refresh_tokens": 0, "targets": ALL, **layers},
        "none refreshed, chunk x 2": {"refresh_tokens": 0, "chunk_tokens": 2 * small},
        "none refreshed, chunk x 2, 2 passes": {"refresh_tokens": 0, "chunk_tokens": 2 * small, "passes": 2},
    }


class Plain:
    def take(self, opened, logits, softcap):
        targets = [torch.from_numpy(one.targets(one.start, one.stop).astype(np.int64)).to(logits.device) for one in opened]
        rows = torch.cat([row[: len(came)] for row, came in zip(logits, targets, strict=True)])
        nats = -logit_stats(rows, torch.cat(targets), softcap=softcap).target.double().cpu()
        return [{"nats": part.numpy()} for part in nats.split([len(came) for came in targets])]


def measure(model, tokens: np.ndarray, bos: int, settings: LoraSettings) -> tuple[np.ndarray, float, float]:
    """(nats of each target, forward passes over all of them, seconds)."""
    stream = ScoredStream(tokens)
    documents = stream.split(document_bounds(tokens, bos))
    scorer = LoraScorer(model, settings)
    begun = time.perf_counter()
    for batch in batches_of([len(document) for document in documents], settings)[0]:
        scorer.score([documents[i] for i in batch.documents], Plain(), adapted=batch.adapted)
    seconds = time.perf_counter() - begun
    nats = stream.ledger.finished()["nats"]
    return nats, scorer.network.token_layers / len(scorer.network.layers) / len(nats), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run that was packed")
    parser.add_argument("--targets", type=int, default=20_000, help="scored tokens")
    parser.add_argument("--lr", type=float, default=LoraSettings.lr)
    parser.add_argument("--rank", type=int, default=LoraSettings.rank)
    parser.add_argument("--alpha", type=float, default=LoraSettings.alpha)
    parser.add_argument("--only", default="", help="forms, separated by semicolons")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    settings = read_toml(options.run / "config.toml")
    model = read_artifact(options.run / "model.pgolf").build_model(options.device)
    vocab = settings.model.vocab_size
    data = open_dataset(settings.data.path) if settings.data.path else default_dataset(CACHE, vocab_size=vocab)
    tokens = np.asarray(data.val_tokens())
    bos, table = data.tokenizer.bos, data.tokenizer.byte_table
    # whole documents, so that the last one is none of a kind of its own
    ends = [0, *document_bounds(tokens, bos)]
    tokens = tokens[: max(end for end in ends if end <= options.targets) + 1]
    counts = table.count(tokens[:-1], tokens[1:])
    context = settings.evaluation.window
    base = LoraSettings(
        rank=options.rank,
        alpha=options.alpha,
        lr=options.lr,
        context_tokens=context,
        refresh_tokens=-1,
        chunk_tokens=context // 16,
        minimum_tokens=context // 8,
        batch_documents=16,
    )
    print(f"{len(tokens) - 1:,} targets in {len(document_bounds(tokens, bos)) + 1} documents, windows of {context}, {base}")
    print(f"{'':40}{'bpb':>8}{'gain':>8}{'work':>8}{'tokens/s':>10}")
    plain = 0.0
    chosen = [name.strip() for name in options.only.split(";") if name.strip()]
    for name, changes in forms(context).items():
        if chosen and name not in chosen:
            continue
        nats, work, seconds = measure(model, tokens, bos, dataclasses.replace(base, **changes))
        bpb = score_of(nats, counts).bpb
        plain = plain or bpb
        figures = f"{bpb:8.4f}{plain - bpb:8.4f}{work:8.1f}{len(nats) / seconds:10,.0f}"
        print(f"{name:40}{figures}", flush=True)


if __name__ == "__main__":
    main()
