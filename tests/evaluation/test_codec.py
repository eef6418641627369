"""Text to bits and back: the same bytes, the scorer's length, and no stream that does harm."""

import dataclasses
import hashlib
import math
import struct
import zlib

import numpy as np
import pytest
import torch

from pgolf.artifact.pack import write_artifact
from pgolf.budget import Budget
from pgolf.config import (
    AdaptationSettings,
    ArtifactSettings,
    EvaluationSettings,
    MixerSettings,
    Settings,
    TemperatureSettings,
    TrainingSettings,
)
from pgolf.data import load_tokenizer, train_tokenizer
from pgolf.evaluation.codec import Codec, CodecError, prove
from pgolf.evaluation.codec import codec as module
from pgolf.evaluation.codec.coding import believable, decode, encode
from pgolf.evaluation.codec.stream import DIGEST, Stream, computer, varint
from pgolf.evaluation.evaluate import evaluate
from pgolf.evaluation.load import load_scorer
from pgolf.evaluation.planner import Planner
from pgolf.evaluation.primer import primer_to_bytes
from pgolf.model import submission_state
from pgolf.run import main
from tests.model.common import SMALL, random_model

VOCABULARY = 300
MODEL = dataclasses.replace(SMALL, vocab_size=VOCABULARY, layers=3, value_embedding_layers=(2,))
CHUNKS = AdaptationSettings(method="chunks", chunk_tokens=96, epochs=2, lr=0.02, batch_sequences=2)
SCORING = EvaluationSettings(
    window=32, stride=12, batch=3, adaptation=CHUNKS, mixer=MixerSettings(honest=("ngram_backoff",), granularity=3)
)
TEXT = (
    "The cat sat on the mat. The dog sat on the cat, and the mat was flat.\n\tif x == 10:\n\t\treturn x * 1024\r\n"
    "Grüße, 東京 🎈 \u2581 e\u0301 \ufb01\u0000 the cat sat on the mat, the cat sat on the dog. " * 3
)


def settings_with(scoring=SCORING, **training):
    return Settings(
        model=MODEL,
        evaluation=scoring,
        training=TrainingSettings(**training),
        artifact=ArtifactSettings(small_tensor=500, scale_floor=False, compressor="zstd"),
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "lossless.model"
    train_tokenizer([TEXT] * 4, VOCABULARY, path)
    return path.read_bytes()


def artifact_at(path, tokenizer, settings=None, seed=3):
    write_artifact(path, submission_state(random_model(MODEL, seed=seed)), settings or settings_with(), tokenizer)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory, tokenizer):
    return artifact_at(tmp_path_factory.mktemp("artifact") / "model.pgolf", tokenizer)


@pytest.fixture(scope="module")
def codec(path):
    return Codec(path)


@pytest.fixture(scope="module")
def packed(codec):
    return codec.compress(TEXT.encode())


# ---- there and back

CONTENTS = {
    "empty": b"",
    "one byte": b"a",
    "a space first": b" the cat",
    "not UTF-8": b"the cat \xff\xfe sat \xc3( on\x80\x80\x80 \xed\xa0\x80 the mat",
    "every byte": bytes(range(256)),
    "zeros": bytes(700),
    "rare characters": "𐍈 \u2581\u2581 \u2585 \U0010fffd ﷽ \u202e ½".encode(),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_any_bytes_come_back(codec, name):
    packed, took = codec.compress(CONTENTS[name])
    assert codec.decompress(packed, "stream") == CONTENTS[name]
    assert took["bytes"] == len(packed) and took["code_bits"] <= took["claimed_bits"] * 1.001 + 64


def test_a_text_with_learning_on_the_way(codec, packed):
    """Several chunks; no tokens but those before each one are in reach while it is decoded."""
    stream, took = packed
    assert took["tokens"] > 3 * CHUNKS.chunk_tokens
    assert codec.decompress(stream, "stream") == TEXT.encode()
    shares = []
    codec.decompress(stream, "stream", shares.append)
    assert shares == sorted(shares) and shares[0] == 0 and 0.99 < shares[-1] < 1


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_what_a_normalising_tokenizer_loses_is_carried(tmp_path, rule):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n") * 4), model_prefix=str(tmp_path / "lossy"), model_type="bpe",
        vocab_size=VOCABULARY, byte_fallback=rule == "identity", normalization_rule_name=rule, character_coverage=0.98,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    mine = Codec(artifact_at(tmp_path / "lossy.pgolf", (tmp_path / "lossy.model").read_bytes()))
    assert not mine.tokenizer.lossless
    for data in (TEXT.encode(), CONTENTS["not UTF-8"], b"", b"   \n\n  ", "\ufb01 \u2168".encode()):
        stream, _ = mine.compress(data)
        assert mine.decompress(stream, "stream") == data
    # it costs what is lost, not what is kept
    kept = "the cat sat on the mat " * 40
    assert len(Stream.from_bytes(mine.compress(kept.encode())[0], "stream").patch) < 60


# ---- its length is the score

RESULTS = {
    "adapted chain": SCORING,
    "polyak, untied": dataclasses.replace(SCORING, adaptation=dataclasses.replace(CHUNKS, polyak=0.9, untie=True)),
    "side by side": EvaluationSettings(window=32, stride=12, sliding=False),
    "sliding": EvaluationSettings(window=32, stride=12),
    "online temperature": EvaluationSettings(window=32, stride=12, batch=3, temperature=TemperatureSettings("online", 0.8)),
    "grid, boost": dataclasses.replace(
        SCORING, temperature=TemperatureSettings("grid", 0.9), mixer=MixerSettings(honest=("boost",))
    ),
    "by entropy, ngrams": dataclasses.replace(
        SCORING, temperature=TemperatureSettings("entropy", 0.9), mixer=MixerSettings(honest=("ngrams",), published="hedge")
    ),
    "bias": EvaluationSettings(window=32, stride=32, mixer=MixerSettings(honest=("bias",))),
}


@pytest.mark.parametrize("name", RESULTS)
def test_its_length_is_what_the_scorer_claims(path, codec, name, monkeypatch):
    """Window by window, with the learning, the temperature and the mixer of the run's own score."""
    monkeypatch.setattr("pgolf.evaluation.windows.SPAN", 50)
    settings = settings_with(RESULTS[name], qat_threshold=0.5, qat_clip=15)
    mine = Codec(path, settings)
    text = "".join(TEXT.splitlines(keepends=True)[:5])
    tokens = np.array([1, *codec.tokenizer.encode(text), 1, *codec.tokenizer.encode(text[::-1])])
    packed, took = mine.compress_tokens(tokens)
    claimed = mine.claim(tokens)
    assert mine.result == mine.predictor(mine.table, 1, len(tokens) - 1).predictor.name
    assert took["claimed_bits"] == pytest.approx(claimed, rel=2e-6)
    assert abs(took["code_bits"] - claimed) < 0.001 * claimed + 64
    # the settings travel in the stream, since they are not the artifact's
    assert codec.decompress(packed, "stream") == tokens.astype("<u2").tobytes()


PLANS = {
    "fewer epochs, coarser, back again": (SCORING, [(12, 2), (12, 1), (12, 0), (24, 0), (12, 2)]),
    "the first pass stands": (SCORING, [(12, 2), (24, 1), (0, 0)]),
    "the first pass stands at once": (SCORING, [(0, 0)]),
    "grid": (dataclasses.replace(SCORING, temperature=TemperatureSettings("grid", 0.9)), [(24, 0), (12, 2), (12, 1)]),
    "online": (RESULTS["online temperature"], [(12, 0), (24, 0), (12, 0), (0, 0)]),
}


@pytest.mark.parametrize("name", PLANS)
def test_what_the_clock_gave_up_is_coded_as_it_was_scored(path, codec, name, monkeypatch):
    """The record of every target, of all of a stream and of its beginning, though schedules count the whole of it."""
    monkeypatch.setattr("pgolf.evaluation.windows.SPAN", 50)
    scoring, decided = PLANS[name]
    monkeypatch.setattr(Planner, "_choose", lambda self, start, stop: decided[min(len(self.spans), len(decided) - 1)])
    settings = settings_with(scoring)
    tokens = np.array([1, *codec.tokenizer.encode(2 * TEXT)])[:501]
    loaded = load_scorer(path, settings)
    found = evaluate(
        loaded.model, tokens, codec.tokenizer.byte_table, scoring, bos=1, budget=Budget(1e9), ngram_table=loaded.ngram_table
    )
    assert len(found.plan["spans"]) >= len(decided) and found.gave_up
    mine = Codec(path, settings, plan=found.plan)
    for count in (500, 333):
        packed, took = mine.compress_tokens(tokens[: count + 1])
        recorded = found.results[mine.result].nats[:count].sum() / math.log(2)
        assert took["claimed_bits"] == pytest.approx(recorded, rel=2e-6)
        assert codec.decompress(packed, "stream") == tokens[: count + 1].astype("<u2").tobytes()
    # without its plan it would have another length
    assert abs(Codec(path, settings).compress_tokens(tokens)[1]["claimed_bits"] - recorded) > 1


def test_context_mixing_codes_what_it_claims_after_the_text_that_the_artifact_carries(tmp_path, tokenizer):
    settings = settings_with(dataclasses.replace(SCORING, mixer=MixerSettings(honest=("context_mixing",))))
    state, coded = submission_state(random_model(MODEL, seed=3)), {}
    for name, primer in {"with": TEXT, "without": ""}.items():
        file, read_first = tmp_path / f"{name}.pgolf", np.array(load_tokenizer("it", tokenizer).encode(primer), np.int64)
        write_artifact(file, state, settings, tokenizer, extra={"text": primer_to_bytes(read_first)})
        mine = Codec(file)
        tokens = np.array([1, *mine.tokenizer.encode(TEXT[:150])])
        packed, coded[name] = mine.compress_tokens(tokens)
        # the decoder's sums have another order, which the network's part in the mixture sees in steps of 1/256
        assert coded[name]["claimed_bits"] == pytest.approx(mine.claim(tokens), rel=1e-3)
        assert abs(coded[name]["code_bits"] - coded[name]["claimed_bits"]) < 64
        assert mine.decompress(packed, "stream") == tokens.astype("<u2").tobytes()
    assert coded["with"]["claimed_bits"] < 0.5 * coded["without"]["claimed_bits"]


def test_settings_travel_only_where_they_are_not_the_artifacts_own(path, codec):
    tokens = np.array([1, *codec.tokenizer.encode(TEXT[:100])], np.uint16)
    streams = [Codec(path, settings).compress_tokens(tokens)[0] for settings in (None, settings_with())]
    assert streams[0] == streams[1] and Stream.from_bytes(streams[0], "stream").settings == b""


def test_adapting_and_mixing_change_the_length(path, codec, packed):
    plain = Codec(path, settings_with(EvaluationSettings(window=32, stride=12)))
    assert packed[1]["claimed_bits"] < 0.9 * plain.compress(TEXT.encode())[1]["claimed_bits"]


class Coin:
    """A reading of its own kind: one symbol of three nearly always."""

    def __init__(self, sure=0.9999):
        self.log_probs = np.log([sure, (1 - sure) * 0.75, (1 - sure) * 0.25])

    def predict(self):
        return self.log_probs

    def observe(self, token):
        pass


def test_the_coder_keeps_to_the_distribution():
    tokens = np.random.default_rng(1).choice(3, 4000, p=np.exp(Coin(0.8).log_probs))
    code, nats = encode(Coin(0.8), tokens)
    assert abs(8 * len(code) - nats / math.log(2)) < 64
    assert decode(Coin(0.8), code, 4000).tolist() == tokens.tolist()
    # a symbol that the predictor thinks impossible costs no more than the coder's smallest unit
    code, nats = encode(Coin(1 - 1e-15), np.array([2] * 50))
    assert nats / math.log(2) > 50 * 45 > 8 * len(code)
    assert decode(Coin(1 - 1e-15), code, 50).tolist() == [2] * 50


def test_the_proof(path, codec, tmp_path):
    tokens = np.array([1, *codec.tokenizer.encode(TEXT[:600])], np.uint16)
    kept = tmp_path / "proof.pgolfz"
    found = prove(path, tokens, stream_path=kept)
    assert (found["said"], found["equal"], found["tokens"], found["result"]) == ("", True, len(tokens) - 1, "ngram_backoff")
    assert found["real_bits"] == 8 * kept.stat().st_size > found["code_bits"]
    assert found["coded_bits"] == pytest.approx(found["claimed_bits"], rel=2e-6)
    assert found["seconds"] > max(found["encode_seconds"], found["decode_seconds"]) > 0


# ---- streams that are damaged, foreign, or made to do harm


def test_every_flip_and_every_cut_is_noticed(codec, packed):
    stream = packed[0]
    for place in range(0, len(stream), 7):
        bent = bytearray(stream)
        bent[place] ^= 1 << place % 8
        with pytest.raises(CodecError, match="damaged or cut off|is no compressed file"):
            codec.decompress(bytes(bent), "stream")
    for length in (0, 3, 20, 60, len(stream) // 2, len(stream) - 1):
        with pytest.raises(CodecError, match="damaged or cut off|is no compressed file"):
            codec.decompress(stream[:length], "stream")


def resealed(packed, **parts):
    """A stream with other parts and a right checksum."""
    return dataclasses.replace(Stream.from_bytes(packed, "stream"), **parts).to_bytes()


def test_another_artifact_is_refused(tokenizer, packed, tmp_path):
    other = Codec(artifact_at(tmp_path / "other.pgolf", tokenizer, seed=4))
    with pytest.raises(CodecError, match="made with another artifact"):
        other.decompress(packed[0], "stream")
    # and even where that is hidden, what comes out is not taken for the text
    with pytest.raises(CodecError, match="not what was compressed|ends after"):
        other.decompress(resealed(packed[0], artifact=other.digest), "stream")


def test_another_computer_is_refused(codec, packed, monkeypatch):
    """Among others one with another vector unit: learning and exponentials are torch's and numpy's, which ask for it."""
    monkeypatch.setattr(module, "computer", lambda: computer() | {"numba": "0.1"})
    with pytest.raises(CodecError, match=r"was made with numba \d.*, but here is 0.1"):
        codec.decompress(packed[0], "stream")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX1")
    monkeypatch.setattr(module, "computer", computer)
    with pytest.raises(CodecError, match="was made with processor .*decompress it where it was made") as caught:
        codec.decompress(packed[0], "stream")
    assert "\n" not in str(caught.value)


def test_the_threads_are_those_it_was_made_with(codec, packed):
    words = Stream.from_bytes(packed[0], "stream").computer.split(" ")
    assert words[-1] == str(torch.get_num_threads())
    before = torch.get_num_threads()
    for threads, said in (("1000", "1000"), ("0", "'0'"), ("x", "'x'"), ("", "''")):
        with pytest.raises(CodecError, match=said):
            codec.decompress(resealed(packed[0], computer=" ".join([*words[:-1], threads])), "stream")
    assert torch.get_num_threads() == before


def test_a_word_for_its_length_is_not_believed(codec, packed):
    with pytest.raises(CodecError, match="tells of 1,099,511,627,776 tokens"):
        codec.decompress(resealed(packed[0], targets=1 << 40), "stream")
    with pytest.raises(CodecError, match="ends after"):
        codec.decompress(resealed(packed[0], targets=packed[1]["tokens"] + 400), "stream")
    with pytest.raises(CodecError, match="not what was compressed"):
        codec.decompress(resealed(packed[0], targets=packed[1]["tokens"] - 2), "stream")
    code = Stream.from_bytes(packed[0], "stream").code
    with pytest.raises(CodecError, match="not what was compressed|ends after|damaged"):
        codec.decompress(resealed(packed[0], code=bytes(len(code))), "stream")
    with pytest.raises(CodecError, match="ends after"):
        codec.decompress(resealed(packed[0], code=code[: len(code) // 8 * 4]), "stream")
    assert believable(1000, 0, 1024) and not believable(10**9, 100, 1024)


@pytest.mark.parametrize("part, said", [
    ({"first": 1 << 20}, "tells of"),
    ({"kind": 7}, "is no stream that this program writes"),
    ({"documents": 1 << 40}, "is no stream that this program writes"),
    ({"documents": 1}, "documents do not fit its settings"),
    ({"last_targets": 3}, "is no stream that this program writes"),
    ({"code": b"abc"}, "is no stream that this program writes"),
    ({"computer": "0.1 here"}, "does not say what computed it"),
    ({"settings": b"no zlib"}, "settings cannot be read"),
    ({"settings": zlib.compress(b"[1, 2]")}, "settings cannot be read"),
    ({"settings": zlib.compress(b" " * 10**7)}, "settings cannot be read"),
    ({"settings": zlib.compress(b'{"evaluation": {"stride": 0}}')}, "cannot be scored with"),
    ({"settings": zlib.compress(b'{"evaluation": {"window": 1000000000, "stride": 1}}')}, "cannot be scored with"),
    ({"settings": zlib.compress(b'{"evaluation": {"mixer": {"honest": ["magic"]}}}')}, "magic"),
    ({"settings": zlib.compress(b'{"evaluation": {"adaptation": {"method": "lora"}}}')}, "documents do not fit its settings"),
    ({"plan": b"no zlib"}, "its plan"),
    ({"plan": zlib.compress(b'{"targets": -1, "changes": [], "plain": []}')}, "its plan"),
    ({"plan": zlib.compress(b'{"targets": 0, "changes": [[0, 12]], "plain": []}')}, "its plan"),
    ({"plan": zlib.compress(b'{"targets": 0, "changes": [[0, 999, 1]], "plain": []}')}, "cannot be scored with"),
    ({"patch": b"no zstd"}, "its patch"),
    ({"patch": module.make_patch(b"", bytes(10**6))[:20]}, "its patch"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else value.replace(" ", "-"))  # fmt: skip
def test_a_crafted_stream_is_one_line(codec, part, said):
    with pytest.raises(CodecError, match=said) as caught:
        codec.decompress(resealed(codec.compress(b"the cat")[0], **part), "stream")
    assert "\n" not in str(caught.value)


def test_numbers_and_strings_of_a_crafted_header():
    body = b"pgolfz\x03" + bytes(16)
    for rest in (varint(1 << 50) + b"\0" * 9, b"\xff" * 20, varint(30) + b"short", b"\0" * 3):
        sealed = body + rest
        with pytest.raises(CodecError, match="ends within its header|too large|damaged"):
            Stream.from_bytes(sealed + struct.pack("<I", zlib.crc32(sealed)), "stream")
    newer = b"pgolfz\x04" + bytes(30)
    with pytest.raises(CodecError, match="format version 4"):
        Stream.from_bytes(newer + struct.pack("<I", zlib.crc32(newer)), "stream")


# ---- the commands


def test_the_commands(path, tokenizer, tmp_path, capsys):
    source, stream, back = tmp_path / "text", tmp_path / "deep" / "stream", tmp_path / "back"
    source.write_bytes(TEXT.encode()[:700])
    words = ["--artifact", str(path), "--out"]
    assert main(["compress", str(source), *words, str(stream)]) == 0
    assert "tokens/s" in capsys.readouterr().out
    assert main(["decompress", str(stream), *words, str(back)]) == 0
    assert back.read_bytes() == source.read_bytes()
    assert hashlib.sha256(source.read_bytes()).digest()[:DIGEST] in stream.read_bytes()

    back.unlink()
    stream.write_bytes(stream.read_bytes()[:-9])
    for command, code, said in (
        (["decompress", str(stream), *words, str(back)], 1, "damaged or cut off"),
        (["decompress", str(tmp_path / "none"), *words, str(back)], 1, "cannot read"),
        (["compress", str(source), "--artifact", str(source), "--out", str(back)], 1, "no pgolf artifact"),
        (["compress", str(source)], 2, "artifact"),
        (["comprss", str(source)], 2, "did you mean 'compress'"),
    ):
        assert main(command) == code
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error
    assert not back.exists() and list(tmp_path.glob(".*")) == []


def test_an_artifact_must_say_how_it_is_scored(path, monkeypatch):
    real = module.read_artifact

    def older(where):
        artifact = real(where)
        del artifact.meta["scoring"]
        return artifact

    monkeypatch.setattr(module, "read_artifact", older)
    with pytest.raises(CodecError, match="pack its run again"):
        Codec(path).compress(b"the cat")
    assert Codec(path, settings_with()).table["evaluation"]["window"] == 32
