"""Adapters for each document against one document on its own, and what batching, ranks and order must not change."""

import dataclasses

import numpy as np
import pytest
import torch

from pgolf.config import LoraSettings
from pgolf.errors import PgolfError
from pgolf.evaluation.adaptation import LoraScorer, batches_of, score_documents
from pgolf.evaluation.adaptation.windows import Windows
from pgolf.evaluation.statistics import statistics_of
from pgolf.evaluation.stream import ScoredStream, document_bounds
from pgolf.kernels.lora import lora_initial
from pgolf.model import submission_state
from tests import transcription
from tests.evaluation.test_adaptation import TINY
from tests.model.common import EVERYTHING, SHALLOW, facts, random_model

BOS = 1
SITES = {
    "q": "attn.c_q.weight",
    "k": "attn.c_k.weight",
    "v": "attn.c_v.weight",
    "o": "attn.proj.weight",
    "up": "mlp.fc.weight",
    "down": "mlp.proj.weight",
}
LORA = LoraSettings(
    rank=3, chunk_tokens=8, context_tokens=24, refresh_tokens=-1, minimum_tokens=12, batch_documents=3, lr=0.02,
    targets=("q", "v", "head"),
)  # fmt: skip


def lora(**options):
    return dataclasses.replace(LORA, **options)


def stream_of(lengths=(29, 13, 7, 51, 33, 21, 64, 5), seed=0, vocabulary=TINY.vocab_size):
    """Documents of these lengths, and one BOS after the last."""
    random = np.random.default_rng(seed)
    documents = [[BOS, *random.integers(2, vocabulary, length - 1).tolist()] for length in lengths]
    return np.array([token for document in documents for token in document] + [BOS], np.uint16)


class DocumentScores:
    """Plain scores, and what was asked in which order."""

    def __init__(self):
        self.taken = []

    def take(self, opened, logits, softcap):
        scores = []
        for one, row in zip(opened, logits, strict=True):
            self.taken.append((one.start, one.stop))
            row = row[: one.stop - one.start]
            scores.append({"adapted": statistics_of(row, one.targets(one.start, one.stop), softcap=softcap).nats})
        return scores


def scored(model, tokens, settings, **options):
    stream = ScoredStream(tokens)
    score_documents(model, stream, document_bounds(tokens, BOS), settings, DocumentScores(), **options)
    return stream.ledger.finished()["adapted"]


@pytest.fixture(scope="module")
def exact():
    """A network in float64, with every part that carries something from layer to layer."""
    settings = dataclasses.replace(TINY, value_residual=True, gated_attention=True)
    return random_model(settings, dtype=torch.float64)


@pytest.fixture(scope="module")
def model():
    return random_model(TINY)


# ---- one document on its own


def alone(model, document, settings, window=0):
    """The nats of one document (a list of tokens, the BOS after it included) by autograd over merged matrices: every
    window is computed whole, or its last part with what attention saw of the rest."""
    own = facts(model.settings)
    dims = own["rotary_dims"]
    own["base"] *= max(1, (window or settings.context_tokens) / own["reference_length"]) ** (dims / (dims - 2))
    own["reference_length"] = 10**9
    base = {name: tensor.detach() for name, tensor in submission_state(model).items()}
    layers = model.settings.layers
    lowest = layers - settings.layers if settings.layers else 0
    pairs = {}
    numbers = {site: number for number, site in enumerate(("q", "k", "v", "o", "up", "down", "head"))}
    for target in settings.targets:
        for site in ("up", "down") if target == "mlp" else (target,):
            for layer in [0] if site == "head" else range(lowest, layers):
                name = "lm_head.weight" if site == "head" else f"blocks.{layer}.{SITES[site]}"
                weight = base["tok_emb.weight"] if site == "head" else base[name]
                a = lora_initial(settings.rank, weight.shape[1], seed=numbers[site] * 1000 + layer, dtype=weight.dtype)
                b = torch.zeros(weight.shape[0], settings.rank, dtype=weight.dtype)
                pairs[name] = (weight, a.requires_grad_(), b.requires_grad_())
    leaves = [leaf for _, a, b in pairs.values() for leaf in (a, b)]
    scale = settings.alpha / settings.rank if settings.alpha else 1.0
    moments = [[torch.zeros_like(leaf), torch.zeros_like(leaf)] for leaf in leaves]
    stale = {i: (torch.zeros(1, 0, own["kv_heads"], 8), torch.zeros(1, 0, own["kv_heads"], 8)) for i in range(layers)}
    count, size, nats, step = len(document) - 1, settings.chunk_tokens, [], 0
    for at in range(0, count, size):
        end = min(at + size, count)
        for number in range(1 + settings.passes):
            merged = base | {name: weight + scale * b @ a for name, (weight, a, b) in pairs.items()}
            if settings.refresh_tokens < 0:
                low = max(0, end - settings.context_tokens)
                logits = transcription.forward(merged, torch.tensor([document[low:end]]), own)[0, at - end :]
            else:
                lowest_seen = max(0, at + size - settings.context_tokens)
                fresh = max(lowest_seen, at - settings.refresh_tokens)
                past = {i: (k[:, lowest_seen:fresh].double(), v[:, lowest_seen:fresh].double()) for i, (k, v) in stale.items()}
                seen = {}
                logits = transcription.forward(merged, torch.tensor([document[:end]]), own, fresh, past, seen)[0, at - end :]
            losses = torch.nn.functional.cross_entropy(logits, torch.tensor(document[at + 1 : end + 1]), reduction="none")
            if not number:
                nats += losses.tolist()
            if number == settings.passes and settings.passes > 0 or end == count:
                break
            if settings.refresh_tokens >= 0:
                stale = {
                    i: tuple(torch.cat([old[:, :fresh].double(), new], 1) for old, new in zip(stale[i], seen[i], strict=True))
                    for i in stale
                }
            step += 1
            gradients = torch.autograd.grad(losses.mean(), leaves)
            with torch.no_grad():
                for leaf, (m, v), g in zip(leaves, moments, gradients, strict=True):
                    beta1, beta2 = settings.betas
                    m.mul_(beta1).add_((1 - beta1) * g)
                    v.mul_(beta2).add_((1 - beta2) * g * g)
                    leaf.mul_(1 - settings.lr * settings.weight_decay)
                    root = (v / (1 - beta2**step)).sqrt() + settings.eps
                    leaf.sub_(settings.lr * m / (1 - beta1**step) / root)
    return nats


ALL = ("q", "k", "v", "o", "mlp", "head")
FORMS = {
    "as published": {},
    "everywhere, scaled": {"targets": ALL, "alpha": 6.0, "weight_decay": 0.5},
    "no momentum": {"betas": (0.0, 0.99)},
    "two passes": {"passes": 2},
    "last layers": {"layers": 2, "targets": ("q", "o", "head")},
    "only the last layer": {"layers": 1, "targets": ALL},
    "head alone": {"targets": ("head",), "passes": 3},
    "short chunks, odd": {"chunk_tokens": 5, "context_tokens": 17},
    "cached": {"refresh_tokens": 0},
    "cached, some refreshed": {"refresh_tokens": 6, "targets": ALL, "alpha": 6.0},
    "cached, two passes": {"refresh_tokens": 3, "passes": 2},
    "cached, last layers": {"refresh_tokens": 4, "layers": 2, "context_tokens": 40},
}


@pytest.mark.parametrize("form", FORMS)
def test_each_document_is_scored_as_on_its_own(exact, form):
    settings = lora(**FORMS[form])
    lengths = (13, 7, 35)
    tokens = stream_of(lengths)
    found = np.split(scored(exact, tokens, settings), np.cumsum(lengths)[:-1])
    documents = [tokens[end - length : end + 1].tolist() for length, end in zip(lengths, np.cumsum(lengths), strict=True)]
    still = dataclasses.replace(settings, lr=0.0)
    for i, short in enumerate((False, True, False)):
        wanted = alone(exact, documents[i], still if short else settings)
        np.testing.assert_allclose(found[i], wanted, rtol=0, atol=1e-7, err_msg=f"{lengths[i]} tokens")
    assert np.abs(found[0] - alone(exact, documents[0], still)).max() > 1e-3


@pytest.mark.parametrize("form", ["as published", "cached, some refreshed", "cached, two passes", "cached, last layers"])
def test_steps_of_few_shapes_score_the_same(exact, form, monkeypatch):
    """As on a GPU: rows, positions and kept keys are filled up, and what fills them changes nothing."""
    tokens, settings, shapes = stream_of((13, 7, 35, 52)), lora(**FORMS[form]), set()
    wanted = scored(exact, tokens, settings)
    given = Windows.given

    def filled(windows, rows=0):
        made = given(windows, settings.batch_documents if torch.is_grad_enabled() else 0)
        if torch.is_grad_enabled():
            shapes.add((*made.tokens.shape, *(pair[0].shape[1] for pair in made.past.values())))
        return made

    monkeypatch.setattr(Windows, "given", filled)
    np.testing.assert_allclose(scored(exact, tokens, settings), wanted, rtol=0, atol=1e-9)
    assert len(shapes) <= 6 and all(rows == settings.batch_documents for rows, *_ in shapes)


@pytest.mark.parametrize("refresh", [-1, 0])
def test_positions_turn_as_in_the_windows_of_training(exact, refresh):
    tokens = stream_of((27,))
    settings = lora(context_tokens=16, refresh_tokens=refresh)
    for window in (0, 40):
        found = scored(exact, tokens, settings, window=window)
        np.testing.assert_allclose(found, alone(exact, tokens.tolist(), settings, window), rtol=0, atol=1e-7)
    assert np.abs(found - alone(exact, tokens.tolist(), settings)).max() > 1e-3


@pytest.mark.parametrize("form", [{}, {"targets": ("head",)}, {"layers": 3}, {"refresh_tokens": 0}, {"refresh_tokens": 9}])
@pytest.mark.parametrize("settings", [EVERYTHING, SHALLOW], ids=["everything", "shallow"])
def test_before_anything_is_learnt_pieces_make_up_the_network(settings, form):
    model = random_model(settings, dtype=torch.float64)
    tokens = stream_of((40,), vocabulary=settings.vocab_size)
    found = scored(model, tokens, lora(lr=0.0, context_tokens=40, **form))
    logits = model.logits(torch.from_numpy(tokens[None, :-1].astype(np.int64)))[0]
    wanted = torch.nn.functional.cross_entropy(logits, torch.from_numpy(tokens[1:].astype(np.int64)), reduction="none")
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", [{}, {"refresh_tokens": 4}])
def test_activations_in_bfloat16_score_nearly_the_same(form):
    tokens = stream_of()
    settings = lora(targets=ALL, alpha=3.0, lr=0.003, **form)
    fine, coarse = (scored(random_model(TINY, dtype=kind), tokens, settings) for kind in (torch.float32, torch.bfloat16))
    assert 0 < np.abs(fine - coarse).max() < 0.5 and abs(fine.mean() - coarse.mean()) < 0.02


# ---- what must not matter

BOTH = {"published": {}, "cached": {"refresh_tokens": 5}}


@pytest.mark.parametrize("form", BOTH)
def test_a_score_does_not_depend_on_what_else_is_in_the_batch(model, form):
    tokens = stream_of()
    whole = scored(model, tokens, lora(batch_documents=100, **BOTH[form]))
    for size in (1, 3):
        np.testing.assert_allclose(scored(model, tokens, lora(batch_documents=size, **BOTH[form])), whole, rtol=0, atol=1e-5)
    unlearnt = scored(model, tokens, lora(lr=0.0, **BOTH[form]))
    assert np.abs(whole - unlearnt).max() > 1e-2


@pytest.mark.parametrize("form", BOTH)
def test_nor_on_the_number_of_ranks(model, form):
    tokens = stream_of()
    stream = ScoredStream(tokens)
    bounds = document_bounds(tokens, BOS)
    alone = scored(model, tokens, lora(**BOTH[form]))
    together = np.full(len(alone), np.nan)
    for rank in range(3):
        stream = ScoredStream(tokens)
        score_documents(model, stream, bounds, lora(**BOTH[form]), DocumentScores(), rank=rank, world=3)
        mine = stream.ledger.scores["adapted"]
        assert np.isnan(together[~np.isnan(mine)]).all() and not np.isnan(mine).all()
        together = np.where(np.isnan(mine), together, mine)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_nor_on_the_order_of_documents(model):
    lengths = (29, 13, 7, 51)
    tokens = stream_of(lengths)
    parts = np.split(tokens[:-1], np.cumsum(lengths)[:-1])
    swapped = np.concatenate([*(parts[i] for i in (2, 0, 3, 1)), tokens[-1:]])
    found = np.split(scored(model, tokens, LORA), np.cumsum(lengths)[:-1])
    other = np.split(scored(model, swapped, LORA), np.cumsum([7, 29, 51])[:])
    for i, j in enumerate((1, 3, 0, 2)):
        np.testing.assert_allclose(found[i], other[j], rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", BOTH)
def test_tokens_to_come_change_no_score(model, form):
    tokens = stream_of()
    changed = tokens.copy()
    # the document of targets 49 to 99: its eleventh token is the first that is another
    changed[49 + 11 : 49 + 51] = 2 + (changed[49 + 11 : 49 + 51] + 5) % (TINY.vocab_size - 2)
    assert (changed == BOS).tolist() == (tokens == BOS).tolist()
    before, after = (scored(model, given, lora(**BOTH[form])) for given in (tokens, changed))
    same = before == after
    assert same[: 49 + 10].all() and same[49 + 51 :].all() and not same[49 + 10 : 49 + 51].any()


def test_a_replay_gives_the_same_bits_and_the_network_stays_as_it_was(model):
    tokens = stream_of()
    first, second = (scored(model, tokens, lora(batch_documents=2, passes=2)) for _ in range(2))
    assert (first == second).all()
    weights = submission_state(random_model(TINY))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in submission_state(model).items())


# ---- score first, and who learns


def test_learning_comes_after_the_commit_and_never_from_a_last_chunk(model):
    tokens = stream_of((29, 16, 7))
    stream = ScoredStream(tokens)
    score_documents(model, stream, document_bounds(tokens, BOS), LORA, DocumentScores())
    committed = set()
    learnt = []
    for kind, start, stop, _ in stream.ledger.events:
        if kind == "commit":
            committed |= set(range(start, stop))
        else:
            assert set(range(start, stop)) <= committed
            learnt.append((start, stop))
    assert sorted(learnt) == [(0, 8), (8, 16), (16, 24), (29, 37)]


def test_too_short_and_too_long_documents_are_scored_without_adapters(model):
    """Their lengths are counted as #77 and #687 do, in tokens: its BOS, and the next document's as the last target."""
    lengths = (29, 11, 12, 40, 41)
    tokens = stream_of(lengths)
    starts = np.flatnonzero(tokens == BOS)
    assert (np.diff(starts) + 1).tolist() == [30, 12, 13, 41, 42]
    settings = lora(minimum_tokens=13, maximum_tokens=41)
    found = np.split(scored(model, tokens, settings), np.cumsum(lengths)[:-1])
    still = np.split(scored(model, tokens, lora(lr=0.0, maximum_tokens=41)), np.cumsum(lengths)[:-1])
    learnt = [np.abs(a - b).max() > 1e-3 for a, b in zip(found, still, strict=True)]
    assert learnt == [True, False, True, True, False]
    batches = [batch for rank in batches_of(lengths, settings) for batch in rank]
    assert [(batch.documents, batch.adapted) for batch in batches] == [((4, 1), False), ((3, 0, 2), True)]


def test_ranks_share_documents_evenly_and_every_document_is_in_one_batch():
    lengths = np.random.default_rng(5).integers(5, 900, 301).tolist()
    settings = lora(batch_documents=16, minimum_tokens=100, maximum_tokens=800)
    plans = batches_of(lengths, settings, 4)
    assert sorted(d for plan in plans for batch in plan for d in batch.documents) == list(range(301))
    for plan in plans:
        assert all(len(batch.documents) <= 16 for batch in plan)
        for batch in plan:
            sizes = [lengths[d] for d in batch.documents]
            assert sizes == sorted(sizes, reverse=True)
            assert all((100 <= size + 1 <= 800) == batch.adapted for size in sizes)
    work = [sum(lengths[d] for batch in plan for d in batch.documents) for plan in plans]
    assert max(work) - min(work) < 2 * max(lengths)
    assert plans == batches_of(lengths, settings, 4)


def test_the_bos_of_the_next_document_is_the_last_target_of_the_one_before():
    assert document_bounds(np.array([1, 5, 6, 1, 7, 1, 1, 8, 1]), 1) == [3, 5, 6]
    assert document_bounds(np.array([5, 6, 1, 7]), 1) == [2]
    assert document_bounds(np.array([1]), 1) == []
    collector, tokens = DocumentScores(), stream_of((9, 5))
    stream = ScoredStream(tokens)
    score_documents(random_model(TINY), stream, document_bounds(tokens, BOS), lora(minimum_tokens=1), collector)
    assert sorted(collector.taken) == [(0, 8), (8, 9), (9, 14)]


def test_a_planner_can_take_the_adapters_away(model):
    class Poor:
        asked, told = [], []

        def adapts(self, documents, tokens, tokens_after):
            self.asked.append((documents, tokens, tokens_after))
            return len(self.asked) > 1

        def documents_done(self, tokens, seconds, adapted):
            self.told.append((tokens, seconds, adapted))

    lengths = (29, 7, 40, 13)
    tokens, planner, shares = stream_of(lengths), Poor(), []
    ticks = iter(range(100))
    options = {"planner": planner, "progress": shares.append, "now": lambda: next(ticks)}
    found = np.split(scored(model, tokens, lora(batch_documents=2), **options), np.cumsum(lengths)[:-1])
    rich = np.split(scored(model, tokens, lora(batch_documents=2)), np.cumsum(lengths)[:-1])
    assert planner.asked == [([36, 0], 69, 13), ([76], 13, 0)]
    assert planner.told == [(7, 1, False), (69, 1, False), (13, 1, True)]
    assert shares == [7 / 89, 76 / 89, 1.0]
    same = [np.abs(a - b).max() < 1e-6 for a, b in zip(found, rich, strict=True)]
    assert same == [False, True, False, True]


def test_a_chunk_must_fit_into_its_window(model):
    with pytest.raises(PgolfError, match="chunk_tokens 25"):
        LoraScorer(model, lora(chunk_tokens=25))


# ---- what is not computed again


@pytest.mark.parametrize(
    "options, wanted",
    [
        # nothing is adapted below the head: every token passes every layer once
        ({"targets": ("head",)}, 20 * 4),
        # the whole window for every chunk, those with a chunk to come three times over: 3 * 8 + 3 * 16 + 20
        ({}, (24 + 48 + 20) * 4),
        # the two lower layers once
        ({"layers": 2}, 20 * 2 + (24 + 48 + 20) * 2),
        # of each window the chunk and five tokens
        ({"refresh_tokens": 5}, (24 + 39 + 9) * 4),
        ({"minimum_tokens": 22}, 20 * 4),
    ],
)
def test_no_more_is_computed_than_can_have_changed(model, options, wanted):
    scorer = LoraScorer(model, lora(**options))
    adapted = options.get("minimum_tokens", 0) <= 21
    scorer.score([ScoredStream(stream_of((20,)))], DocumentScores(), adapted=adapted)
    assert scorer.network.token_layers == wanted
