"""What a user waits for: the quick run from start to end, the loader, and the import."""

import bz2
import lzma
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from bench.benchmarks import Benchmark
from bench.budgets import bills_of_run
from bench.results import Gate, Line, Peer
from bench.timing import Spread
from pgolf.data import SequentialLoader, open_shard, write_shard
from pgolf.evaluation.codec.codec import Codec

IMPORT_SECONDS = 0.150


def test_quick_run_fits_its_budgets(bench, quick_run):
    """The quick preset as a user starts it, on its own clocks: nothing is extrapolated."""
    summary = quick_run.read_summary()
    bills = bills_of_run(summary, "quick")
    gates = [bench.bill(bill) for bill in bills]
    assert all(bill.total > 0 and len(bill.parts) > 1 for bill in bills)
    if bench.tiny:
        return
    train, main = summary.train, summary.main_score
    figures = {
        "training tokens/s": train.tokens / train.parts["steps"],
        "steps": train.steps,
        "bits per byte": main.bpb,
        "artifact bytes": summary.artifact.total_bytes,
        "training": f"{bills[0].total:.1f} s of {bills[0].limit:g} s",
        "scoring": f"{bills[1].total:.1f} s of {bills[1].limit:g} s",
    }
    seconds = sum(bill.total for bill in bills)
    bench.keep(Line("quick run, both clocks", Spread.of([seconds]), figures=figures, gates=gates))


def test_loader(bench, tmp_path):
    """Batches as training asks for them, beside reading the same tokens from a mapped file in one slice."""
    # an odd number of sequences is read in one stretch
    rows, length = (5, 16) if bench.tiny else (49, 2048)
    tokens = np.random.default_rng(0).integers(0, 1024, 4 * rows * length + 8, dtype=np.uint16)
    write_shard(tmp_path / "x_train_000000.bin", tokens)
    options = {"batch_tokens": rows * length, "sequence_length": length, "accumulation": 1, "world_size": 1, "rank": 0}
    loader = SequentialLoader([tmp_path / "x_train_000000.bin"], seed=0, vocab_size=1024, **options)
    mapped = open_shard(tmp_path / "x_train_000000.bin")

    def plain():
        span = torch.from_numpy(mapped[: rows * length + 1].astype(np.int64))
        return span[:-1].view(rows, length).clone(), span[1:].view(rows, length).clone()

    peer = "one slice of a mapped file"
    ours, min_speedup = lambda: loader.batch(0, 0), {peer: 0.8}
    bench.hold(
        "loader", Benchmark(ours, {peer: plain}, per_call=(rows * length, "tokens/s"), min_speedup=min_speedup, tolerance=0.0)
    )


def test_import(bench):
    """`import pgolf` takes under 150 ms and brings no torch with it: what is beyond an interpreter that imports nothing."""
    root = Path(__file__).parent.parent

    def run(program: str) -> float:
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return time.perf_counter() - begun

    bring = "import sys, pgolf; assert 'torch' not in sys.modules, 'import pgolf has imported torch'"
    pairs = [(run(bring), run("import sys")) for _ in range(1 if bench.tiny else 15)]
    if bench.tiny:
        return
    beyond = Spread.of([own - nothing for own, nothing in pairs])
    gate = Gate(f"{1e3 * IMPORT_SECONDS:.0f} ms", beyond.median <= IMPORT_SECONDS, f"{1e3 * beyond.median:.0f} ms")
    bench.keep(Line("import pgolf", beyond, gates=[gate]))


def test_codec(bench, quick_run):
    """A file that training never saw, through the quick run's artifact and back; bytes beside general compressors, which
    need no artifact: it is not counted here."""
    root = Path(__file__).parent.parent
    data = (root / "README.md").read_bytes()[: 300 if bench.tiny else 6000]
    codec = Codec(quick_run.artifact)
    packed, took = codec.compress(data)
    begun = time.perf_counter()
    assert codec.decompress(packed, "README.md") == data
    back = time.perf_counter() - begun
    if bench.tiny:
        return
    sizes = {"xz -9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)), "bzip2 -9": len(bz2.compress(data, 9))}
    peers = {name: Peer(size, Spread.of([size / len(packed)])) for name, size in sizes.items()}
    ours = len(packed)
    gates = [Gate(f"fewer than {name}", ours < size, f"{1 - ours / size:.1%} fewer") for name, size in sizes.items()]
    figures = {
        "tokens": took["tokens"],
        "compressing, tokens/s": took["tokens"] / took["seconds"],
        "decompressing, tokens/s": took["tokens"] / back,
        "bits per byte": 8 * len(packed) / len(data),
    }
    size = Spread.of([len(packed)])
    bench.keep(Line(f"compressing {len(data):,} bytes of the README", size, peers, figures=figures, gates=gates, unit="B"))
