"""The scorer's clock, on machines made for the purpose: they count windows and training as time, and may turn slow."""

from contextlib import nullcontext

import numpy as np
import pytest

from pgolf.budget import Budget, Clock
from pgolf.evaluation.planner import Decision, OutOfTime, PlanError, Planner, Rate, Steady, ladder
from pgolf.evaluation.predictors.ngram_backoff import NgramBackoffPredictor
from pgolf.evaluation.predictors.temperature import Plain
from pgolf.evaluation.scoring_pass import ScoringPass
from pgolf.evaluation.windows import sliding_windows
from tests.evaluation.toy import BOS, Toy, text

WINDOW, STRIDE, CHUNK, COUNT, EPOCHS = 64, 4, 500, 6_050, 3
WINDOW_SECONDS, EPOCH_SECONDS = 0.01, 0.5


class Machine:
    """Time passes by work alone; from `slow_from` on it takes `factor` times as long."""

    def __init__(self, slow_from=1e9, factor=3.0):
        self.time, self.slow_from, self.factor = 0.0, slow_from, factor

    def __call__(self):
        return self.time

    def work(self, seconds):
        self.time += seconds * (self.factor if self.time >= self.slow_from else 1.0)


class FakeAdapter:
    chunk_tokens = CHUNK

    def __init__(self, machine):
        self.machine = machine
        self.model = Toy(on_forward=lambda windows: machine.work(WINDOW_SECONDS * windows))
        self.calls = []

    def scoring_model(self):
        return nullcontext(self.model)

    def learn(self, tokens, index, total, epochs):
        assert 1 <= epochs <= EPOCHS and total == -(-COUNT // CHUNK) and index < total - 1
        assert np.array_equal(tokens, text(COUNT)[index * CHUNK : (index + 1) * CHUNK + 1])
        self.calls.append((index, epochs))
        self.machine.work(EPOCH_SECONDS * epochs)
        self.model.out = self.model.out * (1 + 0.01 * epochs)
        return epochs


def run(limit, machine, replay=None):
    """The first pass and the main pass, as `evaluate` does them; what was scored, the planner, the adapter."""
    tokens = text(COUNT)
    budget = Budget(limit, now=machine)
    adapter = FakeAdapter(machine)
    options = dict(bos=BOS, window=WINDOW, batch=16)
    steady = Steady(budget.clock, COUNT, WINDOW)
    first = ScoringPass(adapter.model, tokens, [Plain("plain")], **options).run(steady)["plain"]
    planner = Planner(
        budget, targets=COUNT, window=WINDOW, stride=STRIDE, epochs=EPOCHS, seconds_per_window=steady.forward(), replay=replay
    )
    predictors = [Plain("adapted"), NgramBackoffPredictor(24, 3, 8)]
    nats = ScoringPass(adapter.model, tokens, predictors, adapter=adapter, fallback_nats=first, **options).run(planner)
    return nats, planner, adapter


FULL = WINDOW_SECONDS * COUNT * (1 / STRIDE + 1 / WINDOW) + EPOCH_SECONDS * EPOCHS * (COUNT // CHUNK)


def test_with_time_enough_nothing_is_given_up():
    machine = Machine()
    nats, planner, adapter = run(2 * FULL, machine)
    assert machine.time == pytest.approx(FULL, rel=0.02)
    assert planner.gave_up() == {}
    assert adapter.calls == [(i, EPOCHS) for i in range(COUNT // CHUNK)]
    assert {tuple(span[1:]) for span in planner.spans} == {(STRIDE, EPOCHS)}
    assert all(np.isfinite(column).all() and column.shape == (COUNT,) for column in nats.values())


@pytest.mark.parametrize("slow_from", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
@pytest.mark.parametrize("room", [1.05, 1.5])
def test_a_machine_that_turns_three_times_slower_still_ends_in_time(slow_from, room):
    limit = room * FULL
    machine = Machine(slow_from * limit)
    nats, planner, adapter = run(limit, machine)
    assert machine.time <= limit
    assert all(np.isfinite(column).all() and column.shape == (COUNT,) for column in nats.values())
    # what there was time for was used: at least half the clock, and nothing was given up before it had to be
    assert machine.time >= 0.5 * limit
    if slow_from * room <= 0.8:
        assert planner.gave_up()
    if slow_from >= 0.3:
        assert planner.spans[0][1:] == [STRIDE, EPOCHS]


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25, 0.12])
def test_a_short_clock_is_kept(share):
    machine = Machine()
    nats, planner, adapter = run(share * FULL, machine)
    assert machine.time <= share * FULL
    assert all(np.isfinite(column).all() for column in nats.values())
    given = planner.gave_up()
    assert given and all(0 < share <= 1 for name, share in given.items() if name != "documents_without_adapters")


def test_mild_strides_go_before_epochs_and_epochs_before_context():
    assert ladder(Decision(4, 2), 64) == [
        Decision(4, 2), Decision(8, 2), Decision(8, 1), Decision(8, 0), Decision(16, 0), Decision(32, 0), Decision(64, 0)
    ]  # fmt: skip
    assert ladder(Decision(48, 0), 64) == [Decision(48, 0), Decision(64, 0)]
    assert ladder(Decision(64, 0), 64) == [Decision(64, 0)]


def test_without_any_time_the_first_pass_stands():
    machine = Machine(factor=1)
    nats, planner, adapter = run(0.0, machine)
    assert planner.spans == [[0, 0, 0]] and not adapter.calls
    assert np.array_equal(nats["adapted"], nats["ngram_backoff"]) and np.isfinite(nats["ngram_backoff"]).all()
    assert planner.gave_up() == {"adaptation": 1.0, "first_pass_stands": 1.0}


def test_a_plan_is_replayed_to_the_bit_on_any_machine():
    nats, planner, adapter = run(1.2 * FULL, Machine(0.4 * FULL))
    record = planner.record()
    assert planner.gave_up() and len({tuple(span[1:]) for span in record["spans"]}) > 1
    other = Machine(factor=50, slow_from=0)
    again, replayed, repeated = run(1.2 * FULL, other, replay=record)
    assert all(np.array_equal(nats[name], again[name]) for name in nats)
    assert repeated.calls == adapter.calls and replayed.record() == record and replayed.gave_up() == planner.gave_up()


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"targets": 5}, "was made for 5 targets"),
        ({"window": 5}, "was made for 5 window"),
        ({"wanted": [4, 9]}, "was made for stride and epochs"),
        ({"spans": [[0, 4, 3], [77, 4, 3]]}, "no decision for the span that begins"),
        ({"spans": []}, "no decision for the span that begins at target 0"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change, complaint):
    _, planner, _ = run(2 * FULL, Machine())
    with pytest.raises(PlanError, match=complaint):
        run(2 * FULL, Machine(), replay=planner.record() | change)


@pytest.mark.parametrize("plan", [[], {"targets": COUNT}, "x"])
def test_what_is_no_plan_is_refused(plan):
    with pytest.raises(PlanError, match="is no record"):
        run(FULL, Machine(), replay=plan)


def test_strides_that_change_leave_no_target_out():
    """From 4 to 64 on the way: each target is scored once, in windows that are as long as they can be."""
    tokens, machine = text(1000), Machine()

    class Changing(Steady):
        strides = iter([4, 4, 16, 64, 4, 8, 64, 32, 4, 4, 4, 4])

        def next(self, start, stop):
            self.wanted = Decision(next(self.strides), 0)
            return self.wanted

    model = Toy()
    one = ScoringPass(model, tokens, [Plain("plain")], bos=BOS, window=WINDOW, batch=8, chunk_tokens=100)
    nats = one.run(Changing(Clock(machine), 1000, 4))["plain"]
    fixed = ScoringPass(model, tokens, [Plain("plain")], bos=BOS, window=WINDOW, batch=8, chunk_tokens=100)
    # this model looks one token further back, so only the first targets of windows without context differ
    same = np.isclose(nats, fixed.run(Steady(Clock(machine), 1000, 4))["plain"])
    assert 0 < (~same).sum() <= 6 and np.isfinite(nats).all()


@pytest.mark.parametrize("count, learnt", [(400, [0, 1, 2]), (401, [0, 1, 2, 3]), (99, []), (100, [])])
def test_every_chunk_but_the_last_teaches(count, learnt):
    class Recorder(FakeAdapter):
        chunk_tokens = 100

        def learn(self, tokens, index, total, epochs):
            assert total == -(-count // 100) and len(tokens) == 101
            self.calls.append(index)
            return 1

    machine = Machine()
    adapter = Recorder(machine)
    planner = Planner(Budget(1e6, now=machine), targets=count, window=64, stride=4, epochs=1)
    options = dict(bos=BOS, window=64, batch=8)
    ScoringPass(adapter.model, text(count), [Plain("adapted")], adapter=adapter, **options).run(planner)
    assert adapter.calls == learnt


def test_one_hiccup_is_not_taken_for_a_slow_machine():
    rate = Rate(1.0)
    rate.update(30.0, 3.0)
    assert rate() == 1.0
    rate.update(8.0, 2.0)
    assert rate() == 4.0
    rate.update(5.0, 0)
    assert rate() == 4.0


def test_documents_lose_their_adapters_when_time_runs_out():
    machine = Machine()
    budget = Budget(100.0, now=machine)
    planner = Planner(budget, targets=1000, window=64, stride=4, seconds_per_window=0.64)
    given = []
    for start in range(0, 1000, 100):
        adapted = planner.adapts([start, start + 50], 100, 900 - start)
        given.append(adapted)
        machine.work(20.0 if adapted else 1.0)
        planner.documents_done(100, 20.0 if adapted else 1.0, adapted)
    assert given[0] and not given[-1] and machine.time <= 100.0
    assert planner.gave_up()["documents_without_adapters"] == 2 * given.count(False)
    replayed = Planner(Budget(0.0, now=machine), targets=1000, window=64, stride=4, replay=planner.record())
    assert [replayed.adapts([s, s + 50], 100, 0) for s in range(0, 1000, 100)] == given


def test_a_pass_that_may_be_left_out_stops_when_it_cannot_end():
    machine = Machine()
    budget = Budget(1.0, now=machine)
    model = Toy(on_forward=lambda windows: machine.work(WINDOW_SECONDS * windows))
    steady = Steady(budget.clock, 6000, STRIDE, first=1e-6, within=budget)
    one = ScoringPass(model, text(6000), [Plain("plain")], bos=BOS, window=WINDOW, batch=8)
    with pytest.raises(OutOfTime):
        one.run(steady)
    assert machine.time <= 2 * 4096 / STRIDE * WINDOW_SECONDS
    planner = Planner(budget, targets=6000, window=64, stride=4, seconds_per_window=WINDOW_SECONDS)
    assert not planner.affords("sliding", 4) and planner.gave_up() == {"results": ["sliding"]}
    assert not sliding_windows(0, 64, 4)


def test_the_clock_is_looked_at_again_before_learning():
    """Scoring a span took far longer than thought: its epochs no longer fit, and the plan says so."""
    machine = Machine()
    planner = Planner(Budget(100.0, now=machine), targets=1000, window=64, stride=4, epochs=3, seconds_per_window=0.001)
    planner.learnt(100, 3, 3.0)
    planner.learnt(100, 3, 3.0)
    assert planner.next(0, 100).epochs == 3
    machine.work(93.5)
    # 6.5 seconds left, of which an epoch may need three
    assert planner.epochs_now(100) == 2 and planner.spans == [[0, 4, 2]]
    machine.work(10.0)
    assert planner.epochs_now(100) == 0 and planner.spans == [[0, 4, 0]]


def test_a_hiccup_is_prepared_for():
    rate = Rate(1.0)
    rate.update(30.0, 3.0)
    assert rate() == 1.0 and rate(worst=True) == 10.0
