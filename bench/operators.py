"""Which operators of kernels/ the stages of each preset reach, on which device: run, and recorded as torch dispatches them.

    python -m bench.operators        writes docs/operators.md

Presets run at the scale "tiny", with a few documents' worth of tokens. On the CPU every stage computes; what stands for a
GPU are fake tensors on the device "cuda" (`bench.fake_cuda`), which go the same way through the same code.
"""

import dataclasses
import importlib
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from bench.fake_cuda import Captured, Recorder, fake_cuda, to_fake_cuda
from bench.steps import BOS, OneByte, Stopwatch
from pgolf.artifact.pack import read_codes
from pgolf.artifact.weights import round_weights
from pgolf.budget import Budget
from pgolf.config import Settings, at_scale, load_preset, preset_names
from pgolf.distributed import World
from pgolf.evaluation.adaptation.chunks import ChunkAdapter
from pgolf.evaluation.adaptation.lora import LoraScorer
from pgolf.evaluation.codec.codec import apart_settings
from pgolf.evaluation.evaluate import Scorer, evaluate
from pgolf.evaluation.predictors.base import Span
from pgolf.evaluation.predictors.selection import predictors_of
from pgolf.evaluation.predictors.temperature import policy
from pgolf.evaluation.scoring_pass import DocumentScores, opened_logits
from pgolf.evaluation.stream import ScoredStream, document_bounds
from pgolf.kernels.hedge import HedgeMixer
from pgolf.kernels.logit_stats import logit_stats
from pgolf.model import Network, build_model, submission_state
from pgolf.training.train_step import TrainStep

PAGE = Path(__file__).parents[1] / "docs" / "operators.md"
WINDOW, STRIDE, TARGETS = 64, 32, 320
DEVICES = ("cpu", "cuda")
STAGES = ("training", "scoring", "scoring documents apart", "test-time training")
EXAMPLE = "examples/qlora.py"
"""What reaches operators that no preset does: no stage decodes on a GPU, and presets' adapters stand on dense matrices."""
Reached = dict[tuple[str, str, str], set[str]]
"""By (preset, stage, device), the operators' names; an example has no preset."""


def operators() -> list[str]:
    """All that kernels/ registers."""
    import pgolf.kernels  # noqa: F401

    names = torch._C._dispatch_get_all_op_names()
    return sorted({name.removeprefix("pgolf::").partition(".")[0] for name in names if name.startswith("pgolf::")})


def small(preset: str, device: str) -> Settings:
    """A preset with all its mechanisms and layers, and little to do."""
    settings = at_scale(load_preset(preset, cuda=device == "cuda"), "tiny")
    options = settings.evaluation
    adaptation = dataclasses.replace(options.adaptation, chunk_tokens=128, batch_sequences=2)
    lora = dataclasses.replace(options.lora, chunk_tokens=32, context_tokens=WINDOW, batch_documents=2, minimum_tokens=0)
    evaluation = dataclasses.replace(
        options, window=WINDOW, stride=STRIDE, batch=4, max_tokens=0, adaptation=adaptation, lora=lora
    )
    training = dataclasses.replace(settings.training, precision="float32")
    # heads of 64, which the scan's kernel asks for
    model = dataclasses.replace(settings.model, scan_heads=min(settings.model.scan_heads, 2))
    return dataclasses.replace(settings, model=model, evaluation=evaluation, training=training)


def network(settings: Settings) -> Network:
    # a vocabulary of few tokens: its size decides nothing here
    return build_model(dataclasses.replace(settings.model, vocab_size=256), seed=0)


def tokens_of_documents() -> np.ndarray:
    """Documents of a hundred tokens that count up."""
    tokens = (np.arange(TARGETS + 1) % 97 + BOS + 1).astype(np.uint16)
    tokens[::100] = BOS
    return tokens


# ---- stages: the code that runs, on tensors of the device


def training(settings: Settings, model: Network, device: str) -> None:
    step = TrainStep.of(model, settings.training, World(device=torch.device(device)))
    if step.terms:
        step.terms.switch(True)
    tokens = torch.full((2, 32), BOS + 1, device=device)
    step.loss(tokens, tokens).backward()
    penalty = step.penalty()
    if penalty is not None:
        penalty.backward()
    step.optimisers.step(1.0, 0.9)


def scoring(settings: Settings, model: Network, device: str) -> None:
    """On a GPU one batch of windows, and the mixer that keeps its tables there; on the CPU all predictors."""
    model.eval()
    plain = dataclasses.replace(settings.evaluation.adaptation, method="none")
    options = dataclasses.replace(settings.evaluation, adaptation=plain)
    if device == "cuda":
        window_pass(model)
        if options.mixer.published == "hedge":
            mixer_chunk(device)
        return
    tokens = tokens_of_documents()
    scorer = Scorer(model, tokens, OneByte(), options, bos=BOS, budget=Budget(1e9))
    temperature = policy(options.temperature)
    predictors = scorer.predictors(temperature)
    for predictor in predictors:
        if isinstance(mixer := getattr(predictor, "mixer", None), HedgeMixer):
            mixer.warmup = 0
    scorer.main(predictors, temperature, Stopwatch(scorer.budget, options.stride, 0), np.zeros(TARGETS))


@torch.no_grad()
def window_pass(model: Network) -> None:
    places = torch.zeros(2 * STRIDE, dtype=torch.int64, device="cuda")
    candidates = torch.zeros(2 * STRIDE, 4, dtype=torch.int32, device="cuda")

    def scored(tokens, places, candidates):
        logits = opened_logits(model, model.hidden(tokens), places)
        return logit_stats(logits, places, candidates, softcap=model.settings.softcap)

    tokens = torch.full((2, WINDOW), BOS + 1, device="cuda")
    torch.compile(scored, fullgraph=True, dynamic=False)(tokens, places, candidates)


def mixer_chunk(device: str) -> None:
    mixer = HedgeMixer(64, buckets=64, warmup=0, device=device)
    tokens = torch.zeros(2 * WINDOW + 1, dtype=torch.int32, device=device)
    known = torch.zeros(2, WINDOW, device=device)
    mixer.score_chunk(known, known, tokens, [(0, WINDOW, WINDOW), (STRIDE, WINDOW, STRIDE)], batch=1)
    mixer.count(tokens)


def scoring_apart(settings: Settings, model: Network, device: str) -> None:
    """What `pgolf compress` claims for several documents: each by itself, with fixed weights of the back-off."""
    model, tokens = model.eval(), tokens_of_documents()
    options = apart_settings(settings.evaluation)
    if device == "cpu":
        evaluate(model, tokens, OneByte(), options, bos=BOS, budget=Budget(1e9))
        return
    predictors = predictors_of(options, model.settings.vocab_size, TARGETS, policy(options.temperature))
    documents = ScoredStream(tokens).split(document_bounds(tokens, BOS))[:2]
    LoraScorer(model, options.lora, window=WINDOW).score(documents, Counted(predictors, bos=BOS), adapted=False)


class Counted(DocumentScores):
    """Names candidates for logits that hold no numbers, and scores zero."""

    def take(self, opened, logits, softcap=None):
        targets = [one.targets(one.start, one.stop) for one in opened]
        spans = [Span(one.start, came, came == BOS) for one, came in zip(opened, targets, strict=True)]
        self.candidates(opened, spans, logits.device)
        return [{self.name: np.zeros(len(span))} for span in spans]


def test_time_training(settings: Settings, model: Network, device: str) -> None:
    model, options = model.eval(), settings.evaluation
    tokens = tokens_of_documents()
    if options.adaptation.method == "chunks":
        adapter = ChunkAdapter(model, options.adaptation, sequence_length=WINDOW, byte_table=OneByte())
        adapter.learn(tokens[: 2 * WINDOW + 1], 0, 2, 1)
    if options.adaptation.method == "lora":
        stream = ScoredStream(tokens)
        documents = stream.split(document_bounds(tokens, BOS))[:2]
        scores = DocumentScores if device == "cpu" else Counted
        LoraScorer(model, options.lora, window=WINDOW).score(documents, scores([], bos=BOS), adapted=True)


RUNS: dict[str, Callable[[Settings, Network, str], None]] = dict(
    zip(STAGES, (training, scoring, scoring_apart, test_time_training), strict=True)
)


# ---- recording


def reached(preset: str, stage: str, device: str) -> set[str]:
    """The operators that a stage dispatches."""
    settings = small(preset, device)
    model = network(settings)
    if device == "cpu":
        with Recorder(check=True) as recorder:
            RUNS[stage](settings, model, device)
        return recorder.seen
    if stage == "scoring":
        read_codes(model, round_weights(submission_state(model), settings.artifact))
    with fake_cuda(capture=False):
        on_fake_cuda(model)
        with Recorder() as recorder:
            RUNS[stage](settings, model, device)
    return recorder.seen


def captured(preset: str, stage: str) -> Captured:
    """What torch.compile captures of a stage on CUDA: it refuses where a graph would break."""
    settings = small(preset, "cuda")
    model = network(settings)
    with fake_cuda(capture=True) as graphs:
        on_fake_cuda(model)
        RUNS[stage](settings, model, "cuda")
    return graphs


def on_fake_cuda(model: Network) -> None:
    model.activation = torch.bfloat16
    to_fake_cuda(model)
    for name, packed in model.packed.items():
        bank, matrix = getattr(model, name), packed.matrix
        planes, scales = (torch.empty(part.shape, dtype=part.dtype, device="cuda") for part in (matrix.planes, matrix.scales))
        packed.matrix = dataclasses.replace(matrix, planes=planes, scales=scales)
        packed.bank, packed.version = weakref.ref(bank), bank._version


def reached_by_example() -> set[str]:
    folder, name = os.path.split(Path(__file__).parents[1] / EXAMPLE)
    with mock.patch.object(sys, "path", [folder, *sys.path]), Recorder(check=True) as recorder:
        importlib.import_module(name.removesuffix(".py")).main(["--steps", "1", "--device", "cpu"], time=32)
    return recorder.seen


def everything(presets: Sequence[str]) -> Reached:
    by_presets = {
        (preset, stage, device): reached(preset, stage, device) for preset in presets for stage in STAGES for device in DEVICES
    }
    return by_presets | {("", EXAMPLE, "cpu"): reached_by_example() - set().union(*by_presets.values())}


# ---- the page


def page(reached: Reached) -> str:
    lines = [
        "# Who calls the operators",
        "",
        "Made by `python -m bench.operators`, which runs the stages of every preset and records what is dispatched; on CUDA",
        "with fake tensors. Where no preset reaches one, an example does. A test fails when an operator is reached by none.",
        "",
        "| operator | device | stage | presets |",
        "|---|---|---|---|",
    ]
    presets = preset_names()
    for name in operators():
        rows = []
        for device in DEVICES:
            for stage in STAGES:
                users = [preset for preset in presets if name in reached[preset, stage, device]]
                if users:
                    rows.append(f"| {name} | {device} | {stage} | {'all' if users == presets else ', '.join(users)} |")
        if name in reached["", EXAMPLE, "cpu"]:
            rows.append(f"| {name} | cpu | {EXAMPLE} | |")
        lines += rows or [f"| {name} | - | - | none |"]
    return "\n".join(lines) + "\n"


def read_page(text: str) -> Reached:
    """The inverse of `page`."""
    reached: Reached = {(preset, stage, device): set() for preset in preset_names() for stage in STAGES for device in DEVICES}
    reached["", EXAMPLE, "cpu"] = set()
    for line in text.splitlines():
        name, device, stage, users = (
            [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| ") else [""] * 4
        )
        if device in DEVICES:
            for preset in preset_names() if users == "all" else users.split(", "):
                reached[preset, stage, device].add(name)
    return reached


if __name__ == "__main__":
    PAGE.write_text(page(everything(preset_names())))
    print(PAGE)
