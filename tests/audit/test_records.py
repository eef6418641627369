"""Claims at rest: a run folder in which a figure was edited. Whatever it improves is named."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from pgolf.artifact.code import make_script
from pgolf.artifact.compression import pack_text, unpack_text
from pgolf.artifact.container import join_sections, read_container
from pgolf.artifact.errors import ArtifactError
from pgolf.artifact.pack import META_LIMIT
from pgolf.audit.command import plain
from pgolf.audit.records import recount
from pgolf.config import read_toml
from pgolf.folder import RunFolder
from pgolf.score_log import ScoreLog


def named(folder, dataset, summary=None, record=None):
    """What the findings F1 and F2 say of a folder."""
    settings = read_toml(folder.config)
    tokens = np.asarray(dataset.val_tokens())[: settings.evaluation.max_tokens + 1]
    record = record or ScoreLog(folder.scores).read()
    code = make_script(settings, "cpu")
    found = list(
        recount(folder, settings, summary or dataclasses.asdict(folder.read_summary()), dataset, tokens, record, code)
    )
    return " ".join(one.says for one in found if not one.passed)


def test_an_honest_run_is_recounted_without_a_word(hedge, dataset):
    assert named(hedge, dataset) == ""


def set_in(summary, path, value):
    *parents, last = path.split(".")
    place = summary
    for parent in parents:
        place = place[parent]
    place[last] = value(place[last]) if callable(value) else value


@pytest.mark.parametrize(
    "path, value",
    [
        ("score.ngrams.bpb", 0.527),
        ("score.ngrams.nats", lambda nats: 0.9 * nats),
        ("score.ngrams.bytes", lambda count: count + 900),
        ("score.ngrams.tokens", lambda count: count + 1),
        ("score.ngrams.gain", 0.3),
        ("score.sliding.legal", False),
        ("score.published.legal", True),
        ("main", "published"),
        ("main", "sliding"),
        ("artifact.total_bytes", 90_000),
        ("artifact.model_bytes", 60_000),
        ("artifact.code_bytes", 1_000),
        ("artifact.tokenizer_bytes", 8_000_000),
        ("artifact.limit", 64_000_000),
        ("scoring.gave_up", {"adaptation": 0.5}),
        ("scoring.limit", 9e9),
        ("scoring.seconds", 1.0),
        ("scoring.over_limit", True),
        ("score.ngrams.partial", False),
        ("score.sliding.gain", 0.3),
        ("score.non_overlapping.gain", 0.3),
        ("compressors.xz -9e.bytes", lambda count: 2 * count),
        ("compressors.xz -9e.text_bytes", lambda count: count // 2),
    ],
)
def test_an_edited_figure_is_named(hedge, dataset, path, value):
    summary = dataclasses.asdict(hedge.read_summary())
    set_in(summary, path, value)
    assert path in named(hedge, dataset, summary)


def test_an_edited_share_of_the_corpus_is_named(hedge, dataset):
    summary = dataclasses.asdict(hedge.read_summary())
    summary["corpus"] = {"name": dataset.name, "digest": dataset.digest, "shared": dataset.shared}
    assert named(hedge, dataset, summary) == ""
    summary["corpus"]["shared"] += 0.1
    assert "corpus.shared" in named(hedge, dataset, summary)


def test_an_invented_result_is_named(hedge, dataset):
    summary = dataclasses.asdict(hedge.read_summary())
    for legal in (True, False):
        summary["score"]["invented"] = summary["score"]["sliding"] | {"legal": legal, "bpb": 0.5}
        summary["main"] = "invented"
        said = named(hedge, dataset, summary)
        assert "score.invented is no result" in said and "main is invented" in said


def test_an_edited_record_does_not_add_up(hedge, dataset):
    record = ScoreLog(hedge.scores).read()
    record.nats["ngrams"][300:] *= 0.5
    assert "score.ngrams.nats" in named(hedge, dataset, record=record)
    record = ScoreLog(hedge.scores).read()
    shorter = dataclasses.replace(record, bytes=record.bytes + 1)
    assert "other bytes than the tokens spell" in named(hedge, dataset, record=shorter)


def test_other_settings_than_the_artifact_says_are_named(hedge, dataset, tmp_path):
    folder = RunFolder(tmp_path / "edited")
    shutil.copytree(hedge.path, folder.path)
    folder.config.write_text(folder.config.read_text().replace("stride = 32", "stride = 16"))
    folder.plan.unlink()
    assert "scored otherwise than config.toml" in named(folder, dataset)


@pytest.mark.parametrize(
    "edit, said",
    [
        (lambda sections, meta: meta["scoring"]["evaluation"].update(stride=8), "scored otherwise than config.toml"),
        (lambda sections, meta: sections.update(notes=bytes(1000)), "sections that nothing reads: notes"),
        (lambda sections, meta: sections.update(tokenizer=pack_text(bytes(9))), "another tokenizer than the dataset's"),
        (lambda sections, meta: sections.update(codes=sections["codes"][:-1]), "damaged"),
    ],
    ids=["scored otherwise", "a section more", "another tokenizer", "a byte less"],
)
def test_an_artifact_that_was_signed_again_is_named(hedge, dataset, tmp_path, edit, said):
    folder = RunFolder(tmp_path / "edited")
    shutil.copytree(hedge.path, folder.path)
    sections = dict(read_container(folder.artifact))
    meta = json.loads(unpack_text(sections["meta"], META_LIMIT))
    edit(sections, meta)
    sections["meta"] = pack_text(json.dumps(meta, separators=(",", ":")).encode())
    folder.artifact.write_bytes(join_sections(sections))
    try:
        found = named(folder, dataset)
    except ArtifactError as error:
        found = str(error)
    assert said in found


def test_another_dataset_and_a_shorter_clock_are_named(hedge, dataset, tmp_path):
    """The text's digest; training's seconds and steps against its own log."""
    folder = RunFolder(tmp_path / "edited")
    shutil.copytree(hedge.path, folder.path)
    summary = dataclasses.asdict(folder.read_summary())
    summary["corpus"] = {"name": dataset.name, "digest": dataset.digest}
    seconds = {"parts": {"steps": 70.0, "rounding": 5.0}}
    folder.train_log.write_text(json.dumps({"kind": "end", "steps": 300, "loss": 3.0, "seconds": seconds}) + "\n")
    settings = read_toml(folder.config)
    honest = {"limit": settings.training.seconds, "steps": 300, "loss": 3.0, "seconds": 75.0, **seconds}
    honest["over_limit"] = not settings.training.steps and honest["seconds"] > honest["limit"]
    summary["train"] = honest
    assert named(folder, dataset, summary) == ""
    assert "corpus.digest" in named(folder, dataclasses.replace(dataset, digest="0" * 16), summary)
    for name, value in {"seconds": 59.0, "steps": 100, "loss": 2.0, "limit": 600.5, "parts": {"steps": 54.0}}.items():
        summary["train"] = honest | {name: value}
        assert f"train.{name}" in named(folder, dataset, summary)


def test_a_plan_that_gave_something_up_is_recounted(hedge, dataset, tmp_path):
    folder = RunFolder(tmp_path / "edited")
    shutil.copytree(hedge.path, folder.path)
    plan = json.loads(folder.plan.read_text())
    plan["spans"] = [[start, stride, 0] for start, stride, _ in plan["spans"]]
    folder.plan.write_text(json.dumps(plan))
    assert "scoring.gave_up" in named(folder, dataset)


def test_json_holds_no_infinity():
    text = json.dumps(plain({"a": [float("inf"), np.float64(1.5), float("nan")], 3: np.int64(2)}), allow_nan=False)
    assert json.loads(text) == {"a": [None, 1.5, None], "3": 2}
