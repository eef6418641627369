"""Auditing a scorer of one's own from the command line: another process, files, the network, and what is left behind."""

import json
import shutil
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest

from pgolf.audit import Finding, Report, run_audit
from pgolf.audit.trials import Effort
from pgolf.cli import audit as cli
from pgolf.evaluation.codec import CodecError
from pgolf.folder import RunFolder
from pgolf.run import main

SCORER = """
import socket
from pathlib import Path

import numpy as np

SECRET = Path(__file__).with_name("answers.txt")


class Uniform:
    vocab = 50

    def __init__(self):
        {trouble}

    def predict(self):
        return np.full(50, -np.log(50)) {surplus}

    def observe(self, token):
        pass
"""


def written(folder, trouble="pass", surplus=""):
    path = folder / "mine.py"
    path.write_text(textwrap.dedent(SCORER).format(trouble=trouble, surplus=surplus))
    (folder / "answers.txt").write_text("42")
    return f"{path}:Uniform"


def audited(folder, *options, **source):
    np.save(folder / "text.npy", np.random.default_rng(0).integers(0, 50, 301))
    words = ["audit", "--scorer", written(folder, **source), "--targets", "200", "--out", str(folder)]
    code = main([*words, "--tokens", str(folder / "text.npy"), *options])
    found = json.loads((folder / "audit.json").read_text())
    return code, {test["id"]: test for test in found["tests"]}, found


def test_a_file_with_a_scorer(tmp_path, capsys):
    code, tests, found = audited(tmp_path)
    assert code == 0 and found["passed"] and found["results"] == ["score"]
    assert {id for id, test in tests.items() if test["passed"] is None} == {"B1", "A2", "T1", "L1", "L2", "S", "D1"}
    assert tests["A1"]["passed"]
    assert found["sums"]["score"]["mean"] == pytest.approx(1) and found["uniform"]["results"]["score"][-1] == pytest.approx(0)
    assert "audit passed: 16 tests hold" in capsys.readouterr().out
    # all of the claim was replayed, and nothing of it is unearned
    assert found["bound"]["replays"] == found["bound"]["targets"] == 300 and found["bound"]["bits"] < 0.1
    assert (tmp_path / "audit.html").read_text().startswith("<!doctype html>")


def test_more_than_one(tmp_path, capsys):
    code, tests, _ = audited(tmp_path, surplus="+ 0.2")
    assert code == 1 and not tests["N1"]["passed"] and not tests["N5"]["passed"]
    said = capsys.readouterr().out
    assert "audit FAILED" in said and "[C2] FAILS" in said and "sum to 1.221, more than one" in said


@pytest.mark.parametrize(
    "trouble, said",
    [
        ("SECRET.read_text()", "answers.txt"),
        ("socket.getaddrinfo('127.0.0.1', 80); socket.create_connection(('127.0.0.1', 80))", "refused"),
        ("import os; self.path = os.environ['HOME_OF_THE_AUDITOR']", "KeyError"),
    ],
    ids=["a file", "the network", "a variable"],
)
def test_what_the_sandbox_sees(tmp_path, monkeypatch, trouble, said):
    monkeypatch.setenv("HOME_OF_THE_AUDITOR", "here")
    code, tests, _ = audited(tmp_path, trouble=trouble)
    assert code == 1
    assert [id for id, test in tests.items() if test["passed"] is False] == ["A1"]
    assert said in tests["A1"]["says"] or "unreachable" in tests["A1"]["says"]


def test_tokens_of_ones_own(tmp_path, capsys):
    name = written(tmp_path)
    np.save(tmp_path / "tokens.npy", np.arange(400) % 50)
    words = ["audit", "--scorer", name, "--targets", "100", "--out", str(tmp_path), "--tokens"]
    assert main([*words, str(tmp_path / "tokens.npy")]) == 0
    np.save(tmp_path / "tokens.npy", np.arange(400))
    assert main([*words, str(tmp_path / "tokens.npy")]) == 1
    assert "the scorer's symbols end at 49" in capsys.readouterr().err
    np.save(tmp_path / "tokens.npy", np.ones((3, 4)))
    assert main([*words, str(tmp_path / "tokens.npy")]) == 1 and "holds no tokens" in capsys.readouterr().err
    assert main(["audit", "--scorer", str(tmp_path / "other.py") + ":Uniform"]) == 1
    assert main(["audit", "--scorer", name + "s"]) == 1
    assert "no attribute 'Uniforms'" in capsys.readouterr().err


@pytest.mark.parametrize("seconds, cuts, targets", [
    (1.0, run_audit.FEWEST_CUTS, 400), (10.0, Effort.cuts, 400), (100.0, Effort.cuts, 4000), (1e9, Effort.cuts, 9000)
])  # fmt: skip
def test_a_short_clock_gets_a_smaller_audit(seconds, cuts, targets, monkeypatch):
    """A scorer that takes a millisecond a target, by a clock that only scoring moves."""
    clock = SimpleNamespace(now=0.0)

    def score(tokens):
        clock.now += 1e-3 * (len(tokens) - 1)

    monkeypatch.setattr(run_audit.time, "perf_counter", lambda: clock.now)
    subject = SimpleNamespace(least_targets=400, settings=SimpleNamespace(window=32), score=score)
    effort = run_audit.effort_for(subject, np.zeros(9001, np.int64), seconds)
    assert (effort.cuts, effort.targets) == (cuts, targets)


def test_the_beginning_of_a_claim_is_decoded(tmp_path, capsys):
    code, _, found = audited(tmp_path, "--decode", "100")
    assert code == 0 and found["decoded"]["equal"] and found["decoded"]["passed"] and found["decoded"]["tokens"] == 100
    assert 0 <= found["decoded"]["real_bits"] - found["decoded"]["claimed_bits"] < 160
    assert "decoded again, 100 tokens came back whole" in capsys.readouterr().out


@pytest.mark.parametrize("error", [CodecError("no bits today"), None], ids=["an error", "another length"])
def test_a_failed_decoding_keeps_the_audit(hedge, dataset, tmp_path, monkeypatch, error, capsys):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(hedge.path, folder.path)
    finding = Finding("N1", "C2", "sums", "ngrams", "1", True, "They sum to one.")
    monkeypatch.setattr(
        cli, "audit_run", lambda *args, **options: Report([finding], ["ngrams"], 1.0, bound={"says": "So.", "seed": 1})
    )

    def prove(*args, claimed_bits, **options):
        if error:
            raise error
        return {
            "result": "ngrams",
            "equal": True,
            "claimed_bits": claimed_bits,
            "code_bits": claimed_bits + 900,
            "real_bits": 9e9,
        }

    monkeypatch.setattr("pgolf.evaluation.codec.prove", prove)
    assert main(["audit", str(folder.path), "--decode", "100", "--device", "cpu"]) == 1
    kept = json.loads((folder.path / "audit.json").read_text())
    assert not kept["passed"] and kept["tests"][0]["id"] == "N1" and not kept["decoded"]["passed"]
    assert ("no bits today" in kept["decoded"].get("said", "")) == bool(error)
    audit = folder.read_summary().audit
    assert not audit.passed and audit.failed == [] and audit.bound["says"] == "So." and not audit.decoded["passed"]
    assert "Compressed and decoded again, 100 tokens" in capsys.readouterr().out


def test_the_seed_is_drawn_and_printed(tmp_path, capsys):
    seeds = {audited(tmp_path)[2]["bound"]["seed"] for _ in range(2)}
    assert len(seeds) == 2 and str(max(seeds)) in capsys.readouterr().out
    assert audited(tmp_path, "--seed", "5")[2]["bound"]["seed"] == 5
