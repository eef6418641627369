import pytest

from pgolf.config import TrainingSettings
from pgolf.training.schedule import multiplier, muon_momentum


@pytest.mark.parametrize(
    ("step", "elapsed", "expected"),
    [
        (0, 0.0, 1.0),
        (1000, 100.0, 1.0),  # 0.1 s a step: the last 350 of 600 s fall
        (2500, 250.0, 1.0),
        (4000, 425.0, (600 - 425) / (3500 * 425 / 4000)),
        (5900, 590.0, 10 / 350),
        (6100, 610.0, 0.0),
        (100, 100.0, 500 / 3500),  # too slow for the fall to fit: it begins below 1
    ],
)
def test_by_the_clock_the_fall_lasts_average_steps(step, elapsed, expected):
    settings = TrainingSettings(warmdown_steps=3500)
    assert multiplier(settings, step=step, elapsed=elapsed, limit=600.0) == pytest.approx(expected)


@pytest.mark.parametrize(("elapsed", "expected"), [(0, 1), (29, 1), (45, 0.5), (60, 0), (61, 0)])
def test_by_the_clock_the_fall_can_be_a_share(elapsed, expected):
    settings = TrainingSettings(warmdown_share=0.5, warmdown_steps=3500)
    assert multiplier(settings, step=10, elapsed=elapsed, limit=60.0) == pytest.approx(expected)


def test_the_fall_ends_at_the_floor():
    settings = TrainingSettings(steps=100, warmdown_share=0.5, lr_floor=0.1)
    values = [multiplier(settings, step=step, elapsed=0, limit=1) for step in (0, 50, 75, 94, 95, 99)]
    assert values == pytest.approx([1, 1, 0.5, 0.12, 0.1, 0.1])


def test_with_fixed_steps_the_clock_does_not_matter():
    settings = TrainingSettings(steps=100, warmdown_share=0.25)
    values = [multiplier(settings, step=step, elapsed=1e9, limit=1.0) for step in (0, 74, 75, 76, 99)]
    assert values == pytest.approx([1, 1, 1, 0.96, 0.04])


def test_with_fixed_steps_the_fall_is_no_longer_than_the_run():
    long = TrainingSettings(steps=50, warmdown_steps=3500)
    short = TrainingSettings(steps=50, warmdown_steps=10)
    assert [multiplier(long, step=s, elapsed=0, limit=1) for s in (0, 25)] == [1.0, 0.5]
    assert [multiplier(short, step=s, elapsed=0, limit=1) for s in (39, 40, 45)] == [1.0, 1.0, 0.5]


def test_no_fall():
    settings = TrainingSettings(steps=10, warmdown_steps=0)
    assert multiplier(settings, step=9, elapsed=0.0, limit=1.0) == 1.0


def test_momentum_ramps_and_stays():
    settings = TrainingSettings(muon_momentum_start=0.92, muon_momentum=0.99, muon_momentum_steps=1500)
    assert [muon_momentum(settings, s) for s in (0, 750, 1500, 9999)] == pytest.approx([0.92, 0.955, 0.99, 0.99])
    assert muon_momentum(TrainingSettings(muon_momentum_steps=0), 0) == 0.99
