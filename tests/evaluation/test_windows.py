import pytest

from pgolf.evaluation.windows import Window, published_tail, sliding_windows

SHAPES = [(1, 8, 8), (7, 8, 2), (8, 8, 2), (9, 8, 3), (64, 16, 16), (65, 16, 16), (100, 16, 5), (101, 16, 16), (33, 8, 1)]


def published_rule(targets, length, stride):
    """The submissions' loop: every start below the end; the first window scores all, others their last `stride`."""
    plan = []
    for start in range(0, targets, stride):
        stop = min(start + length, targets)
        plan.append(Window(start, stop, start if start == 0 else start + max(stop - start - stride, 0)))
    return plan


@pytest.mark.parametrize("targets, length, stride", SHAPES)
def test_every_target_is_scored_once_with_its_context(targets, length, stride):
    plan = sliding_windows(targets, length, stride)
    scored = [t for w in plan for t in range(w.score_from, w.stop)]
    assert scored == list(range(targets))
    for window in plan[1:]:
        assert window.stop - window.start <= length
        assert window.score_from - window.start >= length - stride


@pytest.mark.parametrize("targets, length, stride", SHAPES)
def test_the_published_tail_completes_the_published_rule(targets, length, stride):
    agree, tail = published_tail(targets, length, stride)
    own = [(w.start, t) for w in sliding_windows(targets, length, stride) for t in range(w.score_from, w.stop) if t < agree]
    again = [(w.start, t) for w in tail for t in range(w.score_from, w.stop)]
    expected = [(w.start, t) for w in published_rule(targets, length, stride) for t in range(w.score_from, w.stop)]
    assert own + again == expected


def test_the_size_of_the_challenge():
    assert len(published_rule(62_021_632 // 64, 2048 // 64, 1)) == 969_088
    agree, tail = published_tail(62_021_632, 2048, 64)
    assert agree == 62_021_632 and len(tail) == 31
