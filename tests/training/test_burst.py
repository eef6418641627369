"""The last steps once more, inside the clock."""

import pytest

from pgolf.budget import Budget
from pgolf.config import Settings
from tests.training.test_loop import FakeTime, SlowStream
from tests.training.tiny import Stream, losses, run, tiny


def read(stream: Stream) -> list[int]:
    return [step for step, micro in stream.asked if micro == 0]


def test_the_burst_reads_the_last_steps_again_at_a_tenth_of_the_rate(tmp_path):
    settings = tiny(steps=20, warmdown_share=1.0, burst_epochs=2)
    stream = Stream(settings)
    result, events = run(settings, tmp_path, stream)
    assert result.steps == 20
    assert read(stream) == [*range(12), *range(8, 12), *range(8, 12)]
    rates = [event["multiplier"] for event in events if event["kind"] == "step"]
    assert rates == pytest.approx([1 - n / 12 for n in range(12)] + [0.1] * 8)
    assert {"kind": "phase", "step": 12, "name": "burst: the last 4 steps again"} in events
    # read again, text is known better
    curve = losses(events)
    assert sum(curve[16:20]) < sum(curve[8:12])


def test_before_the_burst_a_shorter_run_is_the_same_run(tmp_path):
    _, events = run(tiny(steps=20, warmdown_share=1.0, burst_epochs=2), tmp_path / "a")
    _, shorter = run(tiny(steps=12, warmdown_share=1.0), tmp_path / "b")
    assert losses(events)[:12] == losses(shorter)


def test_rounding_stays_hard_and_averages_go_on(tmp_path):
    """The rates rise again to a tenth, but the schedule that rounding and snapshots follow has ended."""
    soft = {"qat_threshold": 0.9, "qat_clip": 7, "qat_soft_round": True, "qat_banks": True}
    settings = tiny(steps=20, warmdown_share=1.0, burst_epochs=2, export="swa", swa_every=1, swa_threshold=0.09, **soft)
    seen = []

    class Watching(Stream):
        def batch(self, step, micro):
            if micro == 0:
                seen.append(step)
            return super().batch(step, micro)

    from pgolf.model.rounding import FakeRounding

    sharpness = []
    real = FakeRounding.harden

    def harden(self, multiplier, threshold):
        real(self, multiplier, threshold)
        sharpness.append(float(self.sharpness))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeRounding, "harden", harden)
        result, events = run(settings, tmp_path, Watching(settings))
    assert sharpness[-8:] == [16.0] * 8 and sharpness[0] < 3
    first = next(event for event in events if event.get("name") == "averaging (swa)")
    assert result.weights == "swa" and first["step"] == 12


def test_the_clock_holds_the_burst(tmp_path):
    time = FakeTime()
    settings: Settings = tiny(steps=0, seconds=30.0, warmdown_share=0.5, burst_epochs=2)
    stream = SlowStream(settings, time, 0.25)
    result, events = run(settings, tmp_path, stream, budget=Budget(30.0, now=time))
    assert result.seconds["total"] == pytest.approx(30) and result.steps == 30
    assert result.seconds["parts"]["burst"] == pytest.approx(6)
    assert read(stream)[24:] == 2 * [21, 22, 23]
    rates = [event["multiplier"] for event in events if event["kind"] == "step"]
    assert rates[23] < 0.1 and rates[24:] == [0.1] * 6
