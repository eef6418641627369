"""The whole way as a user walks it: commands in processes of their own."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pgolf.config import preset_names

SMALL = ["--scale", "tiny", "--steps", "3", "--evaluation.max-tokens", "1024", "--device", "cpu"]


# another number of threads sums in another order
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "2"}


def pgolf(*words, program=("-m", "pgolf.run"), **options):
    command = [sys.executable, *program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    sinks = ["--training.sinks", "tensorboard"] if importlib.util.find_spec("tensorboard") else []
    done = pgolf("--out", folder, *SMALL, *sinks)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_the_documented_keys(run):
    folder, _ = run
    summary = summary_of(folder)
    parts = {"preset", "seed", "corpus", "parameters", "train", "artifact", "score", "scoring", "device", "versions"}
    assert parts <= summary.keys()
    assert {"seconds", "limit", "parts", "steps", "tokens"} <= summary["train"].keys()
    assert {"model_bytes", "code_bytes", "total_bytes", "limit", "margin"} <= summary["artifact"].keys()
    for result in summary["score"].values():
        assert {"bpb", "loss", "nats", "tokens", "bytes", "seconds", "legal", "partial"} <= result.keys()
    assert summary["train"]["steps"] == 3 and len(summary["corpus"]["digest"]) == 64
    sizes = summary["artifact"]
    assert sizes["model_bytes"] + sizes["tokenizer_bytes"] == (folder / "model.pgolf").stat().st_size
    assert sizes["total_bytes"] == sizes["model_bytes"] + sizes["code_bytes"] <= sizes["limit"]


def test_the_files_of_a_run(run):
    folder, said = run
    names = {path.name for path in folder.iterdir()}
    assert {"config.toml", "train.jsonl", "checkpoint.safetensors", "model.pgolf"} <= names
    assert {"score.jsonl", "summary.json", "log.txt", "top_predictions.json", "quantisation.json", "report.html"} <= names
    assert not [name for name in names if name.startswith(".")]
    assert {path.name for path in (folder / "pictures").iterdir()} >= {"loss.svg", "learning_rates.svg", "clocks.svg"}
    assert "bits per byte" in said and "xz -9e" in said


def test_scores_add_up_to_the_summary(run):
    folder, _ = run
    head, *lines = [json.loads(line) for line in (folder / "score.jsonl").read_text().splitlines()]
    for name in head["results"]:
        nats = sum(sum(line[name]) for line in lines)
        result = summary_of(folder)["score"][name]
        assert nats == pytest.approx(result["nats"], rel=1e-5)
        assert sum(sum(line["bytes"]) for line in lines) == result["bytes"]
        assert sum(len(line["tokens"]) for line in lines) == result["tokens"] == head["targets"]


def test_what_was_trained_and_scored_is_in_tensorboard_too(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = run
    steps = [
        event for line in (folder / "train.jsonl").read_text().splitlines() if (event := json.loads(line))["kind"] == "step"
    ]
    read = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [one.value for one in read.Scalars("train/loss")] == pytest.approx([step["loss"] for step in steps])
    summary = summary_of(folder)
    assert read.Scalars("score/main")[0].value == pytest.approx(summary["score"][summary["main"]]["bpb"])


def test_the_peak_of_memory_is_told(run):
    folder, said = run
    peak = summary_of(folder)["train"]["peak_memory_bytes"]
    assert 2**27 < peak < 2**35 and f"at most {peak / 2**30:.2f} GiB of memory" in said


def test_the_same_seed_repeats_and_another_does_not(run, tmp_path):
    folder, _ = run
    for name, seed in (("same", 1337), ("other", 1)):
        done = pgolf("--out", tmp_path / name, *SMALL, "--seed", seed)
        assert done.returncode == 0, done.stderr
    first, same, other = (summary_of(path) for path in (folder, tmp_path / "same", tmp_path / "other"))
    assert first["train"]["loss"] == same["train"]["loss"] != other["train"]["loss"]
    for result in first["score"]:
        assert first["score"][result]["nats"] == same["score"][result]["nats"] != other["score"][result]["nats"]


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    options = ["--scale", "tiny", "--steps", "100", "--training.checkpoint-seconds", "0.1", "--device", "cpu"]
    calm, cut = tmp_path / "calm", tmp_path / "cut"
    assert pgolf("train", "--out", calm, *options).returncode == 0
    training = subprocess.Popen([sys.executable, "-m", "pgolf.run", "train", "--out", cut, *options], env=ENVIRONMENT)
    while not (cut / "checkpoint.safetensors").exists():
        assert training.poll() is None
        time.sleep(0.01)
    training.kill()
    assert training.wait() == -signal.SIGKILL and not (cut / "weights.safetensors").exists()
    done = pgolf("train", "--resume", "--out", cut)
    assert done.returncode == 0, done.stderr
    assert (cut / "weights.safetensors").read_bytes() == (calm / "weights.safetensors").read_bytes()


def test_two_ranks_give_the_same_score(run, tmp_path):
    folder, _ = run
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pgolf.run"]
    done = subprocess.run([*ranks, "--out", tmp_path / "two", *SMALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = summary_of(folder), summary_of(tmp_path / "two")
    assert two["train"]["loss"] == pytest.approx(one["train"]["loss"], abs=1e-5)
    for name, result in one["score"].items():
        assert two["score"][name]["bpb"] == pytest.approx(result["bpb"], abs=1e-6)
    # said once, by the first rank
    assert done.stdout.count("\nmodel and code ") == 1


def test_stages_can_be_run_alone_and_scoring_imports_nothing_of_training(run):
    folder, _ = run
    before = summary_of(folder)
    artifact = (folder / "model.pgolf").read_bytes()
    # as `pgolf score` does it, and then with what was imported
    score = (
        "import sys; from pgolf.run import main; code = main(['score', sys.argv[1], '--device', 'cpu']); "
        "bad = [name for name in sys.modules if name.startswith('pgolf.training')]; print(bad); sys.exit(code or len(bad))"
    )
    for stage in ("pack", "score", "report", "show"):
        done = pgolf(folder, program=["-c", score]) if stage == "score" else pgolf(stage, folder)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "model.pgolf").read_bytes() == artifact
    after = summary_of(folder)
    assert {name: s["nats"] for name, s in after["score"].items()} == {name: s["nats"] for name, s in before["score"].items()}


@pytest.mark.parametrize(
    "words, code, complaint",
    [
        (["--preset", "pr54"], 2, "did you mean 'pr549'"),
        (["--model.layrs", "3"], 2, "did you mean '--model.layers'"),
        (["scroe", "x"], 2, "did you mean 'score'"),
        (["score"], 2, "score needs RUN; see: pgolf score --help"),
        (["score", "nowhere"], 1, "nowhere is no run folder"),
        (["--resume"], 2, "--resume needs --out"),
        (["--device", "abacus", "--steps", "1"], 2, "no device 'abacus'"),
        (["data", "--out", "x"], 2, "either --text"),
        (["--data.path", "nowhere", "--steps", "1"], 1, "nowhere"),
    ],
)
def test_mistakes_get_one_line(words, code, complaint, tmp_path):
    done = pgolf(*words, cwd=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert complaint in done.stderr and len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


def test_a_run_in_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("x")
    done = pgolf("--out", tmp_path / "file" / "run", *SMALL)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1


def test_a_damaged_artifact_is_refused(run, tmp_path):
    folder, _ = run
    (tmp_path / "config.toml").write_bytes((folder / "config.toml").read_bytes())
    content = bytearray((folder / "model.pgolf").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.pgolf").write_bytes(content)
    done = pgolf("score", tmp_path)
    assert done.returncode == 1 and "checksum" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "summary.json").exists()


def test_text_becomes_a_dataset_becomes_a_score(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for i in range(60):
        lines = [f"The {word} of {i} and its {word * 2}s, said once more {i * 7}." for word in "abcdefgh"]
        (text / f"{i}.txt").write_text("\n\n".join(lines))
    done = pgolf("data", "--text", text, "--out", tmp_path / "data", "--vocab", "300")
    assert done.returncode == 0, done.stderr
    words = ["--data.path", tmp_path / "data", "--model.vocab-size", "300", "--evaluation.max-tokens", "0"]
    done = pgolf("--out", tmp_path / "run", *SMALL, *words)
    assert done.returncode == 0, done.stderr
    summary = summary_of(tmp_path / "run")
    assert summary["main"] == "ngram_backoff" and not summary["score"]["ngram_backoff"]["partial"]


def test_who_reads_nothing_gets_no_traceback(run):
    script = f"{sys.executable} -m pgolf.run show {run[0]} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_torch_waits_until_its_surroundings_are_set():
    words = "import os, sys, pgolf.run; pgolf.run.wait_briefly(); print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    assert subprocess.run([sys.executable, "-c", words], capture_output=True, text=True).stdout.split() == ["False", "2000"]


def test_the_presets_are_listed_without_torch():
    program = "import sys; from pgolf.run import main; main(['--list']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == preset_names()
