"""Documents that are scored apart are coded side by side: the scorer's length, no bit from a neighbour; and every draw of
settings whose score is called legal decodes."""

import dataclasses
import itertools
import math
import os

import numpy as np
import pytest

from pgolf.budget import Budget
from pgolf.config import (
    AdaptationSettings,
    EvaluationSettings,
    LoraSettings,
    MixerSettings,
    SettingsError,
    TemperatureSettings,
)
from pgolf.config.predictors import HONEST_PREDICTORS
from pgolf.evaluation.codec import Codec, CodecError
from pgolf.evaluation.codec import documents as module
from pgolf.evaluation.codec.stream import Stream
from pgolf.evaluation.evaluate import evaluate
from pgolf.evaluation.load import load_scorer
from pgolf.evaluation.planner import Planner
from pgolf.evaluation.stream import document_bounds
from tests.evaluation.test_codec import TEXT, artifact_at, settings_with, tokenizer  # noqa: F401

LENGTHS = (60, 300, 500, 20, 420, 700, 3, 160)
DOCUMENTS = [(TEXT * 3)[i * 37 : i * 37 + length].encode() for i, length in enumerate(LENGTHS)]
LORA = LoraSettings(rank=2, lr=0.02, chunk_tokens=16, context_tokens=48)


def scoring(mixer=None, temperature=None, **lora):
    return EvaluationSettings(
        window=32, stride=12, batch=3, sliding=False, adaptation=AdaptationSettings(method="lora"),
        lora=dataclasses.replace(LORA, **lora), mixer=mixer or MixerSettings(),
        temperature=temperature or TemperatureSettings(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory, tokenizer):  # noqa: F811
    return artifact_at(tmp_path_factory.mktemp("documents") / "model.pgolf", tokenizer, settings_with(scoring()))


def stream_of(codec, documents):
    return np.array([t for one in documents for t in (codec.tokenizer.bos, *codec.tokenizer.encode_bytes(one))], np.uint16)


CASES = {
    "as published, so the fixed network's": scoring(refresh_tokens=-1),
    "whole windows": scoring(refresh_tokens=48),
    "nothing recomputed": scoring(refresh_tokens=0),
    "some recomputed, two passes, all targets": scoring(
        refresh_tokens=8, passes=2, targets=("q", "k", "v", "o", "mlp", "head"), alpha=1.0
    ),
    "last layer": scoring(refresh_tokens=5, layers=1),
    "head": scoring(targets=("head",), passes=2),
    "no adapters": scoring(passes=0),
    "short ones without": scoring(minimum_tokens=10),
    "by length, so the fixed network's": scoring(minimum_tokens=100, mixer=MixerSettings(honest=("ngrams",))),
    "entropy, ngrams": scoring(MixerSettings(honest=("ngrams",)), TemperatureSettings("entropy", 0.9)),
    "fixed, n-gram back-off": scoring(
        MixerSettings(honest=("ngram_backoff",), granularity=3, online_weights=False), TemperatureSettings("fixed", 0.9)
    ),
    "online n-gram back-off": scoring(MixerSettings(honest=("ngram_backoff",), granularity=3), refresh_tokens=0),
}


@pytest.mark.parametrize("name", CASES)
def test_its_length_is_what_the_scorer_claims(path, name):
    codec = Codec(path, settings_with(CASES[name]))
    tokens = stream_of(codec, DOCUMENTS)
    packed, took = codec.compress_tokens(tokens)
    claimed = codec.claim(tokens)
    assert took["claimed_bits"] == pytest.approx(claimed, rel=2e-6)
    assert abs(took["code_bits"] - claimed) < 0.001 * claimed + 64
    assert Codec(path).decompress(packed, "stream") == tokens.astype("<u2").tobytes()


def test_documents_that_the_clock_left_without_adapters_are_coded_so(path, monkeypatch):
    def adapts(planner, documents, tokens, tokens_after):
        given_up = documents[0] % 2 == 0
        planner.plain_documents += documents if given_up else []
        return not given_up

    monkeypatch.setattr(Planner, "adapts", adapts)
    settings = settings_with(scoring(refresh_tokens=8, batch_documents=2))
    codec = Codec(path, settings)
    tokens, loaded = stream_of(codec, DOCUMENTS), load_scorer(path, settings)
    found = evaluate(
        loaded.model, tokens, codec.tokenizer.byte_table, settings.evaluation, bos=codec.tokenizer.bos, budget=Budget(1e9)
    )
    assert 0 < len(found.plan["plain_documents"]) < len(DOCUMENTS)
    mine = Codec(path, settings, plan=found.plan)
    for count in (len(tokens) - 1, 400):
        packed, took = mine.compress_tokens(tokens[: count + 1])
        recorded = found.results[mine.result].nats[:count].sum() / math.log(2)
        assert took["claimed_bits"] == pytest.approx(recorded, rel=2e-6)
        assert Codec(path).decompress(packed, "stream") == tokens[: count + 1].astype("<u2").tobytes()


def test_no_bit_comes_from_a_neighbour(path, monkeypatch):
    """A document costs the same beside any others, at any place among them, and however many are coded at once."""
    codec = Codec(path, settings_with(scoring(temperature=TemperatureSettings("entropy", 0.9), refresh_tokens=8)))

    def costs(documents):
        """Every distribution that was coded, by document and place."""
        spent: dict[tuple[int, int], float] = {}
        tokens = stream_of(codec, documents)
        rows = codec.predictor(codec.table, int(tokens[0]), len(tokens) - 1)
        split = np.split(tokens[1:], document_bounds(tokens, codec.tokenizer.bos))

        def code(number, place, log_probs):
            spent[number, place] = log_probs.tobytes()
            return int(split[number][place])

        rows.run([codec.tokenizer.bos] * len(split), len(split[-1]), code)
        return [[spent[number, place] for place in range(len(part) - 1)] for number, part in enumerate(split)]

    together = costs(DOCUMENTS)
    for order in ((5, 2, 0), (1,), (3, 1, 7, 6, 5, 4, 2, 0)):
        for number, apart in zip(order, costs([DOCUMENTS[i] for i in order]), strict=True):
            # the last document of a stream has one target less, for no BOS follows it
            both = min(len(apart), len(together[number]))
            assert apart[:both] == together[number][:both] and abs(len(apart) - len(together[number])) <= 1
    # nor from how many are coded at once, nor from the threads that do it
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(3), raising=False)
    assert costs(DOCUMENTS) == together
    monkeypatch.setattr(module, "ROWS", 3)
    assert costs(DOCUMENTS) == together


@pytest.mark.parametrize("documents", [[], [b""], [b"", b"", b"a"], DOCUMENTS[:1], DOCUMENTS * 3], ids=len)
def test_texts_come_back_joined(path, documents):
    packed, took = Codec(path).compress(documents)
    assert Codec(path).decompress(packed, "stream") == b"".join(documents)
    assert Stream.from_bytes(packed, "stream").documents == max(len(documents), 1)


def test_a_bad_header_is_said_before_the_artifact_is_read(path, monkeypatch):
    packed, _ = Codec(path).compress(DOCUMENTS)

    def read(where):
        raise AssertionError("the artifact was read")

    monkeypatch.setattr("pgolf.evaluation.codec.codec.read_artifact", read)
    with pytest.raises(CodecError, match="damaged or cut off"):
        Codec(path).decompress(packed[:-3], "stream")
    other = dataclasses.replace(Stream.from_bytes(packed, "stream"), artifact=bytes(8)).to_bytes()
    with pytest.raises(CodecError, match="made with another artifact"):
        Codec(path).decompress(other, "stream")


def test_documents_that_do_not_add_up(path):
    packed, took = Codec(path).compress(DOCUMENTS)
    stream = Stream.from_bytes(packed, "stream")
    for parts in ({"documents": 3}, {"documents": 20}, {"last_targets": 1}, {"targets": took["tokens"] - 5}):
        with pytest.raises(CodecError, match="have .* tokens together|ends after|not what was compressed|damaged"):
            Codec(path).decompress(dataclasses.replace(stream, **parts).to_bytes(), "stream")


# ---- any settings


def test_an_online_temperature_beside_the_published_boost_is_refused():
    settings = EvaluationSettings(temperature=TemperatureSettings("online"), mixer=MixerSettings("boost"))
    with pytest.raises(SettingsError, match="choose another evaluation.temperature.method"):
        settings.validate()
    dataclasses.replace(settings, temperature=TemperatureSettings()).validate()


def drawn(rng) -> EvaluationSettings:
    def one_of(*choices):
        return choices[rng.integers(len(choices))]

    honest = [name for name in HONEST_PREDICTORS if rng.random() < 0.3]
    rng.shuffle(honest)
    window = one_of(24, 32, 40)
    adaptation = AdaptationSettings(
        method=one_of("none", "chunks", "lora", "lora"), chunk_tokens=one_of(48, 96), epochs=one_of(1, 2),
        optimiser=one_of("sgd", "adamw"), lr=one_of(0.001, 0.02), cosine=one_of(True, False), freeze_first=one_of(0, 1),
        byte_weighted=one_of(True, False), polyak=one_of(0.0, 0.9), polyak_in_place=one_of(True, False),
        batch_sequences=one_of(1, 2), untie=one_of(True, False), training_mode=one_of(True, False),
    )  # fmt: skip
    context = one_of(24, 48)
    lora = LoraSettings(
        rank=one_of(1, 3), targets=one_of(("q", "v", "head"), ("k", "o", "mlp"), ("head",)), layers=one_of(0, 1),
        alpha=one_of(0.0, 2.0), lr=0.02, chunk_tokens=one_of(1, 7, 24), context_tokens=context,
        refresh_tokens=one_of(-1, 0, 0, 9, 100), passes=one_of(0, 1, 2), minimum_tokens=one_of(0, 0, 8, 60),
        maximum_tokens=one_of(0, 0, 90),
    )  # fmt: skip
    return EvaluationSettings(
        window=window, stride=one_of(5, 12, window), batch=one_of(1, 3), sliding=one_of(True, False), adaptation=adaptation,
        lora=lora, temperature=TemperatureSettings(one_of("none", "fixed", "entropy", "grid", "online"), one_of(0.9, 1.0)),
        mixer=MixerSettings(
            one_of("none", "none", "hedge", "boost"), tuple(honest), one_of(1, 4), one_of(True, False), one_of(1, 3)
        ),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(16))
def test_whatever_is_called_legal_decodes(path, seed):
    """300 tokens of several documents, with settings drawn at random. What no stage would score is drawn again."""
    for again in itertools.count():
        settings = settings_with(drawn(np.random.default_rng([seed, again])), qat_threshold=0.5, qat_clip=15)
        codec = Codec(path, settings)
        tokens = stream_of(codec, DOCUMENTS)[:301]
        try:
            settings.validate()
            codec.predictor(codec.table, int(tokens[0]), 300)
        except (SettingsError, CodecError) as error:
            assert again < 20
            assert "choose" in str(error) or "must be" in str(error)
            continue
        break
    claimed = codec.claim(tokens)
    packed, took = codec.compress_tokens(tokens)
    assert math.isfinite(claimed) and took["claimed_bits"] == pytest.approx(claimed, rel=1e-4)
    assert Codec(path).decompress(packed, "stream") == tokens.astype("<u2").tobytes()
