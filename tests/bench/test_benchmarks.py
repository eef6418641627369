"""Every benchmark at its full size, on tensors without memory: shapes fit, and peers return what ours does."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.benchmarks import BENCHMARKS, BOTH, FORWARD, Place, attention, disagreement, results_of
from bench.benchmarks.attention import packed_documents, visible_pairs
from pgolf.kernels.compile import OPERATORS, cases


class FullSize(Place):
    """A GPU, as far as a benchmark asks. Its tensors are said to be on a CPU, where autograd needs no streams."""

    on_gpu = True


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    # FlexAttention has no backward pass on a CPU
    flex = lambda q, bounds: lambda q, k, v: attention.attention_reference.exclude(q * 1.0, v) + 0 * k.sum()
    monkeypatch.setattr(attention, "flex_attention", flex)


@pytest.mark.parametrize("entry", BENCHMARKS, ids=lambda entry: entry.name)
def test_full_size(entry, no_compiler):
    for form in entry.forms:
        with FakeTensorMode(allow_non_fake_inputs=True):
            benchmark = entry.build(FullSize("cpu", "full"), form, *entry.shapes["full"])
            found = [(tensor.shape, tensor.dtype.is_floating_point) for tensor in results_of(benchmark.ours())]
            for name, peer in benchmark.peers.items():
                if name.endswith("in Python"):  # it looks at every number, and there are none
                    continue
                assert [(tensor.shape, tensor.dtype.is_floating_point) for tensor in results_of(peer())] == found, name
        assert benchmark.peers and set(benchmark.min_speedup) <= set(benchmark.peers) and benchmark.min_speedup
        assert benchmark.work[0] > 0 and benchmark.per_call[0] > 0
        if form == BOTH:
            forward = entry_work(entry)
            assert benchmark.work[0] > 1.5 * forward[0] and benchmark.work[1] > 1.3 * forward[1]


@pytest.mark.parametrize("entry", [entry for entry in BENCHMARKS if "cpu" in entry.shapes], ids=lambda entry: entry.name)
def test_a_gate_on_a_cpu_can_fail(entry):
    """One that asks for less than 0.8 of a peer's speed is none."""
    benchmark = entry.build(Place("cpu", "tiny"), entry.forms[0], *entry.shapes["tiny"])
    assert all(speedup >= 0.8 for speedup in benchmark.min_speedup.values())


def entry_work(entry):
    with FakeTensorMode(allow_non_fake_inputs=True):
        return entry.build(FullSize("cpu", "full"), FORWARD, *entry.shapes["full"]).work


def test_floors_are_those_of_the_kernels(no_compiler):
    """Where an operator is one kernel, the benchmark's bytes are the ones that its compile table states for the same shape."""
    stated = {case.name: case for operator in OPERATORS for case in cases(operator, 90)}
    for entry, case in (("XSA alone", "xsa forward d=64 bf16"), ("attention with XSA", "forward d=64 xsa bf16")):
        assert entry_work(next(e for e in BENCHMARKS if e.name == entry)) == (stated[case].bytes, stated[case].flops)


def test_disagreement_is_relative_and_infinite_for_nan():
    one = torch.ones(100)
    assert disagreement(one, one) == 0
    assert disagreement((one * 1e6, one * 1.01), (one * 1e6, one)) == pytest.approx(0.01, rel=1e-3)
    assert disagreement(one * float("nan"), one) == float("inf")
    with pytest.raises(ValueError):
        disagreement((one,), (one, one))


def test_documents_fill_their_row():
    bounds = packed_documents(4, 128)
    assert bounds[0] == 0 and bounds[-1] == 512 and all(b > a for a, b in zip(bounds, bounds[1:], strict=False))
    assert visible_pairs([0, 3, 4]) == 6 + 1
