"""Both clocks on machines made for the purpose: time passes by work alone, and from some moment on three times as fast.

Training, packing and scoring are the stages' own, on a tiny network; what a step, a rounding or a window takes is made up.
"""

import functools
import json

import pytest

import pgolf.artifact.calibration
import pgolf.cli.pack
import pgolf.cli.score
import pgolf.evaluation.load
import pgolf.training.loop
from pgolf.budget import Budget
from pgolf.errors import OVER_LIMIT
from pgolf.evaluation.adaptation.chunks import ChunkAdapter
from pgolf.evaluation.scoring_pass import ScoringPass
from pgolf.folder import RunFolder
from pgolf.run import main
from pgolf.training.loop import Trainer
from tests.small_dataset import small_dataset

STEP, CALIBRATION, ROUNDING, LOADING, WINDOW, LEARNING = 0.5, 1.0, 1.5, 2.0, 0.075, 0.75
TRAINING, SCORING = 30.0, 60.0


class Machine:
    """Its clock. `slow_from` is when it turns three times slower."""

    def __init__(self):
        self.time, self.slow_from = 0.0, float("inf")

    def __call__(self) -> float:
        return self.time

    def work(self, seconds: float) -> None:
        self.time += seconds * (3.0 if self.time >= self.slow_from else 1.0)


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()

    def takes(owner, name: str, seconds) -> None:
        real = getattr(owner, name)

        def working(*words, **options):
            machine.work(seconds(*words) if callable(seconds) else seconds)
            return real(*words, **options)

        monkeypatch.setattr(owner, name, working)

    for stage in (pgolf.training.loop, pgolf.cli.pack, pgolf.cli.score):
        monkeypatch.setattr(stage, "Budget", functools.partial(Budget, now=machine))
    takes(Trainer, "_gradients", STEP)
    takes(pgolf.artifact.calibration, "hessians", CALIBRATION)
    takes(pgolf.cli.pack, "round_weights", ROUNDING)
    takes(pgolf.evaluation.load, "load_scorer", LOADING)
    takes(ScoringPass, "_forward", lambda scoring, model, opened, windows, candidates: WINDOW * len(windows))
    takes(ChunkAdapter, "learn", LEARNING)
    # what the script's length costs is no matter of clocks
    monkeypatch.setattr(pgolf.cli.pack, "code_bytes", lambda settings, kind: 1000)
    return machine


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("clocks") / "data").folder


@pytest.fixture
def run(tmp_path, data, machine):
    """Give words after which a run's stages are called, on the made-up machine."""

    def words(*more: str) -> list[str]:
        text = "--evaluation.max-tokens 0 --evaluation.adaptation.chunk-tokens 256"
        fixed = f"--data.path {data} --scale tiny --model.layers 1 --model.value-embedding-layers --training.micro-batches 1"
        clocks = f"--training.seconds {TRAINING} --evaluation.seconds {SCORING} --device cpu"
        return ["train", "--out", str(tmp_path / "run"), *fixed.split(), *clocks.split(), *text.split(), *more]

    return RunFolder(tmp_path / "run"), words


@pytest.mark.parametrize("slow_from", [float("inf"), 0.0, 3.0 + 0.5 * TRAINING, 3.0 + 0.6 * TRAINING])
def test_training_and_packing_keep_the_clock(run, machine, slow_from):
    """Slow from the beginning, from half-way, and a little later."""
    folder, words = run
    machine.slow_from = slow_from
    assert main(words()) == 0
    assert main(["pack", str(folder.path), "--device", "cpu"]) == 0
    train = folder.read_summary().train
    assert {"calibration", "rounding"} <= train.parts.keys() and train.seconds == pytest.approx(sum(train.parts.values()))
    assert not train.over_limit and 0.6 * TRAINING < train.seconds <= TRAINING


@pytest.mark.parametrize("slow_from", [float("inf"), 0.0, SCORING / 2])
def test_scoring_keeps_the_clock_and_scores_all(run, machine, slow_from, data):
    folder, words = run
    assert main(words("--steps", "2")) == main(["pack", str(folder.path), "--device", "cpu"]) == 0
    machine.slow_from = machine.time + slow_from
    assert main(["score", str(folder.path), "--device", "cpu"]) == 0
    summary = folder.read_summary()
    assert not summary.scoring.over_limit and 0.4 * SCORING < summary.scoring.seconds <= SCORING
    assert not summary.main_score.partial
    tokens = json.loads((data / "dataset.json").read_text())["tokens"]["val"]
    assert summary.main_score.tokens == tokens - 1
    assert bool(summary.scoring.gave_up.get("adaptation")) == (slow_from < SCORING)


def test_a_clock_that_cannot_be_kept_is_told(run, machine, monkeypatch, capsys):
    folder, words = run
    assert main(words("--steps", "2")) == main(["pack", str(folder.path), "--device", "cpu"]) == 0
    load = pgolf.evaluation.load.load_scorer
    monkeypatch.setattr(pgolf.evaluation.load, "load_scorer", lambda *w: [machine.work(SCORING), load(*w)][1])
    assert main(["score", str(folder.path), "--device", "cpu"]) == OVER_LIMIT == 3
    summary = folder.read_summary()
    assert summary.scoring.over_limit and summary.over_limit and not summary.main_score.partial
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("over the limit")]
    assert line.endswith("loading alone 62.0; raise evaluation.seconds, or use a faster machine")


def test_packing_beyond_the_clock_is_told(run, machine, capsys):
    """The machine turns slow once training is over, when nothing can be given up any more."""
    folder, words = run
    assert main(words()) == 0 and not folder.read_summary().train.over_limit
    machine.slow_from = 0.0
    assert main(["pack", str(folder.path), "--device", "cpu"]) == OVER_LIMIT
    assert folder.read_summary().train.over_limit and "raise training.reserve" in capsys.readouterr().out
