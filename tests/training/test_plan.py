"""The parts of a run: when they begin and end, and what each step of them is."""

import pytest

from pgolf.config import TrainingSettings
from pgolf.training.plan import BURST, NETWORK, TEACHER, TrainingPlan


def walk(options, seconds=0.0, pace=1.0):
    """Every step of a run whose steps all take `pace` seconds: its part and its planned."""
    plan, step, steps = TrainingPlan(options, seconds), 0, []
    while True:
        # as in a run: nobody knows the pace of a part before its first step
        known = pace if step > plan.phase.step else 0.0
        if not plan.over(step, step * pace, known):
            steps.append((plan.phase.name, plan.step(step, step * pace, known)))
            step += 1
        elif plan.is_last:
            return steps
        else:
            plan.begin_next(step, step * pace, known)


def parts(steps):
    return {name: [planned for part, planned in steps if part == name] for name in dict.fromkeys(part for part, _ in steps)}


def test_without_further_parts_there_is_the_schedule_alone():
    steps = walk(TrainingSettings(steps=10, warmdown_share=0.5))
    assert [planned.batch for _, planned in steps] == [planned.age for _, planned in steps] == list(range(10))
    assert [planned.rate for _, planned in steps] == pytest.approx([1.0] * 5 + [1.0, 0.8, 0.6, 0.4, 0.2])
    assert {name for name, _ in steps} == {NETWORK}


def test_a_teacher_has_a_schedule_of_its_own_and_the_network_reads_on():
    found = parts(walk(TrainingSettings(steps=20, warmdown_share=0.5, distillation_share=0.4)))
    assert [len(found[name]) for name in (TEACHER, NETWORK)] == [8, 12]
    assert [planned.rate for planned in found[TEACHER]] == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert [planned.age for planned in found[NETWORK]] == list(range(12))
    assert [planned.batch for planned in found[NETWORK]] == list(range(8, 20))
    assert found[NETWORK][6].rate == 1 and found[NETWORK][-1].rate == pytest.approx(1 / 6)


def test_a_burst_repeats_what_came_below_a_fifth_of_the_rate():
    found = parts(walk(TrainingSettings(steps=100, warmdown_share=0.5, burst_epochs=2)))
    assert [len(found[name]) for name in (NETWORK, BURST)] == [80, 20]
    assert [planned.batch for planned in found[BURST]] == 2 * list(range(70, 80))
    assert {(planned.rate, planned.schedule) for planned in found[BURST]} == {(0.1, 0.0)}
    assert [planned.age for planned in found[BURST]] == list(range(80, 100))
    # the schedule falls to its end over what the burst has left of it
    assert found[NETWORK][-1].rate == pytest.approx(1 / 40)


def test_a_burst_repeats_a_hundred_steps_at_most():
    found = parts(walk(TrainingSettings(steps=7000, warmdown_steps=3500, burst_epochs=2)))
    assert len(found[NETWORK]) == 6800 and len(found[BURST]) == 200
    assert found[BURST][0].batch == 6700


def test_a_run_too_short_for_a_burst_has_none():
    steps = walk(TrainingSettings(steps=8, warmdown_share=0.5, burst_epochs=2))
    assert [name for name, _ in steps] == [NETWORK] * 8


@pytest.mark.parametrize("fall", [{"warmdown_share": 0.5}, {"warmdown_steps": 500}])
def test_by_the_clock_all_parts_together_take_no_more(fall):
    options = TrainingSettings(burst_epochs=2, distillation_share=0.25, **fall)
    found = parts(walk(options, seconds=125.0, pace=0.125))
    replayed = 75 if "warmdown_share" in fall else 100
    assert [len(found[name]) for name in (TEACHER, NETWORK, BURST)] == [250, 750 - 2 * replayed, 2 * replayed]
    assert found[NETWORK][-1].rate < 0.01 and found[TEACHER][-1].rate < 0.01
    first = 1000 - 3 * replayed
    assert [planned.batch for planned in found[BURST]] == 2 * list(range(first, first + replayed))


def test_a_burst_that_the_clock_cuts_short_ends_with_it():
    plan = TrainingPlan(TrainingSettings(burst_epochs=2, warmdown_share=0.5), 100.0)
    plan.begin_next(900, 95.0, 0.1)
    assert not plan.over(920, 99.8, 0.1) and plan.over(920, 99.95, 0.1)


def test_a_plan_goes_on_from_its_state():
    options = TrainingSettings(steps=100, warmdown_share=0.5, burst_epochs=2, distillation_share=0.2)
    plan = TrainingPlan(options, 0.0)
    plan.begin_next(20, 2.0, 0.1)
    plan.begin_next(84, 8.4, 0.1)
    again = TrainingPlan(options, 0.0)
    again.restore(plan.state())
    assert again.begun == plan.begun and again.is_last
    assert again.step(90, 9.0, 0.1) == plan.step(90, 9.0, 0.1)


@pytest.mark.parametrize(
    "state",
    [
        [],
        [{"name": NETWORK, "step": [], "elapsed": 0.0, "replayed": 0}],
        [{"name": BURST, "step": 0, "elapsed": 0.0, "replayed": 0}],
    ],
)
def test_phases_that_are_not_this_runs_are_refused(state):
    plan = TrainingPlan(TrainingSettings(steps=10), 0.0)
    with pytest.raises((ValueError, TypeError)):
        plan.restore(state)
    plan.restore(plan.state())
    assert plan.phase.name == NETWORK
