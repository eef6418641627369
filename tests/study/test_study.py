"""A study from its file to its page, with stages that do no work; killed, gated, crashed and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pgolf.cli import study as command
from pgolf.config import at_scale, changed, load_preset, to_toml
from pgolf.errors import PgolfError
from pgolf.folder import RunFolder
from pgolf.run import main
from pgolf.study import driver as driver_module
from pgolf.study.driver import Driver
from pgolf.study.executors import LocalExecutor, executor_of
from pgolf.study.ledger import Ledger, LedgerError
from pgolf.study.page import publish
from pgolf.study.plan import StudyError, read_study, study_of
from pgolf.study.results import compared
from tests.study.fake_stage import Here

ROOT = Path(__file__).parents[2]
TABLE = {
    "name": "trial",
    "preset": "pr549",
    "scale": "tiny",
    "seeds": [1, 2],
    "steps": 4,
    "arms": {
        "relu": {"title": "ReLU²", "settings": {"model": {"mlp_slope": 0.0}}},
        "five": {"settings": {"artifact": {"matrix_bits": 5}}},
        "same": {"title": "half the windows", "settings": {"evaluation": {"batch": 2}}},
    },
}


def table(**changes):
    return {**TABLE, **changes}


def run(folder, about=TABLE, executor=None, **options):
    said = []
    study = study_of(about, "trial.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver_module, "STAGE_MODULE", "tests.study.fake_stage")
        patch.setattr(driver_module, "PAUSE", 0.0 if executor is None else 0.05)
        return Driver(study, folder, executor or Here(), say=said.append, **options).run(), study, said


def ran(folder, name):
    return [line.split()[0] for line in (folder / "runs" / name / "ran.txt").read_text().splitlines()]


def summaries(folder):
    return {path.parent.name: path.read_bytes() for path in sorted((folder / "runs").glob("*/summary.json"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    code, study, said = run(folder)
    assert code == 0 and said[-1].startswith("8 of 8 runs"), said
    return folder, study


# ---- what is run


def test_every_run_has_its_stages_and_borrows_the_others(finished):
    folder, study = finished
    assert ran(folder, "base-1") == ran(folder, "relu-2") == ["train", "pack", "score"]
    assert ran(folder, "five-2") == ["pack", "score"] and ran(folder, "same-1") == ["score"]
    assert (folder / "runs/five-2/weights.safetensors").read_text() == "weights of 2"
    assert {arm: one.first_stage for arm, one in study.arms.items()} == {
        "base": "train", "relu": "train", "five": "pack", "same": "score",
    }  # fmt: skip


def test_a_second_call_runs_nothing(finished):
    folder, _ = finished
    before = (folder / "ledger.jsonl").read_bytes()
    code, _, said = run(folder)
    assert code == 0 and said == ["8 runs, 8 of them done; 2 at once (here)"]
    assert (folder / "ledger.jsonl").read_bytes() == before


def test_the_ledger_says_what_ran(finished):
    folder, _ = finished
    lines = list(Ledger(folder / "ledger.jsonl").lines())
    begun, ended = ([line for line in lines if line["kind"] == kind] for kind in ("begin", "end"))
    assert len(begun) == len(ended) == 2 * (3 + 3 + 2 + 1)
    last = next(line for line in ended if line["run"] == "relu-1" and line["stage"] == "score")
    assert last["exit"] == 0 and last["device"] == "none" and last["corpus"] == "ab" * 32
    assert last["figures"].keys() >= {"score.main", "score.sliding", "artifact.total_bytes", "train.seconds"}
    assert len({line["settings"] for line in begun}) == 8 and all(line["attempt"] == 1 for line in begun)


def test_stages_are_pinned(tmp_path):
    run(tmp_path, table(seeds=[1], arms={"five": TABLE["arms"]["five"]}), LocalExecutor(2))
    cores = len(os.sched_getaffinity(0))
    share = cores // min(2, cores)
    lines = (tmp_path / "runs/base-1/ran.txt").read_text().splitlines()
    assert {tuple(line.split()[1:]) for line in lines} == {(str(share), str(share))}


def test_a_study_that_is_killed_twice_goes_on_and_comes_to_the_same(tmp_path):
    """Killed without warning while stages run; the stages end with it, and the next call takes them up."""
    small = table(seeds=[1], arms={"relu": TABLE["arms"]["relu"]})
    run(tmp_path / "whole", small)
    folder = tmp_path / "killed"
    code = (
        f"import sys; from pathlib import Path; from tests.study.test_study import *\n"
        f"sys.exit(run(Path({str(folder)!r}), {small!r}, LocalExecutor(2))[0])"
    )
    ledger = folder / "ledger.jsonl"
    for begun in (2, 5):
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "FAKE_SECONDS": "0.2"}, start_new_session=True
        )
        end = time.monotonic() + 120
        while not ledger.exists() or ledger.read_text().count('"begin"') < begun:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with open(ledger, "a") as file:
            file.write('{"kind": "begin", "run": "ba')  # a line that it did not finish
    assert run(folder, small, LocalExecutor(2))[0] == 0
    assert summaries(folder) == summaries(tmp_path / "whole") and len(summaries(folder)) == 2
    assert all(len(state.done) == 3 and not state.crashed for state in Ledger(ledger).states().values())


def test_a_stage_that_crashes_is_told_and_can_be_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_TROUBLE", "relu-1 pack")
    code, study, said = run(tmp_path)
    assert code == 1 and "relu-1: pack failed, exit 1: pgolf: this stage cannot work" in "\n".join(said)
    found = {one.arm.name: one for one in compared(study, tmp_path)}
    assert found["relu"].trouble == ["relu-1: pack failed, exit 1: pgolf: this stage cannot work"]
    assert list(found["relu"].changes) == [2] and list(found["five"].changes) == [1, 2]
    monkeypatch.delenv("FAKE_TROUBLE")
    assert run(tmp_path)[0] == 1  # it is not tried again unasked
    assert run(tmp_path, retry=True)[0] == 0 and ran(tmp_path, "relu-1") == ["train", "pack", "pack", "score"]


def test_what_borrows_from_a_crash_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_TROUBLE", "base-1 train")
    code, study, _ = run(tmp_path, table(seeds=[1]))
    assert code == 1 and not (tmp_path / "runs/five-1").exists() and ran(tmp_path, "relu-1")[-1] == "score"
    assert "no result; five-1: not finished" in {one.arm.name: one.verdict for one in compared(study, tmp_path)}["five"]


@pytest.mark.parametrize("after, stages", [("train", ["train"]), ("score", ["train", "pack", "score"])])
def test_a_gate_stops_an_arm_with_its_later_seeds(tmp_path, after, stages):
    figure = "train.loss" if after == "train" else "score.main"
    code, study, said = run(tmp_path, table(gates=[{"after": after, "figure": figure, "worse_by": 0.03}]))
    assert code == 0 and any(line.startswith("relu-1: stopped by a gate") for line in said)
    assert ran(tmp_path, "relu-1") == stages and not (tmp_path / "runs/relu-2").exists()
    assert ran(tmp_path, "five-2")[-1] == "score"
    before = (tmp_path / "ledger.jsonl").read_bytes()
    run(tmp_path, table(gates=[{"after": after, "figure": figure, "worse_by": 0.03}]))
    assert (tmp_path / "ledger.jsonl").read_bytes() == before and not (tmp_path / "runs/relu-2").exists()


def test_two_drivers_do_not_share_a_folder(tmp_path):
    with Ledger(tmp_path / "ledger.jsonl").held(), pytest.raises(LedgerError, match="in use by another"):
        run(tmp_path)


def test_other_settings_do_not_use_the_same_runs(finished):
    folder, _ = finished
    with pytest.raises(StudyError, match="holds a run of other settings"):
        run(folder, table(steps=5))


# ---- what it says


def test_differences_are_paired_and_corrected(finished):
    folder, study = finished
    found = {one.arm.name: one for one in compared(study, folder)}
    relu, five, same = found["relu"], found["five"], found["same"]
    assert relu.change == pytest.approx(0.05) and five.change == pytest.approx(0.01) and same.change == 0
    assert relu.better is False and "ReLU²: worse, +0.0500 bits per byte against base" in relu.verdict
    assert same.better is None and "no difference" in same.verdict
    assert relu.documents.count == 4 and relu.documents.change == pytest.approx(0.05, abs=1e-4) and relu.documents.better == 0
    assert relu.seconds == pytest.approx(17 / 15) and five.bytes == -1000
    assert relu.adjusted >= relu.p


def test_runs_that_gave_up_different_work_are_not_compared(tmp_path):
    arms = {"short": {"settings": {"evaluation": {"stride": 16}}}}
    _, study, _ = run(tmp_path, table(arms=arms))
    (one,) = compared(study, tmp_path)
    assert one.better is None and "not comparable, because the clock made the runs give up different work" in one.verdict
    publish(study, tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert "| evaluation.stride = 16 |" in text and "| not comparable |" in text


def test_one_seed_is_told_as_one(tmp_path):
    _, study, _ = run(tmp_path, table(seeds=[1]))
    relu = compared(study, tmp_path)[0]
    assert relu.p is None and "with one seed, which says nothing of other seeds; over documents p =" in relu.verdict


def test_the_page_and_the_table(finished):
    folder, study = finished
    said = publish(study, folder)
    page, text = (folder / "study.html").read_text(), (folder / "study.md").read_text()
    assert "ReLU²: worse" in said and "ReLU²: worse" in page and "Holm" in page
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3 and {len(row.split(" | ")) for row in rows[2:]} == {8} and "| worse |" in rows[2]
    assert (folder / "forest.svg").read_text().count("<circle") >= 3
    assert page.count('role="row"') >= 5


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "executor_of", lambda *_: Here())
    study = tmp_path / "s.toml"
    study.write_text(
        'seeds = [1, 2]\nscale = "tiny"\npreset = "pr549"\nsteps = 4\n[arms.relu]\nsettings.model.mlp_slope = 0.0\n'
    )
    assert main(["study", str(study), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "4 of 4 runs" in said and "model.mlp_slope = 0.0: worse" in said and (tmp_path / "out/study.html").exists()
    assert main(["study", str(tmp_path / "none.toml")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_real_stage_does_its_work_once(tmp_path):
    """The command that executors run, with the work in it."""
    folder = RunFolder.create(tmp_path / "run")
    settings = at_scale(load_preset("pr549"), "tiny")
    folder.config.write_text(to_toml(replace(settings, training=replace(settings.training, steps=1, warmup_steps=0))))
    words = [sys.executable, "-m", "pgolf.study.stage", str(folder.path), "train", "--device", "cpu"]
    for _ in range(2):
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert folder.read_summary().train.steps == 1
    assert folder.log.read_text().count("trained 1 steps") == 1


# ---- the file


@pytest.mark.parametrize(
    "change, said",
    [
        ({"sedes": [1]}, "no entry 'sedes'; did you mean 'seeds'?"),
        ({"seeds": []}, "one at least"),
        ({"seeds": [1, 1]}, "names a seed twice"),
        ({"arms": {}}, "nothing to compare"),
        ({"arms": {"x": {"settings": {"model": {"mlp_slop": 0.0}}}}}, "no setting 'mlp_slop'; did you mean 'mlp_slope'?"),
        ({"arms": {"x": {"settings": {}}}}, "it is the base itself"),
        ({"arms": {"x": {"settings": {"model": {"mlp_slope": 0.0}}, "against": "bas"}}}, "did you mean 'base'"),
        ({"arms": {"base": {"settings": {"model": {"mlp_slope": 0.0}}}}}, "'base' is taken"),
        ({"steps": 4, "seconds": 5.0}, "steps or seconds, not both"),
        ({"gates": [{"after": "trane", "figure": "train.loss", "worse_by": 1}]}, "it can be train, pack, score"),
        ({"gates": [{"after": "train", "figure": "train.los", "worse_by": 1}]}, "did you mean 'train.loss'?"),
        ({"gates": [{"after": "train", "figure": "train.loss"}]}, "worse_by is a number"),
        ({"grid": {"training.muon_lr": 0.02}}, "is a list of values"),
        ({"preset": "pr54"}, "no preset 'pr54'"),
    ],
)
def test_a_wrong_file_is_one_line(change, said):
    with pytest.raises(PgolfError) as error:
        study_of(table(**change), "trial.toml")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_grid_is_every_combination():
    study = study_of(table(arms={}, grid={"training.muon_lr": [0.02, 0.05], "model.mlp_slope": [0.0, 0.25]}), "trial.toml")
    assert list(study.arms) == [
        "base", "muon_lr-0.02-mlp_slope-0.0", "muon_lr-0.02-mlp_slope-0.25", "muon_lr-0.05-mlp_slope-0.0",
        "muon_lr-0.05-mlp_slope-0.25",
    ]  # fmt: skip
    arm = study.arms["muon_lr-0.05-mlp_slope-0.25"]
    assert (arm.settings.training.muon_lr, arm.settings.model.mlp_slope) == (
        0.05,
        0.25,
    ) and "training.muon_lr = 0.05" in arm.title


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("docs/*.toml")) + sorted(ROOT.glob("recipes/**/*.toml")), ids=lambda p: p.name
)
def test_the_studies_of_the_project_can_be_run(path):
    study = read_study(path)
    assert study.others and study.title and all(one.settings.seed == 0 for one in study.arms.values())


def test_the_branchs_switches_are_flipped_one_at_a_time():
    arms = read_study(ROOT / "docs/history.toml").arms
    stages = {one.name: one.first_stage for one in arms.values()}
    assert len(arms) == 30 and list(stages.values()).count("score") == 6 and stages["int5"] == "pack"
    changed_by = {name: changed(arms[name].settings, arms["base"].settings) for name in ("hyper", "int5", "raw")}
    assert changed_by == {
        "hyper": {"model": {"hyper_layers": 4}},
        "int5": {"artifact": {"matrix_bits": 5}},
        "raw": {"training": {"export": "raw"}},
    }


def test_an_arm_can_be_held_against_another_score_of_its_own(tmp_path):
    arms = {"own": {"settings": {"evaluation": {"batch": 2}}, "against": "own", "score": "sliding"}}
    _, study, _ = run(tmp_path, table(arms=arms, seeds=[1]))
    (one,) = compared(study, tmp_path)
    assert one.change == 0 and "against its own score by main" in one.verdict


def test_an_unknown_executor(tmp_path):
    with pytest.raises(PgolfError, match="there are local, slurm and ray"):
        executor_of("moon", tmp_path, 0, {})


def test_a_damaged_ledger_line_is_passed_over(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("begin", run="a-1", stage="train")
    with open(ledger.path, "a") as file:
        file.write('{"kind": "end", "run": "a-1", "st')
    ledger.append("end", run="a-1", stage="train", exit=0)
    assert [line["kind"] for line in ledger.lines()] == ["begin", "end"]
    assert ledger.states()["a-1"].done == {"train"} and json.loads(ledger.path.read_text().splitlines()[-1])["exit"] == 0
