"""Whole evaluations of a small network: which predictors there are, one rank or two, documents with adapters, the records."""

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf.budget import Budget
from pgolf.config import (
    AdaptationSettings,
    EvaluationSettings,
    LoraSettings,
    MixerSettings,
    ModelSettings,
    SettingsError,
    TemperatureSettings,
)
from pgolf.distributed import World, launch
from pgolf.evaluation.evaluate import Result, evaluate
from pgolf.evaluation.metric import score_of
from pgolf.evaluation.ngram_table import learn_ngram_table
from pgolf.evaluation.predictors.base import Span
from pgolf.evaluation.predictors.ngram_backoff import NgramBackoffPredictor
from pgolf.evaluation.predictors.ngrams import NgramsPredictor
from pgolf.evaluation.predictors.temperature import Plain, Tempered
from pgolf.evaluation.records import (
    paired_gain,
    read_plan,
    results_table,
    write_top_predictions,
    write_traces,
)
from pgolf.evaluation.scoring_pass import DocumentScores
from pgolf.evaluation.stream import ScoredStream
from pgolf.evaluation.top_predictions import excerpts
from pgolf.model import build_model
from pgolf.score_log import write_scores
from tests.evaluation.toy import BOS, Bytes, Toy, text

MODEL = ModelSettings(
    vocab_size=24, layers=2, dim=32, heads=2, kv_heads=1, mlp_hidden=48, rotary_dims=8, bigram_buckets=32, bigram_dim=8,
    value_embedding_layers=(1,), value_embedding_dim=8, xsa_last=1, softcap=8.0,
)  # fmt: skip
SETTINGS = EvaluationSettings(
    window=32,
    stride=8,
    batch=4,
    published_tail=True,
    adaptation=AdaptationSettings("none", chunk_tokens=160, epochs=1, batch_sequences=4, lr=0.05),
    mixer=MixerSettings(orders=3, granularity=4, ranks=2, bias_lr=0.5),
)


def network(dtype=torch.float64):
    model = build_model(MODEL, dtype=dtype, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
    return model.eval()


def settings_with(adaptation="none", temperature="none", honest=(), published="none", **others):
    return dataclasses.replace(
        SETTINGS,
        adaptation=dataclasses.replace(SETTINGS.adaptation, method=adaptation),
        temperature=TemperatureSettings(temperature, 0.95),
        mixer=dataclasses.replace(SETTINGS.mixer, honest=honest, published=published),
        **others,
    )


def run(settings, count=700, model=None, **options):
    tokens = text(count, document=90)
    options.setdefault("budget", Budget(1e6))
    return tokens, evaluate(model or network(), tokens, Bytes(), settings, bos=BOS, **options)


# ---- which predictors


def test_a_fixed_model_with_everything():
    settings = settings_with("none", "online", ("ngram_backoff", "boost", "bias", "tilt", "ngrams"), "boost")
    tokens, found = run(settings)
    names = ["non_overlapping", "sliding", "temperature", "ngram_backoff", "boost_honest", "bias_honest", "tilt", "ngrams"]
    assert list(found.results) == [*names, "sliding_published", "published"]
    for name, result in found.results.items():
        assert np.isfinite(result.nats).all() and result.score.legal == ("published" not in name)
        assert math.fsum(result.nats) == result.score.nats
    bases = {name: result.base for name, result in found.results.items()}
    assert bases == {
        **dict.fromkeys(names[3:], "temperature"),
        "published": "temperature",
        "sliding_published": "sliding",
        "temperature": "sliding",
        "sliding": "non_overlapping",
        "non_overlapping": "",
    }
    assert found.main == [name for name in found.results if found.results[name].score.legal][-1]
    assert found.gave_up == {} and found.plan["spans"][0] == [0, 8, 0]
    assert {"target", "temperature", "ngram_backoff", "ngrams", "published"} <= found.traces[-1].keys()
    # the tail counts again, with the bytes of its targets
    tail = found.results["sliding_published"]
    assert tail.score.tokens == len(tail.nats) > 700
    assert tail.score.bytes == Bytes().count(tokens[tail.targets], tokens[tail.targets + 1]).sum()


def test_an_adapting_model_is_held_against_the_fixed_one():
    _, found = run(settings_with("chunks", "grid", ("ngram_backoff",), "hedge"))
    plain = ["non_overlapping", "sliding", "sliding_published"]
    assert list(found.results) == [*plain, "adapted", "temperature", "ngram_backoff", "adapted_published", "published"]
    assert found.results["adapted"].base == "sliding" and found.results["ngram_backoff"].base == "temperature"
    assert found.adaptation_steps > 0
    _, fixed = run(settings_with())
    # the fixed model is still the fixed model after the adapted one has learnt, and the first chunk was scored before that
    assert np.array_equal(found.results["sliding"].nats, fixed.results["sliding"].nats)
    adapted, sliding = found.results["adapted"].nats, fixed.results["sliding"].nats
    np.testing.assert_allclose(adapted[:160], sliding[:160], rtol=1e-9)
    assert not np.allclose(adapted[200:], sliding[200:], rtol=1e-3)


def test_an_online_temperature_follows_committed_spans():
    """It begins where a fixed one stands, and knows of a span only after its commit."""
    options = dict(published="hedge", published_tail=False)
    found = {method: run(settings_with(temperature=method, **options))[1] for method in ("fixed", "online")}
    fixed, online = (found[method].results["temperature"].nats for method in ("fixed", "online"))
    ends = [trace["target"] for trace in found["online"].traces]
    assert ends[0] >= 160 and np.array_equal(fixed[: ends[0]], online[: ends[0]])
    assert not np.isclose(fixed[ends[0] :], online[ends[0] :], rtol=1e-6).all()
    values = [trace["temperature"]["temperature"] for trace in found["online"].traces]
    assert len(set(values)) == len(values) and values[0] != 0.95


@pytest.mark.parametrize("settings, names", [
    (settings_with(sliding=False), {"non_overlapping"}),
    (settings_with(), {"non_overlapping", "sliding", "sliding_published"}),
    (settings_with("chunks", sliding=False, published_tail=False), {"non_overlapping", "adapted"}),
    (settings_with(temperature="entropy", published_tail=False), {"non_overlapping", "sliding", "temperature"}),
])  # fmt: skip
def test_only_what_is_asked_for(settings, names):
    assert run(settings, 200)[1].results.keys() == names


def test_an_unknown_mixer_is_named():
    with pytest.raises(SettingsError, match="'ngram_bakoff'; did you mean 'ngram_backoff'"):
        settings_with(honest=("ngram_bakoff",)).validate()


def test_scores_are_those_of_the_windows():
    model = network()
    tokens, found = run(settings_with(), 100, model)
    for name, stride in (("non_overlapping", 32), ("sliding", 8)):
        nats, reached = [], 0
        for start in range(0, 100, stride):
            if reached >= 100:
                break
            stop = min(start + 32, 100)
            row = torch.zeros(1, 32, dtype=torch.long)
            row[0, : stop - start] = torch.from_numpy(tokens[start:stop].astype(np.int64))
            log_probs = model.logits(row)[0].log_softmax(-1)
            nats += [-log_probs[t - start, int(tokens[t + 1])].item() for t in range(reached, stop)]
            reached = stop
        np.testing.assert_allclose(found.results[name].nats, nats, rtol=1e-9)


def test_a_score_is_replayed():
    settings = settings_with("chunks", "online", ("ngram_backoff",))
    ticks = iter(range(10**9))
    # a clock that moves with every look at it, so that something has to be given up
    budget = Budget(32.0, now=lambda: float(next(ticks)))
    tokens, found = run(settings, budget=budget)
    assert found.gave_up
    again = evaluate(network(), tokens, Bytes(), settings, bos=BOS, replay=json.loads(json.dumps(found.plan)))
    assert again.results.keys() == found.results.keys() and again.plan == found.plan
    for name, result in found.results.items():
        assert np.array_equal(result.nats, again.results[name].nats), name


# ---- ranks

KINDS = {
    "honest": settings_with("none", "online", ("ngram_backoff", "boost", "bias", "tilt", "ngrams"), "boost"),
    "adapted": settings_with("chunks", "grid", ("ngram_backoff", "ngrams"), "hedge"),
    "documents": settings_with("lora", "entropy", ("ngram_backoff", "ngrams"), published_tail=False, lora=LoraSettings(
        rank=2, targets=("q", "v"), chunk_tokens=16, context_tokens=32, batch_documents=3, minimum_tokens=20)),
}  # fmt: skip


def work(folder: Path) -> None:
    torch.set_num_threads(1)
    with launch("cpu") as world:
        found = {name: bpb(settings, world) for name, settings in KINDS.items()}
        (folder / f"{world.rank}.json").write_text(json.dumps(found))


def bpb(settings, world):
    _, found = run(settings, 520, world=world)
    return {name: result.score.bpb for name, result in found.results.items()}


def test_one_rank_or_two_is_the_same_score(tmp_path):
    # first, so that both ranks find what numba compiles instead of writing it at the same time
    alone = {name: bpb(settings, World()) for name, settings in KINDS.items()}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = f"from pathlib import Path; from tests.evaluation.test_evaluate import work; work(Path({str(tmp_path)!r}))"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    two = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert two[0] == two[1]
    for name, one in alone.items():
        assert one.keys() == two[0][name].keys() and len(one) >= 4
        for result, value in one.items():
            # training on two ranks averages two halves of a batch, which need not be the batch's own mean
            tolerance = 1e-9 if name != "adapted" or result in ("sliding", "non_overlapping") else 0.2
            assert two[0][name][result] == pytest.approx(value, abs=tolerance), (name, result)


# ---- documents


def test_document_scores_give_what_the_stream_gives_in_any_order():
    tokens, model = text(900, document=60), Toy()
    logits = model.logits(torch.from_numpy(tokens[:-1].astype(np.int64))[None])[0]
    stream = ScoredStream(tokens)
    bounds = [int(i) for i in np.flatnonzero(tokens[:-1] == BOS) if i]
    assert len(bounds) > 5
    documents = DocumentScores([Plain("adapted"), NgramBackoffPredictor(24, 3, 4), NgramsPredictor(24)], bos=BOS)
    going = list(reversed(stream.split(bounds)))
    while going:
        for document in list(going):
            opened = document.open(min(document.cursor + 25, document.last))
            (scores,) = documents.take([opened], logits[None, opened.start : opened.stop])
            document.commit(scores)
            assert scores.keys() == {"adapted"}
        going = [document for document in going if document.cursor < document.last]
    nats = documents.scores(tokens)
    found = evaluate(
        model, tokens, Bytes(), settings_with(honest=("ngram_backoff", "ngrams"), window=32), bos=BOS, budget=Budget(1e6)
    )
    for mine, theirs in (("adapted", "sliding"), ("ngram_backoff", "ngram_backoff"), ("ngrams", "ngrams")):
        np.testing.assert_allclose(nats[mine], found.results[theirs].nats, rtol=0, atol=1e-9)
    assert np.array_equal(stream.ledger.finished()["adapted"], nats["adapted"])


def test_documents_counted_side_by_side_ask_for_what_each_alone_asks_for():
    """As on a GPU, whose counts begin anew with every chunk, in place of the copies that go on where they were."""
    tokens = text(900, document=60)
    predictor = NgramBackoffPredictor(24, 3, 4)
    scores = DocumentScores([Plain("adapted"), predictor], bos=BOS)
    going = ScoredStream(tokens).split([int(i) for i in np.flatnonzero(tokens[:-1] == BOS) if i])
    while going:
        opened = [document.open(min(document.cursor + 25, document.last)) for document in going]
        spans = [Span(one.start, came := one.targets(one.start, one.stop).astype(np.int32), came == BOS) for one in opened]
        texts = [tokens[document.first : one.stop + 1] for document, one in zip(going, opened, strict=True)]
        found = predictor.candidates_of(texts, [len(span) for span in spans], torch.device("cpu"))
        assert torch.equal(scores.candidates(opened, spans, torch.device("cpu")), found) and (found >= 0).any()
        for document, one in zip(going, opened, strict=True):
            document.commit({"adapted": np.zeros(one.stop - one.start)})
        going = [document for document in going if document.cursor < document.last]


@pytest.mark.parametrize("change, complaint", [
    (dict(temperature="online"), "follows the stream"),
    (dict(temperature="grid"), "follows the stream"),
    (dict(published="hedge"), "goes by windows"),
    (dict(honest=("bias",)), "bias_honest follows the stream"),
    (dict(honest=("tilt",)), "tilt follows the stream"),
])  # fmt: skip
def test_what_does_not_go_with_documents(change, complaint):
    with pytest.raises(SettingsError, match=complaint):
        run(settings_with("lora", **change), 120)


def test_documents_with_adapters():
    tokens, found = run(KINDS["documents"])
    assert list(found.results) == ["non_overlapping", "sliding", "adapted", "temperature", "ngram_backoff", "ngrams"]
    assert found.results["adapted"].score.tokens == 700 and found.gave_up == {}
    assert tokens[0] == BOS and not np.allclose(found.results["adapted"].nats, found.results["sliding"].nats)


# ---- the n-gram back-off's table


def test_a_table_learnt_on_held_out_text_helps():
    model = network()
    settings = settings_with(honest=("ngram_backoff",))
    frozen = dataclasses.replace(settings, mixer=dataclasses.replace(settings.mixer, online_weights=False))
    table = learn_ngram_table(model, text(3000, seed=0, document=200)[1500:], settings, bos=BOS)
    assert table.table.shape == (3, 9, 33)
    with_table = run(frozen, 1400, model, ngram_table=table)[1].results["ngram_backoff"].score.nats
    without = run(frozen, 1400, model)[1].results["ngram_backoff"].score.nats
    assert with_table < 0.97 * without


# ---- the records


def test_paired_gains():
    _, found = run(settings_with("none", "entropy", ("ngram_backoff",)), 1300)
    tokens = text(1300, document=90)
    per_target = Bytes().count(tokens[:-1], tokens[1:])
    table = results_table(found, tokens, BOS, per_target)
    assert "baseline" not in table["non_overlapping"]
    ngram_backoff = table["ngram_backoff"]
    assert ngram_backoff["baseline"] == "temperature"
    assert ngram_backoff["gain"] == pytest.approx(table["temperature"]["bpb"] - ngram_backoff["bpb"], abs=1e-12)
    differences = found.results["temperature"].nats - found.results["ngram_backoff"].nats
    edges = [*np.flatnonzero(tokens[:-1] == BOS), 1300]
    spans = list(zip(edges, edges[1:], strict=False))
    gained = np.array([differences[a:b].sum() / math.log(2) for a, b in spans])
    sizes = np.array([per_target[a:b].sum() for a, b in spans])
    residual = gained - ngram_backoff["gain"] * sizes
    expected = math.sqrt(len(spans) / (len(spans) - 1) * (residual**2).sum()) / sizes.sum()
    assert len(spans) > 10 and ngram_backoff["gain_error"] == pytest.approx(expected)
    assert table["sliding_published"]["baseline"] == "sliding" and table["sliding_published"]["gain"] == 0
    # one document says nothing of the spread between documents
    short = run(settings_with(), 90)[1].results
    gain, error = paired_gain(short["non_overlapping"], short["sliding"], np.full(90, 3), np.array([0]))
    assert gain != 0 and error is None


def test_the_spread_of_gains_is_that_of_other_streams():
    """The standard error from one stream's documents is near the deviation of the gain between many streams."""
    rng = np.random.default_rng(5)
    starts, sizes = np.arange(0, 4000, 20), np.full(4000, 3)
    gains, errors = [], []
    for _ in range(200):
        by_document = np.repeat(rng.normal(0.05, 0.2, 200), 20)
        nothing = Result(None, 0.0, np.zeros(4000))
        gain, error = paired_gain(Result(None, 0.0, by_document), nothing, sizes, starts)
        gains.append(gain)
        errors.append(error)
    assert np.std(gains) == pytest.approx(np.mean(errors), rel=0.15)


# ---- the top predictions


def test_which_documents_are_shown():
    starts = np.array([0, 30, 100, 150, 400])
    found = excerpts(starts, 430, 40)
    assert [(e.start, e.stop, e.document) for e in found] == [(360, 400, (150, 400)), (30, 70, (30, 100))]
    # where no other document has so many tokens, the middle one of all others
    assert [(e.start, e.stop) for e in excerpts(starts, 430, 200)] == [(200, 400), (100, 150)]
    assert len(excerpts(np.array([0]), 430, 40)) == 1 and excerpts(starts, 430, 0) == [] == excerpts(np.array([0]), 0, 9)


WAYS = {
    "fixed": settings_with("none", "online", ("tilt", "bias", "ngram_backoff"), top_predictions=40),
    "chunks": settings_with("chunks", "entropy", ("ngram_backoff", "ngrams"), "hedge", top_predictions=40),
    "lora": settings_with(
        "lora",
        "fixed",
        ("ngram_backoff",),
        published_tail=False,
        top_predictions=40,
        lora=LoraSettings(rank=2, lr=0.01, chunk_tokens=8, context_tokens=32, batch_documents=4, minimum_tokens=1),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_expectations_are_those_that_were_scored(way, monkeypatch):
    """The whole distribution that is written down gives each target what was committed for it, and changes nothing."""
    monkeypatch.setattr("pgolf.evaluation.top_predictions.TOP", MODEL.vocab_size)
    tokens, found = run(WAYS[way], 500)
    plain = ["sliding"] if way == "fixed" else ["sliding", "adapted"]
    main = [name for name in found.results if found.results[name].score.legal][-1]
    assert set(found.top_predictions.guesses) == {"non_overlapping", *plain, main}
    for name, known in found.top_predictions.guesses.items():
        assert (
            sorted(known) == sorted(t for e in found.top_predictions.excerpts for t in range(e.start, e.stop))
            and len(known) > 60
        )
        for target, guesses in known.items():
            said = dict(guesses)
            assert len(said) == MODEL.vocab_size and sum(said.values()) == pytest.approx(1, abs=1e-6)
            assert -math.log(said[int(tokens[target + 1])]) == pytest.approx(found.results[name].nats[target], abs=2e-5)
    _, without = run(dataclasses.replace(WAYS[way], top_predictions=0), 500)
    assert not without.top_predictions.guesses
    for name, result in found.results.items():
        assert np.array_equal(result.nats, without.results[name].nats)


@pytest.mark.parametrize("gates, legal", [
    ({}, True), ({"minimum_tokens": 10}, True), ({"minimum_tokens": 11}, False), ({"maximum_tokens": 400}, False)
], ids=str)  # fmt: skip
def test_adapters_that_a_documents_length_decides_are_no_code_length(gates, legal):
    lora = dataclasses.replace(WAYS["lora"].lora, **{"minimum_tokens": 0, **gates})
    _, found = run(dataclasses.replace(WAYS["lora"], lora=lora, top_predictions=0), 300)
    of_the_model = {"non_overlapping", "sliding"}
    built_on_it = [result.score.legal for name, result in found.results.items() if name not in of_the_model]
    assert built_on_it == [legal] * 3


def test_top_predictions_stop_when_their_time_is_up(tmp_path):
    ticks = iter(range(100_000))
    settings = dataclasses.replace(WAYS["fixed"], seconds=1500.0)
    _, short = run(settings, 500, budget=Budget(1e6, now=lambda: float(next(ticks))))
    assert 0 < sum(map(len, short.top_predictions.guesses.values())) < 80
    pieces = [b"", b"", *[b" w%d" % i for i in range(MODEL.vocab_size - 2)]]
    tokens = text(500, document=90)
    columns = {"ngram_backoff": short.results["ngram_backoff"].nats}
    write_top_predictions(tmp_path / "top_predictions.json", short.top_predictions, tokens, np.full(500, 3), columns, pieces)
    written = json.loads((tmp_path / "top_predictions.json").read_text())
    first, second = written["excerpts"]
    assert len(first["tokens"]) == 40 == len(first["nats"]["ngram_backoff"]) == len(first["bytes"])
    assert first["tokens"] == tokens[first["start"] + 1 : first["start"] + 41].tolist()
    assert sum(len(places) for e in (first, second) for places in e["guesses"].values()) == sum(
        map(len, short.top_predictions.guesses.values())
    )
    for excerpt in (first, second):
        for places in excerpt["guesses"].values():
            for place in places:
                assert all(written["pieces"][str(token)] == pieces[token].decode() for token, _ in place)


def test_files(tmp_path):
    tokens, found = run(settings_with(), 600)
    columns = {name: result.nats[:600] for name, result in found.results.items()}
    per_target = Bytes().count(tokens[:-1], tokens[1:])
    write_scores(tmp_path / "score.jsonl", tokens, per_target, columns, bos=BOS, pieces=[b"", b"", b" a", b"7"])
    head, *lines = [json.loads(line) for line in (tmp_path / "score.jsonl").read_text().splitlines()]
    assert head["targets"] == 600 and head["results"] == list(columns) and head["unit"] == "nats" and head["bos"] == BOS
    assert [head["kinds"][int(kind)] for kind in head["kind_of_token"]] == ["boundary", "boundary", "word start", "digit"]
    assert [token for line in lines for token in line["tokens"]] == tokens[1:].tolist()
    for name, nats in columns.items():
        written = np.array([number for line in lines for number in line[name]])
        np.testing.assert_allclose(written, nats, atol=1e-5)
        if name != "sliding_published":
            assert score_of(written, per_target).bpb == pytest.approx(found.results[name].score.bpb, abs=1e-4)
    write_traces(tmp_path / "weights.jsonl", [{"target": 5, "ngram_backoff": {"order 1": 0.5}}])
    assert json.loads((tmp_path / "weights.jsonl").read_text()) == {"target": 5, "ngram_backoff": {"order 1": 0.5}}


def test_a_plan_that_cannot_be_read(tmp_path):
    with pytest.raises(Exception, match="cannot be read"):
        read_plan(tmp_path / "none.json")
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(Exception, match="is no plan"):
        read_plan(tmp_path / "plan.json")


def test_temperature_is_a_result_of_its_own():
    assert Tempered(None).name == "temperature" and Tempered(None).tempered and not Plain("x").tempered
