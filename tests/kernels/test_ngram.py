"""The n-gram back-off on a CPU, against a transcription in plain Python: dictionaries, loops and no cleverness."""

import math

import numpy as np
import pytest
import torch

from pgolf.kernels import threads as pool
from pgolf.kernels.logit_stats import LogitStats, logit_stats
from pgolf.kernels.ngram import NgramBackoff, learn_table, op
from pgolf.kernels.ngram.launch import launch_evidence, launch_mix, traffic_evidence, traffic_mix
from pgolf.kernels.ngram.reference import evidence_reference, mix_online_reference, mix_reference
from pgolf.kernels.ngram.trie import Trie
from tests.kernels.compare import assert_close
from tests.kernels.tokens import repeating_tokens

EXACT = 1e-11


@pytest.fixture(autouse=True)
def unwritten_memory_is_loud(poisoned_memory):
    pass


def starts(documents, count):
    opens = torch.zeros(count, dtype=torch.bool)
    opens[documents[:-1]] = True
    return opens


class PlainNgramBackoff:
    """The n-gram back-off, one token at a time; a level's counts: {context: [[symbol, count], ...]}, latest symbol first."""

    def __init__(self, local, shared, granularity, table, learn=False, floor=2e-3):
        self.levels = [(order, False) for order in local] + [(order, True) for order in shared]
        self.granularity, self.learn, self.floor = granularity, learn, floor
        self.table = {}
        self.first = table
        self.visits = {}
        self.counts = [{} for _ in self.levels]
        self.document, self.pending, self.lessons = [], [], []

    def _update(self):
        for level, context, token in self.pending:
            entry = self.counts[level].setdefault(context, [])
            for pair in entry:
                if pair[0] == token:
                    pair[1] += 1
                    break
            else:
                entry.insert(0, [token, 1])
        self.pending = []

    def _teach(self):
        for cell, posterior in self.lessons:
            rate = max(self.floor, 1 / (self.visits.get(cell, 0) + 20))
            w = self._weight(cell)
            self.table[cell] = min(max(w + rate * (posterior - w), 1e-4), 0.9995)
            self.visits[cell] = self.visits.get(cell, 0) + 1
        self.lessons = []

    def _weight(self, cell):
        return self.table.get(cell, float(self.first[cell]))

    def before(self):
        """Bring the state up to what may be known about the next token."""
        if len(self.document) % self.granularity == 0:
            self._update()
        if len(self.document) % self.granularity == 0 or len(self.document) == 1:
            self._teach()

    def steps(self, log_probs):
        for level, (order, _) in enumerate(self.levels):
            if len(self.document) < order:
                continue
            entry = self.counts[level].get(tuple(self.document[len(self.document) - order :]))
            if not entry:
                continue
            n, u = sum(c for _, c in entry), len(entry)
            top = max(entry, key=lambda pair: pair[1])[0]
            q = sum(log_probs[top] >= cut for cut in (-9, -6, -4, -2.5, -1.5, -0.8, -0.35, -0.1))
            size = [n <= 1, n <= 2, n <= 4, n <= 8, n <= 16, n <= 64, n <= 256, True].index(True)
            spread = 0 if u == 1 else 1 if u <= n / 4 else 2 if u <= n / 2 else 3
            yield (level, q, 1 + 4 * size + spread), dict(map(tuple, entry)), n

    def predict(self, log_probs):
        self.before()
        mixed = [math.exp(x) for x in log_probs]
        for cell, counts, n in self.steps(log_probs):
            w = self._weight(cell)
            mixed = [(1 - w) * p + w * counts.get(a, 0) / n for a, p in enumerate(mixed)]
        return mixed

    def observe(self, log_probs, token, start):
        if self.learn:
            p = math.exp(log_probs[token])
            for cell, counts, n in self.steps(log_probs):
                w, q = self._weight(cell), counts.get(token, 0) / n
                after = (1 - w) * p + w * q
                self.lessons.append((cell, w * q / after))
                p = after
        if start:
            self._update()
            self.document = []
            self.counts = [counts if shared else {} for counts, (_, shared) in zip(self.counts, self.levels, strict=True)]
        for level, (order, _) in enumerate(self.levels):
            if len(self.document) >= order:
                self.pending.append((level, tuple(self.document[len(self.document) - order :]), token))
        self.document.append(token)


def some_table(levels, seed=3):
    return torch.rand(levels, 9, 33, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.9 + 0.05


def scored(backoff, tokens, documents, logits, learn=False):
    evidence = backoff.evidence(tokens, documents)
    stats = logit_stats(logits, tokens, evidence.top)
    return evidence, stats, (backoff.mix_and_learn if learn else backoff.mix)(stats, evidence)


LEVELS = [((1, 2, 3, 4), ()), ((0, 2), (1, 3)), ((), (0, 2)), ((1, 2, 3, 4, 5, 6), (3,))]
DOCUMENTS = torch.tensor([0, 1, 40, 41, 150, 260])


@pytest.mark.parametrize("granularity", [1, 7, 64, 100])
@pytest.mark.parametrize("local, shared", LEVELS)
@pytest.mark.parametrize("learn", [False, True])
def test_ngram_backoff_against_a_transcription_and_its_stream(local, shared, granularity, learn):
    vocabulary, count = 6, 260
    tokens = repeating_tokens(count, vocabulary)
    logits = torch.randn(count, vocabulary, dtype=torch.float64) * 2
    table = some_table(len(local) + len(shared))
    backoff, other = (NgramBackoff(local, shared, granularity=granularity, table=table) for _ in range(2))
    plain = PlainNgramBackoff(local, shared, granularity, table, learn)
    _, stats, scores = scored(backoff, tokens, DOCUMENTS, logits, learn)
    log_probs = logits - stats.lse[:, None]
    stream = other.stream(vocabulary, learn=learn)
    opening = starts(DOCUMENTS, count)
    for t in range(count):
        row = log_probs[t].tolist()
        expected = plain.predict(row)
        found = stream.predict(log_probs[t])
        assert abs(sum(expected) - 1) < 1e-12 and abs(found.sum().item() - 1) < 1e-12
        assert found.tolist() == pytest.approx(expected, abs=1e-13)
        assert scores.nll[t].item() == pytest.approx(-math.log(expected[tokens[t]]), abs=1e-12)
        stream.observe(int(tokens[t]), bool(opening[t]))
        plain.observe(row, int(tokens[t]), bool(opening[t]))
    if learn:
        plain._teach()
        for mine in (backoff, other):
            mine.flush()
        assert torch.allclose(backoff.table, other.table, atol=1e-13)
        assert plain.table and all(
            backoff.table[cell].item() == pytest.approx(w, abs=1e-12) for cell, w in plain.table.items()
        )
        assert (backoff.table != table).sum() == len(plain.table)
    else:
        assert torch.equal(backoff.table, table)


@pytest.mark.parametrize("granularity", [1, 5])
@pytest.mark.parametrize("local, shared", LEVELS)
def test_evidence_reference_agrees(local, shared, granularity):
    tokens = repeating_tokens(260, 5)
    found = NgramBackoff(local, shared, granularity=granularity).evidence(tokens, DOCUMENTS)
    parts = [
        evidence_reference(tokens, starts(DOCUMENTS, 260), orders, granularity, kind)
        for orders, kind in ((local, False), (shared, True))
        if orders
    ]
    for name, x, expected in zip(found._fields, found, zip(*parts, strict=True), strict=False):
        assert torch.equal(x, torch.cat(expected, 1)), name
    assert found.cell.max() > 8 and found.hits.max() > 3


def test_mixture_references_agree():
    tokens, logits = repeating_tokens(260, 5), torch.randn(260, 5, dtype=torch.float64)
    backoff = NgramBackoff((0, 1, 3), granularity=5, table=some_table(3))
    evidence, stats, scores = scored(backoff, tokens, DOCUMENTS, logits)
    rows = (stats.target, stats.candidates, *evidence[1:4])
    for found, expected in zip(scores, mix_reference(*rows, backoff.table), strict=True):
        assert_close(found, expected, EXACT)
    table, visits, pending = backoff.table.clone(), backoff.visits.clone(), []
    learnt = backoff.mix_and_learn(stats, evidence)
    again = mix_online_reference(*rows, evidence.group_starts, table, visits, pending, backoff.floor)
    assert_close(learnt.nll, again[0], EXACT)
    assert_close(learnt.share, again[1], EXACT)
    assert_close(backoff.table, table, EXACT)
    assert torch.equal(backoff.visits, visits) and int(backoff.pending) == len(pending) > 0


def test_ngram_backoff_whole_distribution_sums_to_one_and_is_what_mix_reads():
    count, vocabulary = 300, 40
    tokens, logits = repeating_tokens(count, vocabulary), torch.randn(count, vocabulary) * 3
    documents = torch.tensor([0, 130, count])
    backoff = NgramBackoff((1, 2, 3, 4), (2, 5), granularity=3, table=some_table(6))
    _, stats, scores = scored(backoff, tokens, documents, logits)
    at = torch.arange(1, count, 7)
    log_probs = logits[at].double() - stats.lse[at, None]
    dense = backoff.distribution(log_probs, tokens, documents, at)
    assert dense.dtype == torch.float64 and (dense.sum(1) - 1).abs().max() < 1e-12 and dense.min() >= 0
    assert torch.allclose(-dense[torch.arange(len(at)), tokens[at]].log(), scores.nll[at], atol=1e-12)
    # what a token turns out to be changes nothing in the distribution that was committed before it
    for place in (at[5], at[20], documents[1]):
        changed = tokens.clone()
        changed[place] = (tokens[place] + 1) % vocabulary
        here = place.reshape(1)
        row = logits[here].double() - stats.lse[here, None]
        assert torch.equal(
            backoff.distribution(row, changed, documents, here), backoff.distribution(row, tokens, documents, here)
        )


@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize("learn", [False, True])
def test_ngram_backoff_future_changes_nothing(granularity, learn):
    count, cut = 200, 117
    tokens, logits = repeating_tokens(count, 8), torch.randn(count, 8)
    other, changed = tokens.clone(), logits.clone()
    other[cut:] = torch.randint(0, 8, (count - cut,))
    changed[cut:] = torch.randn(count - cut, 8)
    documents = torch.tensor([0, 60, count])
    first, second = (
        scored(NgramBackoff((1, 2, 4), (2,), granularity=granularity), *rest, learn)
        for rest in ((tokens, documents, logits), (other, documents, changed))
    )
    assert torch.equal(first[2].nll[:cut], second[2].nll[:cut])
    assert not torch.equal(first[2].nll[cut:], second[2].nll[cut:])
    assert torch.equal(first[0].top[: cut + 1], second[0].top[: cut + 1])


def test_documents_do_not_know_each_other():
    lengths = [1, 90, 33, 2, 150, 71]
    pieces = [repeating_tokens(300, 7, seed)[:n] for seed, n in enumerate(lengths)]
    backoff = NgramBackoff((0, 1, 2, 3, 4, 5))

    def in_order(order):
        bounds = torch.tensor([0, *torch.tensor([lengths[i] for i in order]).cumsum(0).tolist()])
        evidence = backoff.evidence(torch.cat([pieces[i] for i in order]), bounds)
        # the first token of a document is read in the one before it
        return {i: [x[bounds[k] + 1 : bounds[k + 1]] for x in evidence] for k, i in enumerate(order)}

    first, second = in_order([0, 1, 2, 3, 4, 5]), in_order([4, 2, 5, 0, 3, 1])
    for i in range(6):
        assert all(torch.equal(a, b) for a, b in zip(first[i], second[i], strict=True)), f"document {i}"


@pytest.mark.parametrize("threads", [2, 5])
def test_evidence_is_the_same_for_any_number_of_threads(threads, monkeypatch):
    tokens = repeating_tokens(400, 7)
    documents = torch.tensor([0, 10, 11, 12, 200, 390, 400])
    backoff = NgramBackoff((1, 2, 3), (2,), granularity=4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = backoff.evidence(tokens, documents)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(pool.os, "cpu_count", lambda: threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, backoff.evidence(tokens, documents), strict=True))
    spans = op.spans_of_documents(documents.tolist(), threads)
    assert spans[0][0] == 0 and spans[-1][1] == 400 and 1 < len(spans) <= threads
    assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_collisions_are_told_apart():
    tokens = repeating_tokens(600, 30).int().numpy()
    opening = np.zeros(600, dtype=bool)
    opening[[0, 300]] = True
    found = []
    for kwargs in ({}, {"multiplier": 0}):
        trie = Trie((1, 2, 3), 1, False, **kwargs)
        found.append(trie.new_evidence(600))
        trie.follow(tokens, opening, found[-1])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
    assert (found[0][3] > 1).sum() > 300


def test_granularity_is_how_stale_the_counts_are():
    tokens = torch.tensor([3, 5] * 20)
    for granularity in (1, 4, 16):
        total = NgramBackoff((1,), granularity=granularity).evidence(tokens).total[:, 0]
        # before token t, the groups that are over hold t // G * G tokens, and tokens[t - 1] came before some of them
        expected = [
            sum(tokens[i - 1] == tokens[t - 1] for i in range(1, t // granularity * granularity)) for t in range(1, 40)
        ]
        assert total[1:].tolist() == [int(x) for x in expected]


def test_ties_go_to_the_symbol_first_seen_last():
    top = NgramBackoff((0,)).evidence(torch.tensor([4, 2, 2, 4, 7, 7])).top[:, 0]
    assert top.tolist() == [-1, 4, 2, 2, 2, 2]
    assert NgramBackoff((0,)).evidence(torch.tensor([4, 2, 4, 2, 0])).top[-1] == 2


def test_stream_in_pieces_equals_the_whole():
    tokens = repeating_tokens(260, 6)
    opening = starts(DOCUMENTS, 260)
    backoff = NgramBackoff((1, 2, 3), (2, 4), granularity=7)
    whole = backoff.evidence(tokens, DOCUMENTS)
    for sizes in ([1] * 260, [100, 3, 0, 57, 100]):
        stream, begin, parts = backoff.stream(6), 0, []
        for size in sizes:
            parts.append(stream.read(tokens[begin : begin + size], opening[begin : begin + size]))
            begin += size
        assert all(torch.equal(torch.cat(x), y) for x, y in zip(zip(*parts, strict=True), whole, strict=True))
    stream = backoff.stream(6)
    stream.read(tokens[:200], opening[:200])
    assert torch.equal(stream.candidates(), whole.top[200])


def test_learnt_table_pays_on_other_text():
    vocabulary = 20
    train, held_out = (repeating_tokens(4000, vocabulary, seed) for seed in (1, 2))
    logits = torch.zeros(4000, vocabulary)
    backoff = NgramBackoff((1, 2, 3))
    evidence, stats, _ = scored(backoff, train, None, logits)
    table = learn_table(backoff, [(stats, evidence)])
    assert table.dtype == torch.float64 and torch.all(backoff.table == 0.05) and not backoff.visits.any()
    online = NgramBackoff((1, 2, 3), floor=5e-4)
    online.mix_and_learn(stats, evidence)
    online.flush()
    assert torch.equal(table, online.table)
    before, after = (scored(c, held_out, None, logits)[2].nll.mean() for c in (backoff, NgramBackoff((1, 2, 3), table=table)))
    assert after < before - 0.1 and after < math.log(vocabulary) - 0.2


def test_a_token_the_neural_model_rules_out():
    tokens = torch.tensor([1, 1, 1, 0, 2])
    backoff = NgramBackoff((0,), table=torch.full((1, 9, 33), 0.5))
    evidence = backoff.evidence(tokens)
    target = torch.full((5,), -2000.0, dtype=torch.float64)
    scores = backoff.mix(LogitStats(target, target, target, torch.zeros(5, 1, dtype=torch.float64)), evidence)
    assert scores.nll.tolist() == pytest.approx([2000, math.log(2), math.log(2), 2000 + math.log(2), 2000 + math.log(2)])


# ---- registration, compilation, launches, errors


def example_arguments():
    tokens = repeating_tokens(50, 11)
    documents = torch.tensor([0, 20, 50])
    backoff = NgramBackoff((1, 3), granularity=4)
    evidence = backoff.evidence(tokens, documents)
    stats = logit_stats(torch.randn(50, 11), tokens, evidence.top)
    rows = (stats.target, stats.candidates, *evidence[1:4])
    return {
        "evidence": (tokens, documents, [1, 3], 4, False),
        "mix": (*rows, backoff.table),
        "mix_online": (*rows, evidence.group_starts, *backoff.learning_state, 2e-3),
    }


@pytest.mark.parametrize("name", ["evidence", "mix", "mix_online"])
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.pgolf, f"ngram_{name}").default, example_arguments()[name])


def test_whole_graph_with_any_length():
    backoff = NgramBackoff((1, 2), table=some_table(2))

    def mixed(logits, tokens):
        evidence = backoff.evidence(tokens)
        return backoff.mix(logit_stats(logits, tokens, evidence.top), evidence).nll.mean()

    compiled = torch.compile(mixed, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (40, 57):
        tokens = repeating_tokens(count, 9)
        logits = torch.randn(count, 9)
        assert_close(compiled(logits, tokens), mixed(logits, tokens), 1e-9)


def test_launches():
    for last in (0, 1, 4, 6, 16):
        tiles = launch_evidence(last).tiles
        assert tiles["BO"] > last and tiles["BO"] * tiles["BD"] == 32 and launch_evidence(last).num_warps == 1
    assert launch_mix().tiles["BN"] >= 32 * launch_mix().num_warps


def test_traffic():
    assert traffic_mix(100, 6)[0] == 100 * (6 * 13 + 12)
    assert traffic_evidence(100, 6, 6)[0] > 100 * 7 * 128


def test_bad_arguments_are_explained():
    logits, tokens = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    for message, arguments in {
        "1 to 16 orders": {"local": ()},
        "from 0 to 16": {"local": (1, 17)},
        "must rise": {"local": (2, 1)},
        "granularity is 0": {"granularity": 0},
        "the table is": {"table": torch.zeros(3, 9, 33)},
    }.items():
        with pytest.raises(ValueError, match=message):
            NgramBackoff(**arguments)
    backoff = NgramBackoff((1,))
    with pytest.raises(ValueError, match="rise from 0 to 4"):
        backoff.evidence(tokens, torch.tensor([0, 2, 2, 4]))
    with pytest.raises(ValueError, match="they must be integers"):
        backoff.evidence(logits)
    with pytest.raises(ValueError, match="must lie in 0"):
        backoff.evidence(tokens - 1)
    with pytest.raises(ValueError, match="pass evidence.top"):
        backoff.mix(logit_stats(logits, tokens), backoff.evidence(tokens))
    with pytest.raises(ValueError, match="must predict each token"):
        backoff.stream(5, learn=True).observe(1)
