"""The scoring stage on an artifact of random weights: its files, and a plan that is repeated."""

import dataclasses
import json
import math

import numpy as np
import pytest
from safetensors.torch import load_file

from pgolf.artifact.pack import read_artifact
from pgolf.cli import pack
from pgolf.cli.common import CACHE
from pgolf.cli.parse import parse
from pgolf.cli.score import Options
from pgolf.cli.train import write_weights
from pgolf.config import at_scale, load_preset, preset_names, read_toml, to_toml
from pgolf.data import default_dataset
from pgolf.evaluation.ngram_table import learn_ngram_table
from pgolf.evaluation.predictors.ngram_backoff import learnt_to_bytes
from pgolf.folder import RunFolder
from pgolf.model import build_model
from pgolf.run import main
from tests import summaries


@pytest.fixture(scope="module", autouse=True)
def script_of_one_size():
    """Making the counted script takes seconds, and has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "code_bytes", lambda settings, device: 60_000)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    settings = at_scale(load_preset("pr745"), "tiny")
    adaptation = dataclasses.replace(settings.evaluation.adaptation, chunk_tokens=256)
    evaluation = dataclasses.replace(
        settings.evaluation, window=64, stride=32, max_tokens=900, whole_windows=False, adaptation=adaptation
    )
    data = dataclasses.replace(settings.data, held_out_tokens=2500)
    settings = dataclasses.replace(settings, evaluation=evaluation, data=data)
    found = RunFolder(tmp_path_factory.mktemp("run"))
    found.config.write_text(to_toml(settings))
    write_weights(found.weights, build_model(settings.model, seed=1).state_dict())
    found.update_summary(train=summaries.train(limit=30.0, parts={"steps": 10.0}))
    assert main(["pack", str(found.path), "--device", "cpu"]) == 0
    assert main(["score", str(found.path), "--device", "cpu"]) == 0
    return found


def test_the_ngram_backoff_has_weights_of_its_own(folder, tmp_path):
    """Learnt on training text that was left out, on training's clock, counted, and used; a run without them scores too."""
    settings, summary = read_toml(folder.config), folder.read_summary()
    section = read_artifact(folder.artifact).sections["ngram_backoff"]
    model = build_model(settings.model)
    model.load_state_dict(load_file(folder.weights))
    data = default_dataset(CACHE, vocab_size=1024)
    learnt = learn_ngram_table(model, data.held_out(2500), settings.evaluation, bos=data.tokenizer.bos)
    assert section == learnt_to_bytes(learnt) and summary.artifact.parts["ngram_backoff"] == len(section)
    train = summary.train
    assert train.parts["n-gram table"] > 0 and train.seconds == pytest.approx(sum(train.parts.values()))

    other = RunFolder(tmp_path)
    other.weights.symlink_to(folder.weights)
    other.config.write_text(to_toml(dataclasses.replace(settings, data=dataclasses.replace(settings.data, held_out_tokens=0))))
    for stage in ("pack", "score"):
        assert main([stage, str(tmp_path), "--device", "cpu"]) == 0
    assert read_artifact(other.artifact).sections == {}
    mine, theirs = folder.read_summary().score, other.read_summary().score
    assert theirs["adapted"].nats == mine["adapted"].nats
    assert theirs["ngram_backoff"].nats > mine["ngram_backoff"].nats


def test_the_summary_of_a_scoring(folder):
    summary = folder.read_summary()
    score = summary.score
    results = {"non_overlapping", "sliding", "adapted", "ngram_backoff", "ngrams", "published", "adapted_published"}
    assert results <= score.keys() and summary.main in score and summary.main_score.legal
    assert summary.main == [name for name, result in score.items() if result.legal][-1]
    assert score["ngram_backoff"].baseline == "adapted" and score["ngram_backoff"].gain_error
    scoring = summary.scoring
    assert scoring.gave_up == {} and scoring.replayed is False and scoring.adaptation_steps > 0
    assert {"loading", "scoring", "writing"} <= scoring.parts.keys()
    top = json.loads(folder.top_predictions.read_text())
    assert len(top["excerpts"]) == 2 and set(top["excerpts"][0]["guesses"]) >= {"adapted", summary.main}
    peers = summary.compressors
    assert {"xz -9e", "bzip2 -9", "zstd --ultra -22", "pgolf and its artifact"} <= peers.keys()
    assert len({peer.text_bytes for peer in peers.values()}) == 1 and all(0 < peer.bytes for peer in peers.values())
    own = math.ceil(score[summary.main].nats / math.log(2) / 8) + folder.artifact.stat().st_size
    assert peers["pgolf and its artifact"].bytes == own
    traces = [json.loads(line) for line in folder.weights_log.read_text().splitlines()]
    assert traces[-1]["target"] == 900 and {"ngram_backoff", "ngrams", "published"} <= traces[-1].keys()


def test_a_plan_is_repeated(folder, tmp_path, capsys):
    plan, scores = json.loads(folder.plan.read_text()), folder.scores.read_text()
    assert [span[1:] for span in plan["spans"]] == [[32, 1]] * 4
    main(["score", str(folder.path), "--device", "cpu", "--plan", str(folder.plan)])
    assert folder.scores.read_text() == scores and folder.read_summary().scoring.replayed is True
    # another plan gives another score, and says what it did not do
    other = tmp_path / "plan.json"
    other.write_text(json.dumps(plan | {"spans": [[start, 64, 0] for start, *_ in plan["spans"]], "choices": {}}))
    assert main(["score", str(folder.path), "--device", "cpu", "--plan", str(other)]) == 0
    assert folder.scores.read_text() != scores
    assert folder.read_summary().scoring.gave_up == {"coarser_stride": 1.0, "adaptation": 1.0, "results": ["sliding"]}
    assert "given up for the clock" in capsys.readouterr().out
    assert main(["score", str(folder.path), "--plan", str(tmp_path / "none.json")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_the_flag():
    assert parse(Options, ["runs/x", "--plan", "p.json"], "score") == Options("runs/x", "", "p.json")


@pytest.mark.parametrize("whole, most, targets", [(True, 700, 640), (True, 640, 640), (True, 50, 50), (False, 700, 700)])
def test_the_stream_is_cut_to_whole_windows_as_the_challenge_does(whole, most, targets):
    """The last positions that do not fill a sequence are dropped, as in the scripts' own reading of the validation shards:
    usable = ((tokens - 1) // window) * window. A stream of less than one window is scored whole."""
    evaluation = dataclasses.replace(load_preset("pr549").evaluation, window=64, whole_windows=whole, max_tokens=most)
    assert evaluation.scored_targets(5000) == targets
    assert dataclasses.replace(evaluation, max_tokens=0).scored_targets(5000) == (4992 if whole else 5000)


def test_the_submissions_are_scored_on_whole_windows():
    cut = {name for name in preset_names() if load_preset(name).evaluation.whole_windows}
    assert cut == {name for name in preset_names() if name.startswith("pr")}
    assert load_preset("pr549").evaluation.scored_targets(62_021_845) == 62_021_632


@pytest.mark.parametrize("preset", [*(name for name in preset_names() if name.startswith("pr")), "mamba"])
def test_a_preset_runs_from_end_to_end_with_finite_numbers(preset, tmp_path):
    sizes = """--steps 2 --training.batch-tokens 512 --training.sequence-length 64 --training.warmup-steps 0
        --data.held-out-tokens 600 --artifact.calibration-sequences 4 --evaluation.window 64 --evaluation.stride 32
        --evaluation.max-tokens 700 --evaluation.adaptation.chunk-tokens 256 --evaluation.seconds 100000""".split()
    run, cpu = RunFolder(tmp_path / "run"), ["--device", "cpu"]
    assert main(["train", "--preset", preset, "--scale", "tiny", "--out", str(run.path), *sizes, *cpu]) == 0
    for stage in ("pack", "score"):
        assert main([stage, str(run.path), *cpu]) == 0
    asked, summary = read_toml(run.config).evaluation, run.read_summary()
    expected = {"non_overlapping"} | ({"sliding"} if asked.sliding else set())
    expected |= {"adapted"} if asked.adaptation.method != "none" else set()
    expected |= {"temperature"} if asked.temperature.method != "none" else set()
    expected |= {"published"} if asked.mixer.published != "none" else set()
    expected |= {name + "_honest" * (name in ("boost", "bias")) for name in asked.mixer.honest}
    assert expected <= summary.score.keys()
    assert all(math.isfinite(result.bpb) and result.bpb > 0 for result in summary.score.values())
    head, *lines = [json.loads(line) for line in run.scores.read_text().splitlines()]
    assert all(np.isfinite(line[name]).all() for line in lines for name in head["results"])
    assert summary.scoring.gave_up == {}
    assert "ngram_backoff" not in expected or summary.artifact.parts["ngram_backoff"] > 1
