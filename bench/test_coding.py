"""Bytes and seconds of the entropy coder beside general compressors, on the codes of a network trained for the purpose.

    pytest bench/test_coding.py --benchmark                          trains the quick preset first
    PGOLF_BENCH_RUN=runs/NAME pytest bench/test_coding.py --benchmark    with the weights of a finished training

Peers that are not installed are named in the table: brotli, constriction (Python), lrzip (program).
"""

import functools
import importlib.util
import lzma
import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from safetensors.torch import load_file

from bench.results import Gate, Line, Peer
from bench.timing import Spread
from pgolf.artifact import coder
from pgolf.artifact.calibration import hessians, training_batches
from pgolf.artifact.weights import round_weights
from pgolf.cli.common import dataset_of
from pgolf.config import read_toml
from pgolf.folder import RunFolder
from pgolf.model import build_model, submission_state

FULL_SIZE = 33_000_000


@pytest.fixture(scope="module")
def run(request) -> RunFolder:
    given = os.environ.get("PGOLF_BENCH_RUN")
    return RunFolder.existing(given) if given else request.getfixturevalue("quick_run")


@pytest.fixture(scope="module", params=["gptq-sdclip", "gptq", "gptq-published"])
def matrices(request, run):
    """Outlines and codes of every large tensor, rounded by GPTQ with inputs from training text."""
    settings = read_toml(run.config)
    model = build_model(settings.model)
    model.load_state_dict(load_file(run.weights))
    shards = dataset_of(settings).train_shards
    inputs = hessians(model, training_batches(shards, 16, settings.training.sequence_length, 4), head=True)
    chosen = {"rounding": request.param, "scale_floor": False}
    if request.param == "gptq-published":
        chosen |= {"matrix_bits": 5, "prune": 0.03}
    artifact = replace(settings.artifact, **chosen)
    weights = round_weights(submission_state(model), artifact, inputs)
    outlines, rounded = weights.coded(artifact)
    return request.param, (outlines, [matrix.codes.numpy() for matrix in rounded])


def zstd_22(matrices) -> int:
    return len(zstandard.ZstdCompressor(level=22).compress(_bytes(matrices)))


def xz_9(matrices) -> int:
    return len(lzma.compress(_bytes(matrices), preset=9 | lzma.PRESET_EXTREME))


def brotli_11(matrices) -> int:
    import brotli

    return len(brotli.compress(_bytes(matrices), quality=11, lgwin=24))


def lrzip_9(matrices) -> int:
    """-T: it compresses, whatever a quick look tells it."""
    with tempfile.TemporaryDirectory() as folder:
        raw, packed = Path(folder) / "codes", Path(folder) / "codes.lrz"
        raw.write_bytes(_bytes(matrices))
        subprocess.run(["lrzip", "-q", "-f", "-z", "-L", "9", "-T", "-o", packed, raw], check=True, capture_output=True)
        return packed.stat().st_size


def constriction_rows(matrices) -> int:
    """A Gaussian with each row's own deviation, which is not even counted."""
    import constriction

    encoder = constriction.stream.queue.RangeEncoder()
    for outline, codes in zip(*matrices, strict=True):
        largest = outline.largest
        family = constriction.stream.model.QuantizedGaussian(-largest, largest)
        deviations = np.repeat(np.maximum(codes.astype(np.float64).std(1), 0.3), codes.shape[1])
        encoder.encode(codes.ravel().astype(np.int32), family, np.zeros(codes.size), deviations)
    return encoder.get_compressed().nbytes


def compressors() -> tuple[dict, dict[str, str]]:
    """Those that are here, and those that are not."""
    by_name = {"zstd -22": zstd_22, "xz -9e": xz_9}
    optional = {"brotli -11": (brotli_11, "brotli"), "constriction, a Gaussian a row": (constriction_rows, "constriction")}
    absent = {}
    for name, (compressor, module) in optional.items():
        if importlib.util.find_spec(module):
            by_name[name] = compressor
        else:
            absent[name] = "not installed"
    if shutil.which("lrzip"):
        by_name["lrzip -z -L 9"] = lrzip_9
    else:
        absent["lrzip -z -L 9"] = "not installed"
    return by_name, absent


def ours(matrices) -> int:
    return len(coder.encode_matrices(*matrices))


def _bytes(matrices) -> bytes:
    return b"".join(codes.tobytes() for codes in matrices[1])


def test_bytes(bench, matrices):
    """Fewer bytes than each of them, or the gate fails."""
    rounding, codes = matrices
    size, count = ours(codes), sum(matrix.size for matrix in codes[1])
    assert 0 < size < count * 1.01
    if bench.tiny:
        return
    present, absent = compressors()
    sizes = {name: compressor(codes) for name, compressor in present.items()}
    peers = {name: Peer(theirs, Spread.of([theirs / size])) for name, theirs in sizes.items()}
    gates = [Gate(f"fewer than {name}", size < theirs, f"{1 - size / theirs:.1%} fewer") for name, theirs in sizes.items()]
    figures = {"codes": count, "bits a code": 8 * size / count}
    bytes_line = Line(f"coding, {rounding}", Spread.of([size]), peers, absent, figures=figures, gates=gates, unit="B")
    # bytes depend on nothing but the code: held against the last committed run like a time
    bytes_line.pace = next(iter(peers.values())).ratio
    bench.keep(bytes_line)


def test_seconds(bench, matrices):
    """How long coding takes, on a quarter of a million codes. xz and brotli are there for scale: they are no yardstick."""
    rounding, codes = matrices
    outlines, parts, total = [], [], 0
    for outline, matrix in zip(*codes, strict=True):
        rows = max(1, min(len(matrix), ((2_000 if bench.tiny else 250_000) - total) // matrix.shape[1]))
        parts.append(matrix[:rows])
        outlines.append(outline._replace(shape=parts[-1].shape, scales=outline.scales[:rows]))
        total += parts[-1].size
        if total >= (2_000 if bench.tiny else 250_000):
            break
    some = outlines, parts
    data = coder.encode_matrices(*some)
    back = coder.decode_matrices(data, outlines)
    assert all(np.array_equal(one, other) for one, other in zip(parts, back, strict=True))
    if rounding != "gptq-sdclip":
        return  # its speed does not depend on how codes came about
    present, absent = compressors()
    peers = {name: functools.partial(present[name], some) for name in ("zstd -22", "xz -9e", "brotli -11") if name in present}
    line = bench.measure(
        "encoding",
        {"ours": lambda: ours(some), **peers},
        min_speedup={"brotli -11" if "brotli -11" in present else "zstd -22": 0.8},
        absent=absent,
        per_call=(total, "weights/s"),
        host=True,
    )
    if line:
        line.figures[f"seconds for {FULL_SIZE:,} weights"] = FULL_SIZE * line.ours.median / total
    bench.keep(line)
    line = bench.measure(
        "decoding",
        {"ours": lambda: coder.decode_matrices(data, outlines), "encoding": lambda: ours(some)},
        min_speedup={"encoding": 0.8},
        per_call=(total, "weights/s"),
        host=True,
    )
    bench.keep(line)
