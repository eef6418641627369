import pytest

from pgolf.budget import Budget, Clock


class FakeTime:
    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


@pytest.fixture
def time():
    return FakeTime()


def test_a_clock_counts_only_while_it_runs(time):
    clock = Clock(time)
    time.time += 3
    clock.pause()
    time.time += 10
    assert clock.elapsed() == 3 and not clock.running
    clock.pause()
    clock.resume()
    clock.resume()
    time.time += 2
    assert clock.elapsed() == 5


def test_untimed_blocks_nest_and_survive_errors(time):
    clock = Clock(time)
    with pytest.raises(KeyError), clock.untimed():
        time.time += 1
        with clock.untimed():
            time.time += 1
        time.time += 1
        raise KeyError
    time.time += 4
    assert clock.elapsed() == 4


def test_a_paused_clock_stays_paused_after_an_untimed_block(time):
    clock = Clock(time)
    clock.pause()
    with clock.untimed():
        time.time += 1
    time.time += 1
    assert clock.elapsed() == 0


def test_a_clock_goes_on_from_anothers_state(time):
    clock = Clock(time)
    time.time += 7
    later = FakeTime()
    other = Clock(later)
    later.time += 100
    other.restore(clock.state())
    later.time += 1.5
    assert other.elapsed() == 8.5


def test_what_is_left_excludes_the_reserve(time):
    budget = Budget(600, reserve=18, now=time)
    time.time += 500
    assert budget.left() == 82
    time.time += 132
    assert budget.left() == -50


def test_parts_say_where_the_time_went(time):
    budget = Budget(60, now=time)
    for seconds in (5, 2):
        with budget.part("steps"):
            time.time += seconds
            with budget.outside("validation"):
                time.time += 30
    time.time += 1
    with budget.outside("warm-up"):
        time.time += 9
    assert budget.report() == {
        "total": 8,
        "parts": {"steps": 7, "other": 1},
        "untimed": {"validation": 60, "warm-up": 9},
    }
    assert budget.left() == 52


def test_a_budget_goes_on_with_its_parts(time):
    budget = Budget(60, now=time)
    with budget.part("steps"):
        time.time += 5
    with budget.outside("validation"):
        time.time += 3
    again = Budget(60, now=FakeTime())
    again.restore(budget.state())
    assert again.report() == budget.report()
    assert again.left() == 55


@pytest.mark.parametrize("part", [None, [], {}, "x"])
def test_what_a_budget_goes_on_with_is_checked(time, part):
    with pytest.raises((TypeError, ValueError)):
        Budget(60, now=time).restore({"elapsed": 1.0, "parts": {"steps": part}, "untimed_parts": {}})
