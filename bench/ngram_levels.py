"""What the document-local n-gram back-off gains over the neural model, level by level, on a trained run:

    python bench/ngram_levels.py RUN [--targets N] [--held-out N]

The back-off's weights stay where they start, are learnt while scoring, or beforehand on training text that training left out,
or both. A level l is an order counted in the document at hand, a level g one counted in all documents so far.
"""

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pgolf.artifact.pack import read_artifact
from pgolf.budget import Clock
from pgolf.cli.common import CACHE
from pgolf.config import read_toml
from pgolf.data import default_dataset, open_dataset
from pgolf.evaluation.evaluate import Result
from pgolf.evaluation.metric import score_of
from pgolf.evaluation.planner import Steady
from pgolf.evaluation.predictors.base import Predictor
from pgolf.evaluation.predictors.ngram_backoff import as_neural, as_tensor
from pgolf.evaluation.records import paired_gain
from pgolf.evaluation.scoring_pass import ScoringPass
from pgolf.evaluation.statistics import Statistics, join
from pgolf.evaluation.stream import document_starts
from pgolf.kernels.logit_stats import LogitStats
from pgolf.kernels.ngram import FLOOR_FOR_TABLES, Evidence, NgramBackoff

LOCAL, SHARED = (1, 2, 3, 4, 5, 6), (3, 4, 5, 6)
WAYS = ("never (all .05)", "while scoring", "beforehand", "both")
PLACES = 1000
EDGES = (0, 64, 256, 1024, 4096, 16_384, 65_536)


class Recorder(Predictor):
    """Keeps what every level and the neural model know of each target, and some whole rows."""

    name, needs_logits, num_candidates = "neural", True, len(LOCAL + SHARED)

    def __init__(self, vocab: int, granularity: int, every: int):
        self.stream, self.every = NgramBackoff(LOCAL, SHARED, granularity=granularity).stream(vocab), every
        self.evidence: list[Evidence] = []
        self.statistics: list[Statistics] = []
        self.rows: dict[int, np.ndarray] = {}

    def begin(self, token):
        self.stream.read(torch.tensor([token], dtype=torch.int32), torch.tensor([True]))

    def candidates(self, span):
        self.evidence.append(self.stream.read(as_tensor(span.targets), torch.from_numpy(span.starts)))
        return self.evidence[-1].top.numpy()

    def score(self, span, statistics):
        self.statistics.append(replace(statistics, logits=None))
        chosen = range(-span.start % self.every, len(span), self.every)
        self.rows |= {span.start + i: statistics.logits[i].copy() for i in chosen}
        return statistics.nats

    def known(self, levels: int) -> tuple[LogitStats, Evidence]:
        """All targets, for the first so many levels."""
        of_levels = slice(0, levels)
        *parts, fresh = [torch.cat(part) for part in zip(*self.evidence, strict=True)]
        statistics = join(self.statistics).of_candidates(of_levels)
        return as_neural(statistics), Evidence(*(part[:, of_levels].contiguous() for part in parts), fresh)


def record(model, tokens: np.ndarray, settings, bos: int, stride: int, device: str) -> Recorder:
    recorder = Recorder(model.settings.vocab_size, settings.mixer.granularity, max(1, len(tokens) // PLACES))
    one_pass = ScoringPass(model, tokens, [recorder], bos=bos, window=settings.window, batch=settings.batch, device=device)
    one_pass.run(Steady(Clock(), len(tokens) - 1, stride))
    return recorder


def furthest_from_one(ngram_backoff: NgramBackoff, recorder: Recorder, tokens: np.ndarray, bos: int) -> float:
    """The worst sum over the vocabulary at the places whose rows were kept."""
    at = torch.tensor(sorted(recorder.rows))
    logits = torch.from_numpy(np.stack([recorder.rows[place] for place in at.tolist()])).double()
    starts = np.union1d([0, len(tokens)], np.flatnonzero(tokens == bos))
    # the recorder's places are targets, one behind the stream's
    rows = ngram_backoff.distribution(logits.log_softmax(-1), as_tensor(tokens), torch.from_numpy(starts), at + 1)
    return float((rows.sum(-1) - 1).abs().max())


def ways(levels: int, granularity: int, held_out: Recorder, scored: Recorder) -> tuple[NgramBackoff, list[np.ndarray]]:
    """The back-off of the first levels with what was learnt beforehand, and the nats of every target by each of WAYS."""
    local, shared = LOCAL[:levels], SHARED[: max(0, levels - len(LOCAL))]
    empty, taught = (NgramBackoff(local, shared, granularity=granularity, floor=FLOOR_FOR_TABLES) for _ in range(2))
    taught.mix_and_learn(*held_out.known(levels))
    taught.flush()
    known, learner = scored.known(levels), copy.deepcopy(taught)
    # what learns changes its own weights, so it comes last
    mixtures = [empty.mix(*known), empty.mix_and_learn(*known), taught.mix(*known), learner.mix_and_learn(*known)]
    return taught, [scores.nll.numpy() for scores in mixtures]


def print_by(what: str, numbers: np.ndarray, counts: np.ndarray, nats: dict[str, np.ndarray]) -> None:
    """Bits per byte of targets whose number lies from one edge to before the next."""
    cell = np.searchsorted(EDGES, numbers, side="right") - 1
    size = np.bincount(cell, counts, minlength=len(EDGES))
    bits = {name: np.bincount(cell, one, minlength=len(EDGES)) / np.log(2) for name, one in nats.items()}
    print(f"\n{what + ', from':40}{'bytes':>12}" + "".join(f"{name:>12}" for name in nats))
    for i in np.flatnonzero(size):
        print(f"{EDGES[i]:40,}{int(size[i]):12,}" + "".join(f"{of_cell[i] / size[i]:12.4f}" for of_cell in bits.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run that was packed")
    parser.add_argument("--targets", type=int, default=500_000, help="scored tokens of the validation text")
    parser.add_argument("--held-out", type=int, default=0, help="tokens to learn the weights on; 0: the run's own number")
    parser.add_argument("--stride", type=int, default=0, help="of the windows; 0: the run's own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    run = read_toml(options.run / "config.toml")
    settings, stride = run.evaluation, options.stride or run.evaluation.stride
    model = read_artifact(options.run / "model.pgolf").build_model(options.device)
    data = open_dataset(run.data.path) if run.data.path else default_dataset(CACHE, vocab_size=run.model.vocab_size)
    bos, granularity = data.tokenizer.bos, settings.mixer.granularity
    before, tokens = data.held_out(options.held_out or run.data.held_out_tokens), np.asarray(data.val_tokens())
    tokens = tokens[: options.targets + 1]
    counts, starts = data.tokenizer.byte_table.count(tokens[:-1], tokens[1:]), document_starts(tokens, bos)
    held_out, scored = (record(model, text, settings, bos, stride, options.device) for text in (before, tokens))
    print(f"{len(tokens) - 1:,} targets, windows of {settings.window}, stride {stride}, counts fresh to {granularity} tokens")
    print(f"beforehand: on the last {len(before):,} tokens of the training text, whose last {run.data.held_out_tokens:,} the")
    print(f"training left out; documents that stand in both the training and the validation text: {data.shared_documents()}")

    neural = np.concatenate([part.nats for part in scored.statistics])
    ground, nats_by_way = Result(score_of(neural, counts), 0.0, neural), {"neural": neural}
    print(f"\n{'gain in bits per byte':22}" + "".join(f"{way:>22}" for way in WAYS) + f"{'sums off by':>14}")
    print(f"{'neural':22}{ground.score.bpb:22.4f}")
    for levels in range(1, len(LOCAL + SHARED) + 1):
        name = f"l1-{levels}" if levels <= len(LOCAL) else f"l1-{LOCAL[-1]}, g3-{SHARED[levels - len(LOCAL) - 1]}"
        taught, nats = ways(levels, granularity, held_out, scored)
        gains = [paired_gain(ground, Result(ground.score, 0.0, one), counts, starts) for one in nats]
        line = "".join(f"{gain:12.4f} +- {error or 0.0:.4f}" for gain, error in gains)
        print(f"{name:22}{line}{furthest_from_one(taught, scored, tokens, bos):14.0e}", flush=True)
        if levels in (3, len(LOCAL)):
            nats_by_way[name] = nats[WAYS.index("beforehand")]
    document = np.searchsorted(starts, np.arange(len(counts)), side="right") - 1
    lengths = np.diff(np.append(starts, len(counts)))
    print_by("tokens of the document", lengths[document], counts, nats_by_way)
    print_by("tokens since the document's beginning", np.arange(len(counts)) - starts[document], counts, nats_by_way)


if __name__ == "__main__":
    main()
