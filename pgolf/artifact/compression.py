"""Arrays of numbers to bytes and back, by a general compressor or by the entropy coder. Reading, no size is exceeded."""

import lzma
import os
import zlib
from collections.abc import Sequence

import numpy as np
import zstandard

from pgolf.artifact import coder, halves
from pgolf.artifact.coder import Outline
from pgolf.artifact.errors import ArtifactError

LZMA_MEMORY = 1 << 28
# what one core compresses by itself
ZSTD_JOB = 1 << 22


def pack_codes(outlines: Sequence[Outline], matrices: Sequence[np.ndarray], compressor: str) -> bytes:
    if compressor == "entropy":
        return coder.encode_matrices(outlines, matrices)
    return _compress(b"".join(codes.tobytes() for codes in matrices), compressor)


def unpack_codes(data: bytes, outlines: Sequence[Outline], compressor: str) -> list[np.ndarray]:
    if compressor == "entropy":
        return coder.decode_matrices(data, outlines)
    size = sum(rows * columns for rows, columns in (outline.shape for outline in outlines))
    numbers = np.frombuffer(_expand(data, size, compressor), np.int8)
    matrices, at = [], 0
    for outline in outlines:
        (rows, columns), largest = outline.shape, outline.largest
        codes = numbers[at : at + rows * columns].reshape(rows, columns)
        at += rows * columns
        if codes.size and (codes.max() > largest or codes.min() < -largest):
            raise ArtifactError(f"a code is beyond the largest, {largest}")
        matrices.append(codes.copy())
    return matrices


def pack_halves(numbers: np.ndarray, compressor: str) -> bytes:
    return halves.encode_halves(numbers) if compressor == "entropy" else _compress(numbers.tobytes(), compressor)


def unpack_halves(data: bytes, count: int, compressor: str) -> np.ndarray:
    if compressor == "entropy":
        return halves.decode_halves(data, count)
    return np.frombuffer(_expand(data, 2 * count, compressor), np.float16)


def pack_text(data: bytes) -> bytes:
    return zlib.compress(data, 9)


def unpack_text(data: bytes, limit: int) -> bytes:
    try:
        machine = zlib.decompressobj()
        text = machine.decompress(data, limit)
    except zlib.error as error:
        raise ArtifactError(str(error)) from None
    if not machine.eof or machine.unused_data:
        raise ArtifactError(f"a text has no end within {limit} bytes")
    return text


def _compress(data: bytes, compressor: str) -> bytes:
    if compressor == "lzma":
        return lzma.compress(data, preset=6)
    # the same bytes on any number of cores
    options = {"job_size": ZSTD_JOB, "overlap_log": 3, "threads": max(1, os.cpu_count() or 1), "source_size": len(data)}
    chosen = zstandard.ZstdCompressionParameters.from_level(22, **options)
    return zstandard.ZstdCompressor(compression_params=chosen).compress(data)


def _expand(data: bytes, size: int, compressor: str) -> bytes:
    """Exactly `size` bytes, or an error before much more is allocated."""
    try:
        if compressor == "lzma":
            machine = lzma.LZMADecompressor(memlimit=LZMA_MEMORY)
            expanded = machine.decompress(data, max_length=size + 1)
            whole = machine.eof and not machine.unused_data
        else:
            # the frame's own claim is read before anything is allocated for it
            declared = zstandard.frame_content_size(data)
            if declared != size:
                raise ArtifactError(f"{declared} bytes of numbers where the network needs {size}")
            expanded = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
            whole = True
    except (zstandard.ZstdError, lzma.LZMAError) as error:
        raise ArtifactError(str(error)) from None
    if len(expanded) != size or not whole:
        raise ArtifactError(f"{len(expanded)} bytes of numbers where the network needs {size}")
    return expanded
