"""Bytes and seconds of the entropy coder beside general compressors, on the codes of a network trained for the purpose.

    PGOLF_BENCH_RUN=runs/NAME pytest bench/test_coding.py      with the weights of a finished training
    pytest bench/test_coding.py                                trains the quick preset for some steps first

Peers that are not installed are skipped: brotli, constriction (Python), lrzip (program).
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from pgolf.artifact import coder
from pgolf.artifact.calibration import hessians, training_batches
from pgolf.artifact.weights import round_weights
from pgolf.config import read_toml
from pgolf.folder import RunFolder
from pgolf.model import build_model, submission_state
from pgolf.progress import Display
from pgolf.stages import dataset_of

STEPS = 150
FULL_SIZE = 33_000_000


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> RunFolder:
    if os.environ.get("PGOLF_BENCH_RUN"):
        return RunFolder.existing(os.environ["PGOLF_BENCH_RUN"])
    path = tmp_path_factory.mktemp("bench") / "run"
    command = [sys.executable, "-m", "pgolf.run", "train", "--out", str(path), "--steps", str(STEPS)]
    subprocess.run([*command, "--training.batch-tokens", "4096"], check=True)
    return RunFolder.existing(path)


@pytest.fixture(scope="session", params=["gptq-sdclip", "gptq", "gptq-published"])
def matrices(request, run):
    """(kind, codes, largest) of every large tensor, rounded by GPTQ with inputs from training text."""
    settings = read_toml(run.config)
    model = build_model(settings.model)
    model.load_state_dict(load_file(run.weights))
    shards = dataset_of(settings, Display(active=False)).train_shards
    inputs = hessians(model, training_batches(shards, 16, settings.training.sequence_length, 4), head=True)
    chosen = {"rounding": request.param, "scale_floor": False}
    if request.param == "gptq-published":
        chosen |= {"matrix_bits": 5, "prune": 0.03}
    artifact = replace(settings.artifact, **chosen)
    weights = round_weights(submission_state(model), artifact, inputs)
    return request.param, [(kind, matrix.codes.numpy(), largest) for kind, matrix, largest in weights.coded(artifact)]


def wanted(matrices):
    return [(kind, codes.shape, largest) for kind, codes, largest in matrices]


def zstd_22(matrices, folder):
    import zstandard

    return len(zstandard.ZstdCompressor(level=22).compress(_bytes(matrices)))


def brotli_11(matrices, folder):
    brotli = pytest.importorskip("brotli")
    return len(brotli.compress(_bytes(matrices), quality=11, lgwin=24))


def lzma_9(matrices, folder):
    import lzma

    return len(lzma.compress(_bytes(matrices), preset=9 | lzma.PRESET_EXTREME))


def lrzip_9(matrices, folder):
    if not shutil.which("lrzip"):
        pytest.skip("lrzip is not installed")
    raw, packed = Path(folder) / "codes", Path(folder) / "codes.lrz"
    raw.write_bytes(_bytes(matrices))
    subprocess.run(["lrzip", "-q", "-f", "-z", "-L", "9", "-o", packed, raw], check=True, capture_output=True)
    return packed.stat().st_size


def constriction_rows(matrices, folder):
    """A Gaussian with each row's own deviation, which is not even counted."""
    constriction = pytest.importorskip("constriction")
    encoder = constriction.stream.queue.RangeEncoder()
    for _, codes, largest in matrices:
        family = constriction.stream.model.QuantizedGaussian(-largest, largest)
        deviations = np.repeat(np.maximum(codes.astype(np.float64).std(1), 0.3), codes.shape[1])
        encoder.encode(codes.ravel().astype(np.int32), family, np.zeros(codes.size), deviations)
    return encoder.get_compressed().nbytes


def ours(matrices, folder):
    return len(coder.encode_matrices(matrices))


def _bytes(matrices) -> bytes:
    return b"".join(codes.tobytes() for _, codes, _ in matrices)


@pytest.mark.parametrize("compressor", [ours, zstd_22, brotli_11, lzma_9, lrzip_9, constriction_rows])
def test_bytes(benchmark, matrices, compressor, tmp_path):
    rounding, codes = matrices
    benchmark.group = f"bytes of {rounding} codes"
    size = benchmark.pedantic(compressor, args=(codes, tmp_path), rounds=1)
    count = sum(matrix.size for _, matrix, _ in codes)
    benchmark.extra_info |= {"bytes": size, "codes": count, "bits_per_code": 8 * size / count}
    print(f"\n{rounding:15} {compressor.__name__:18} {size:>12,} bytes  {8 * size / count:.4f} bits a code")
    assert 0 < size < count * 1.01


@pytest.fixture(scope="session")
def full_size():
    """As many codes as the largest preset has, in matrices of its shapes."""
    random = np.random.default_rng(0)
    draw = lambda rows, columns: np.clip(np.round(random.normal(0, 2.4, (rows, columns))), -31, 31).astype(np.int8)
    return [("up", draw(1792, 512), 31) for _ in range(18)] + [("down", draw(512, 1792), 31) for _ in range(18)]


def test_encoding_a_full_size_network(benchmark, full_size):
    coder.encode_matrices(full_size[:1])
    benchmark.pedantic(coder.encode_matrices, args=(full_size,), rounds=1)


def test_decoding_a_full_size_network(benchmark, full_size):
    data = coder.encode_matrices(full_size)
    found = benchmark.pedantic(coder.decode_matrices, args=(data, wanted(full_size)), rounds=1)
    assert sum(codes.size for codes in found) >= FULL_SIZE
    assert all(np.array_equal(codes, back) for (_, codes, _), back in zip(full_size, found, strict=True))
