"""Every operator beside its peers, forward and backward: bench/benchmarks/ says who competes at what."""

import pytest

from bench.benchmarks import BENCHMARKS, Place
from bench.benchmarks.packed import CROSSOVER, crossover_benchmark, crossover_sizes

CASES = [
    pytest.param(entry, form, id=f"{entry.name}, {form}", marks=[] if "cpu" in entry.shapes else [pytest.mark.gpu])
    for entry in BENCHMARKS
    for form in entry.forms
]


@pytest.mark.parametrize("entry, form", CASES)
def test_operator(bench, entry, form):
    shape = entry.shapes[bench.size]
    name = f"{entry.name} [{' x '.join(f'{number:,}' for number in shape)}], {form}"
    bench.hold(name, entry.build(Place(bench.device, bench.size), form, *shape))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", crossover_sizes())
def test_packed_beside_dense(bench, rows):
    """Where packed codes stop paying: a layer of 2,048 x 512 at every number of rows. No gate: the plot is the result."""
    place = Place(bench.device, bench.size)
    benchmark = crossover_benchmark(place, rows if bench.size == "full" else min(rows, 4))
    bench.hold(f"{CROSSOVER}, {rows:,} rows", benchmark)
