"""Context mixing with a text to read first: one distribution as a row, as a path's decisions, and as bits; and its section."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest

from pgolf.budget import Budget
from pgolf.cli.pack import primer_section
from pgolf.config import EvaluationSettings, MixerSettings, Settings
from pgolf.evaluation.codec.coding import Decoder, Encoder
from pgolf.evaluation.mixing import history
from pgolf.evaluation.mixing.tree import token_tree
from pgolf.evaluation.predictors.base import Span
from pgolf.evaluation.predictors.context_mixing import ContextMixingPredictor
from pgolf.evaluation.primer import Primer, PrimerError, primer_from_bytes, primer_to_bytes
from pgolf.evaluation.statistics import Statistics
from pgolf.progress import Display

# control tokens without bytes, single bytes, and pieces that begin one another
PIECES = [b"", b"", *(bytes([byte]) for byte in range(97, 123)), b"th", b"the", b"them", b"qu", b" ", b" the", b"\n"]
VOCAB, COUNT = len(PIECES), 160


def stream(seed: int, count: int = COUNT) -> np.ndarray:
    rng = np.random.default_rng(seed)
    phrase = rng.integers(2, VOCAB, 20)
    return np.concatenate([phrase, rng.integers(0, VOCAB, 10)] * (count // 30 + 1))[:count]


TEXT = stream(5)
LOGITS = np.random.default_rng(6).normal(size=(COUNT, VOCAB)).astype(np.float32)
LOG_PROBS = LOGITS - np.log(np.exp(LOGITS.astype(float)).sum(1, keepdims=True))


def begun(primer_tokens=()) -> ContextMixingPredictor:
    predictor = ContextMixingPredictor(Primer(PIECES, np.array(primer_tokens, np.int64)))
    predictor.begin(0)
    return predictor


def score(predictor: ContextMixingPredictor) -> np.ndarray:
    nothing = np.zeros(COUNT)
    return predictor.score(
        Span(0, TEXT.astype(np.int32), TEXT == 0), Statistics(nothing, nothing, nothing, nothing[:, None], LOGITS)
    )


def test_every_token_is_a_leaf_of_its_own_path():
    tree = token_tree(PIECES)
    for token in range(VOCAB):
        node = 0
        for at in range(tree.start[token], tree.start[token + 1]):
            assert node == tree.path[at]
            node = tree.child[node, tree.bit[at]]
        assert node == -1 - token
    assert len(tree.part) == VOCAB - 1 and sorted(tree.leaf) == list(range(VOCAB))


def test_the_claim_is_the_rows_entry_and_the_product_along_the_path():
    claimed = score(begun(TEXT[:90]))
    predictor = begun(TEXT[:90])
    for token, log_probs, nats in zip(TEXT.tolist(), LOG_PROBS, claimed, strict=True):
        row = predictor.predict(log_probs)
        said = predictor.decisions(log_probs)
        path = [(bit, said.probability(node, step)) for step, (node, bit) in enumerate(said.path(token))]
        assert abs(np.exp(row).sum() - 1) < 1e-5
        assert -row[token] == pytest.approx(nats, abs=1e-4)
        assert -sum(math.log(p if bit else 1 - p) for bit, p in path) == pytest.approx(nats, abs=1e-4)
        predictor.observe(token)


def test_the_decisions_code_the_tokens_in_as_many_bits_as_they_claim():
    encoder, predictor = Encoder(), begun(TEXT[:90])
    for token, log_probs in zip(TEXT.tolist(), LOG_PROBS, strict=True):
        encoder.put(token, predictor.decisions(log_probs))
        predictor.observe(token)
    code, nats = encoder.finished()
    assert nats == pytest.approx(score(begun(TEXT[:90])).sum(), abs=1e-2)
    assert 0 <= 8 * len(code) - nats / math.log(2) <= 96
    decoder, predictor, found = Decoder(code, COUNT), begun(TEXT[:90]), []
    for log_probs in LOG_PROBS:
        found.append(decoder.get(predictor.decisions(log_probs)))
        predictor.observe(found[-1])
    assert found == TEXT.tolist()


def test_looking_leaves_no_trace_and_a_copy_goes_its_own_way():
    predictor = begun(TEXT[:90])
    other = copy.deepcopy(predictor)
    for log_probs in LOG_PROBS[:5]:
        other.predict(log_probs)
        other.decisions(log_probs)
    looked = copy.deepcopy(other)
    other.observe(3)
    np.testing.assert_array_equal(score(looked), score(predictor))


def test_a_text_that_was_read_first_costs_less():
    assert score(begun(TEXT)).sum() < 0.7 * score(begun()).sum()


def test_a_text_that_the_scoring_clock_cannot_read_is_cut_at_its_beginning(monkeypatch):
    """30,000 tokens at 10 ms each, with half of 120 s to read: the last 6,000."""
    tokens = np.arange(30_000, dtype=np.uint16) % VOCAB
    monkeypatch.setattr("pgolf.cli.pack.open_shard", lambda path: tokens)
    monkeypatch.setattr("pgolf.evaluation.predictors.context_mixing.seconds_per_token", lambda pieces, tokens: 0.01)
    evaluation = EvaluationSettings(seconds=120.0, mixer=MixerSettings(honest=("context_mixing",)))
    dataset = SimpleNamespace(train_shards=["one"], tokenizer=SimpleNamespace(pieces=PIECES))
    section = primer_section(Settings(evaluation=evaluation), dataset, Budget(60.0), Display(active=False))["text"]
    np.testing.assert_array_equal(primer_from_bytes(section, VOCAB, "x"), tokens[-6000:])


def test_the_text_for_a_buffer_grows_with_the_stream():
    predictor = begun()
    predictor.model = predictor.model._replace(text=predictor.model.text[:64].copy())
    np.testing.assert_array_equal(score(predictor), score(begun()))


def test_the_section_comes_back_and_a_damaged_one_is_one_line():
    packed = primer_to_bytes(TEXT)
    np.testing.assert_array_equal(primer_from_bytes(packed, VOCAB, "x"), TEXT)
    assert not len(primer_from_bytes(b"", VOCAB, "x"))
    for damaged in (packed[:-3], packed + b"!", b"\xff" + packed[1:], primer_to_bytes(np.array([VOCAB]))):
        with pytest.raises(PrimerError, match="^x is damaged: [^\n]+$"):
            primer_from_bytes(damaged, VOCAB, "x")


def test_a_context_tells_apart_what_it_looks_at():
    found = []
    for text in (b"the then", b"the than", b"She then"):
        state, before = history.new_state(), np.zeros(64, np.uint8)
        for byte in text:
            history.advance(state, before, byte)
        contexts = np.zeros(history.CONTEXTS, np.int64)
        history.contexts_of(state, before, np.zeros(256, np.int64), np.zeros(1 << 16, np.int64), 0, contexts)
        assert len(set(contexts.tolist())) == history.CONTEXTS
        found.append(contexts[1 : len(history.BY_LENGTH) + 1])
    then, than, she = found
    assert (then == than).tolist() == [length < 2 for length in history.BY_LENGTH]
    assert (then == she).tolist() == [length < 8 for length in history.BY_LENGTH]
