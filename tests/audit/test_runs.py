"""The audit of a run: of an artifact of random weights, scored by everything that a preset has."""

import dataclasses
import json
import re

import numpy as np
import pytest

from pgolf.audit import Effort, audit
from pgolf.audit.checks import findings, log_sums
from pgolf.audit.run_audit import published_trials, record_findings, scored_again
from pgolf.audit.runs import RunSubject, processes_of
from pgolf.evaluation.predictors.ngrams import NgramsPredictor
from pgolf.evaluation.predictors.tilt import BoostPredictor
from pgolf.folder import RunFolder
from pgolf.run import main
from pgolf.score_log import ScoreLog
from tests.audit.conftest import folder_of

EFFORT = Effort(targets=300, probes=12, cuts=2, substitutions=1, samples=8)


def test_a_run_is_audited_from_the_command_line(hedge, capsys):
    assert main(["audit", str(hedge.path), "--targets", "300", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "pre-flight list" in said and "audit passed" in said
    kept = json.loads((hedge.path / "audit.json").read_text())
    assert kept["passed"] and kept["decoded"] is None and kept["seconds"] > 0
    legal = [name for name, score in hedge.read_summary().score.items() if score.legal]
    assert kept["results"] == legal and len(legal) == 5
    for result in legal:
        ids = {test["id"] for test in kept["tests"] if test["result"] == result and test["passed"]}
        assert {"N1", "N2", "N3", "N4", "N5", "N5b", "C1a", "C1b", "C1c", "C1d", "C3", "C4", "R1"} <= ids
        assert max(abs(value - 1) for value in kept["sums"][result]["sums"]) < 1e-5
    claims = {test["id"]: test["passed"] for test in kept["tests"] if test["result"] == "all"}
    assert claims == {
        "F1": True,
        "F2": True,
        "B1": True,
        "A1": True,
        "A2": True,
        "T1": True,
        "L1": True,
        "L2": True,
        "S": None,
    }
    assert {test["passed"] for test in kept["tests"] if test["id"] in ("P1", "P2")} == {True}
    summary = hedge.read_summary()
    assert dataclasses.asdict(summary.audit) | {"seconds": 0, "bound": 0} == {
        "passed": True, "failed": [], "tests": len(kept["tests"]), "results": legal, "seconds": 0, "decoded": None, "bound": 0,
    }  # fmt: skip
    # everything was scored again, and costs the same
    bound = summary.audit.bound
    assert bound["targets"] == summary.main_score.tokens
    assert bound["bits_per_byte"] < 1e-3 and bound["replays"] > 0 and bound["says"] in said
    # the published predictor fails, and that counts for nothing
    assert {test["result"] for test in kept["shown"]} == {"published"} and not kept["shown"][0]["passed"]
    page = (hedge.path / "audit.html").read_text()
    assert page.count('class="chart curves"') == 3 and not re.search(r"(src|href)=\"(?!#|data:,)", page)


def test_a_changed_record_is_found(hedge, dataset, tmp_path):
    """Costs late in the stream that were made cheaper in the record: scored again, they are what they were."""
    tokens, names = np.asarray(dataset.val_tokens())[:601], ["sliding", "ngrams"]
    subject, record = RunSubject(hedge, names), ScoreLog(hedge.scores).read()
    processes = processes_of(subject, hedge, tmp_path, "ngrams", names)
    costs, failure = scored_again(processes, tokens, "ngrams")
    assert not failure and not processes.seen
    losses, found = record_findings(subject, tokens, record, costs)
    assert all(one.passed for one in found) and losses["ngrams"].max() < 1e-4
    record.nats["ngrams"][500:550] *= 0.9
    losses, found = record_findings(subject, tokens, record, costs)
    verdicts = {(one.id, one.result): one.passed for one in found}
    assert verdicts == {("C4", "sliding"): True, ("R1", "sliding"): True, ("C4", "ngrams"): True, ("R1", "ngrams"): False}
    assert losses["ngrams"].sum() == pytest.approx(0.1 * costs["ngrams"][500:550].sum(), rel=1e-3)


def test_what_the_published_mixtures_are_said_to_give_is_what_they_score(hedge, dataset, tmp_path):
    """Entry by entry (N2), asleep and awake; and their sums exceed one."""
    tokens = np.asarray(dataset.val_tokens())
    boost = folder_of(tmp_path, "pr1014", dataset, bias_lr=0.5, ranks=2)
    # the boost wants contexts that come again, and of those some that its network finds hard
    again = [np.tile(tokens[start : start + 40], 20) for start in (0, 40, 80)]
    for folder, texts in ((hedge, [tokens]), (boost, again)):
        sums, verdicts = [], []
        for text in texts:
            subject = RunSubject(folder, published=True)
            trials = published_trials(subject, text, EFFORT)
            verdicts.append({one.id: one for one in findings(trials, "published", subject.claims, ("N1", "N2"))})
            sums.append(max(log_sums(trials.probed["published"], 1024).values()))
            assert verdicts[-1]["N2"].passed, verdicts[-1]["N2"].figure
        assert max(sums) > 1e-2 and not all(verdict["N1"].passed for verdict in verdicts)


def test_documents_with_adapters(tmp_path, dataset):
    folder = folder_of(tmp_path, "pr549", dataset)
    settings = folder.config.read_text().replace('method = "chunks"', 'method = "lora"').replace("published_tail = true", "")
    folder.config.write_text(settings)
    subject = RunSubject(folder, ["adapted", "ngram_backoff"])
    assert subject.claims.isolated
    tokens = np.asarray(dataset.val_tokens())
    border = dataset.documents(tokens)[3]
    report = audit(subject, tokens[border - 200 :], effort=dataclasses.replace(EFFORT, targets=400))
    assert report.passed, [(one.id, one.result, one.figure, one.says) for one in report.failed]
    verdicts = {one.id: one.passed for one in report.findings if one.result == "adapted"}
    assert verdicts["D1"] and verdicts["C3"] and verdicts["N2"]
    # the n-gram back-off's weights are those of the whole stream
    assert [one.passed for one in report.findings if (one.id, one.result) == ("D1", "ngram_backoff")] == [None]


def peeking(self, span, statistics):
    """What comes next is counted first."""
    np.add.at(self.unigram, span.targets, 3)
    self.counted += 3 * len(span.targets)
    return honest_score(self, span, statistics)


honest_score, honest_predict = NgramsPredictor.score, NgramsPredictor.predict


@pytest.mark.parametrize(
    "broken, expected",
    [
        ({"score": peeking}, {"C1a", "N2"}),
        ({"predict": lambda self, row: honest_predict(self, row) + 0.1}, {"N1", "N2"}),
        ({"score": lambda self, span, known: 0.9 * honest_score(self, span, known)}, {"N2", "N5"}),
    ],
    ids=["counts ahead", "predicts too much", "costs too little"],
)
def test_a_broken_predictor_is_found(hedge, dataset, monkeypatch, broken, expected):
    for name, function in broken.items():
        monkeypatch.setattr(NgramsPredictor, name, function)
    subject = RunSubject(hedge, ["ngrams"])
    report = audit(subject, np.asarray(dataset.val_tokens()), effort=EFFORT)
    assert expected <= {one.id for one in report.failed}


def test_a_predictor_that_forgets_to_divide(tmp_path, dataset, monkeypatch):
    folder = folder_of(tmp_path, "pr1014", dataset, honest=("boost",))
    monkeypatch.setattr(BoostPredictor, "score", lambda self, span, known: honest_boost(self, span, known) - 0.2)
    report = audit(RunSubject(folder, ["boost_honest"]), np.asarray(dataset.val_tokens()), effort=EFFORT)
    assert "N2" in {one.id for one in report.failed}


honest_boost = BoostPredictor.score


def test_a_run_that_cannot_be_audited(tmp_path, hedge, capsys):
    assert main(["audit"]) == 2 and main(["audit", str(tmp_path)]) == 1
    assert main(["audit", str(hedge.path), "--scorer", "a:b"]) == 2
    assert main(["audit", "--scorer", "no_such_module:Name"]) == 1
    said = capsys.readouterr().err
    assert "needs either" in said and "no module 'no_such_module'" in said
    bare = RunFolder(tmp_path / "bare")
    bare.path.mkdir()
    bare.config.write_text(hedge.config.read_text())
    assert main(["audit", str(bare.path)]) == 1 and "not finished" in capsys.readouterr().err
