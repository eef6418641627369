import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.evaluation.stream import Ledger, ScoredStream, StreamError


def stream_of(count=11):
    return ScoredStream(np.arange(100, 100 + count, dtype=np.uint16))


def test_the_regular_order():
    stream = stream_of()
    opened = stream.open(4)
    assert opened.inputs(0, 4).tolist() == [100, 101, 102, 103]
    assert opened.targets(2, 4).tolist() == [103, 104]
    stream.commit({"a": np.ones(4)})
    assert stream.learn(0, 4).tolist() == [100, 101, 102, 103, 104]
    stream.open(10)
    stream.commit({"a": np.full(6, 2.0)})
    assert stream.ledger.finished()["a"].tolist() == [1.0] * 4 + [2.0] * 6
    assert [event[0] for event in stream.ledger.events] == ["commit", "learn", "commit"]


def test_learning_first_is_refused():
    stream = stream_of()
    stream.open(4)
    with pytest.raises(StreamError, match="cannot be learnt from"):
        stream.learn(0, 4)
    stream.commit({"a": np.ones(4)})
    with pytest.raises(StreamError, match="cannot be learnt from"):
        stream.learn(0, 5)


def test_result_ahead_is_refused():
    stream = stream_of()
    opened = stream.open(4)
    for read in (opened.inputs, opened.targets):
        with pytest.raises(StreamError):
            read(2, 5)
    with pytest.raises(StreamError, match="still open"):
        stream.open(8)


def test_a_span_kept_after_its_commit_shows_nothing():
    stream = stream_of()
    opened = stream.open(4)
    stream.commit({"a": np.ones(4)})
    with pytest.raises(StreamError):
        opened.inputs(0, 4)


def test_scoring_twice_is_refused():
    stream = stream_of()
    stream.open(4)
    stream.commit({"a": np.ones(4)})
    with pytest.raises(StreamError, match="nothing is open"):
        stream.commit({"a": np.ones(4)})
    with pytest.raises(StreamError, match="had a score already"):
        stream.ledger.record(3, 5, {"a": np.ones(2)})


@pytest.mark.parametrize(
    "scores, complaint",
    [
        ({}, "without a score"),
        ({"a": np.ones(3)}, "scores for targets"),
        ({"a": np.array([1, np.nan, 1, 1])}, "not a number"),
    ],
)
def test_scores_that_cannot_be_committed(scores, complaint):
    stream = stream_of()
    stream.open(4)
    with pytest.raises(StreamError, match=complaint):
        stream.commit(scores)


def test_results_cannot_change_along_the_stream():
    stream = stream_of()
    stream.open(4)
    stream.commit({"a": np.ones(4)})
    stream.open(6)
    with pytest.raises(StreamError, match="predictors changed"):
        stream.commit({"a": np.ones(2), "b": np.ones(2)})


def test_an_unfinished_ledger_says_what_is_missing():
    stream = stream_of()
    stream.open(4)
    stream.commit({"a": np.ones(4)})
    with pytest.raises(StreamError, match="6 of 10 targets have no score"):
        stream.ledger.finished()
    with pytest.raises(StreamError, match="none of 5"):
        Ledger(5).finished()


def test_the_tokens_cannot_be_changed_or_reached():
    tokens = np.arange(11, dtype=np.uint16)
    stream = ScoredStream(tokens)
    tokens[:] = 0
    view = stream.open(10).inputs(0, 10)
    assert view.tolist() == list(range(10))
    with pytest.raises(ValueError):
        view[0] = 1
    assert not [name for name, value in vars(stream).items() if isinstance(value, np.ndarray) and "__" not in name]


def test_documents_are_streams_of_their_own():
    stream = stream_of()
    first, second = stream.split([4])
    opened = second.open(10)
    with pytest.raises(StreamError):
        opened.inputs(3, 10)
    second.commit({"a": np.full(6, 2.0)})
    with pytest.raises(StreamError):
        first.learn(0, 1)
    with pytest.raises(StreamError):
        first.open(5)
    first.open(4)
    first.commit({"a": np.full(4, 1.0)})
    assert stream.ledger.finished()["a"].tolist() == [1.0] * 4 + [2.0] * 6
    with pytest.raises(StreamError, match="cannot open"):
        stream.open(10)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.lists(st.tuples(st.sampled_from(["open", "commit", "learn"]), st.integers(0, 60)), max_size=40))
def test_no_sequence_of_calls_learns_what_is_not_scored(count, calls):
    stream = ScoredStream(np.arange(count))
    final = 0
    opened_to = 0
    for kind, number in calls:
        try:
            if kind == "open":
                stream.open(number)
                opened_to = number
            elif kind == "commit":
                stream.commit({"a": np.ones(opened_to - final)})
                final = opened_to
            else:
                assert max(stream.learn(0, number)) <= final
        except StreamError:
            continue
    assert stream.cursor == final
