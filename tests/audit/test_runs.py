"""The audit of a run: of an artifact of random weights, scored by everything that a preset has."""

import dataclasses
import json
import re

import numpy as np
import pytest

from pgolf.artifact.code import make_script
from pgolf.artifact.pack import write_artifact
from pgolf.audit import Effort, audit
from pgolf.audit.checks import findings, log_sums
from pgolf.audit.command import published_trials, record_findings
from pgolf.audit.runs import RunSubject
from pgolf.cli.common import CACHE
from pgolf.config import at_scale, load_preset, to_toml
from pgolf.data import default_dataset
from pgolf.evaluation.predictors.ngrams import NgramsPredictor
from pgolf.evaluation.predictors.tilt import BoostPredictor
from pgolf.folder import RunFolder
from pgolf.model import build_model, submission_state
from pgolf.run import main
from pgolf.summary import ArtifactSize

EFFORT = Effort(targets=300, probes=12, cuts=2, substitutions=1, samples=8)


@pytest.fixture(scope="module")
def dataset():
    return default_dataset(CACHE, vocab_size=1024)


def folder_of(path, preset, dataset, **mixer):
    """A run that is packed, with sharp random weights, so that its distributions are no uniform ones."""
    settings = at_scale(load_preset(preset), "tiny")
    evaluation = dataclasses.replace(
        settings.evaluation,
        window=64,
        stride=32,
        max_tokens=600,
        whole_windows=False,
        adaptation=dataclasses.replace(settings.evaluation.adaptation, chunk_tokens=128),
        mixer=dataclasses.replace(settings.evaluation.mixer, **mixer),
    )
    settings = dataclasses.replace(settings, evaluation=evaluation)
    found = RunFolder(path)
    found.config.write_text(to_toml(settings))
    model = build_model(settings.model, seed=1)
    model.tok_emb.weight.data *= 100
    size = write_artifact(found.artifact, submission_state(model), settings, dataset.tokenizer_path.read_bytes(),
                          code_bytes=len(make_script(settings).encode()))  # fmt: skip
    found.update_summary(artifact=ArtifactSize(**size.as_dict(), seconds=1.0))
    return found


@pytest.fixture(scope="module")
def hedge(tmp_path_factory, dataset):
    """#745, with adaptation between chunks."""
    found = folder_of(tmp_path_factory.mktemp("hedge"), "pr745", dataset)
    assert main(["score", str(found.path), "--device", "cpu"]) == 0
    return found


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
    assert claims == {"B1": True, "A1": True, "A2": True, "T1": True, "L1": True, "S": None}
    assert dataclasses.asdict(hedge.read_summary().audit) | {"seconds": 0} == {
        "passed": True, "failed": [], "tests": len(kept["tests"]), "results": legal, "seconds": 0, "decoded": None,
    }  # fmt: skip
    # the published predictor fails, and that counts for nothing
    assert {test["result"] for test in kept["shown"]} == {"published"} and not kept["shown"][0]["passed"]
    page = (hedge.path / "audit.html").read_text()
    assert page.count('class="chart curves"') == 3 and not re.search(r"(src|href)=\"(?!#|data:,)", page)


def test_a_changed_record_is_found(hedge, dataset):
    """Costs that were made cheaper in the record."""
    tokens, kept = np.asarray(dataset.val_tokens())[:601], hedge.scores.read_text()
    subject, effort = RunSubject(hedge, ["sliding", "ngrams"]), dataclasses.replace(EFFORT, targets=100)
    try:
        lines = kept.splitlines()
        line = json.loads(lines[1])
        line["ngrams"][:50] = [0.0] * 50
        hedge.scores.write_text("\n".join([lines[0], json.dumps(line), *lines[2:]]))
        found = record_findings(hedge, subject, tokens, effort)
    finally:
        hedge.scores.write_text(kept)
    verdicts = {(one.id, one.result): one.passed for one in found}
    assert verdicts == {("C4", "sliding"): True, ("R1", "sliding"): True, ("C4", "ngrams"): False, ("R1", "ngrams"): False}


def test_what_the_published_mixtures_are_said_to_give_is_what_they_score(hedge, dataset, tmp_path):
    """Entry by entry (N2), asleep and awake; and their sums exceed one."""
    tokens = np.asarray(dataset.val_tokens())
    boost = folder_of(tmp_path, "pr1014", dataset, bias_lr=0.5, ranks=2)
    # the boost wants contexts that come again
    for folder, text in ((hedge, tokens), (boost, np.tile(tokens[:40], 20))):
        subject = RunSubject(folder, published=True)
        trials = published_trials(subject, text, EFFORT)
        verdicts = {one.id: one for one in findings(trials, "published", subject.claims, ("N1", "N2"))}
        assert verdicts["N2"].passed, verdicts["N2"].figure
        assert not verdicts["N1"].passed
        assert max(log_sums(trials.probed["published"], 1024).values()) > 1e-5


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
