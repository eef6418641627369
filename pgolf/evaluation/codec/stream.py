"""The compressed file. Every field is checked before it is used.

6 bytes   "pgolfz"
1 byte    version
8 bytes   sha256 of the artifact, its beginning
8 bytes   sha256 of the content, its beginning
strings   what computes, as in `computer`; settings, JSON in zlib, where they are not the artifact's own; the plan, in the
          same form, where the clock gave something up; the patch. Each: varint length, bytes
varints   kind of content, the first token, how many follow; documents that are coded side by side (0: one stream), and how
          many targets the last of them has
the code  32-bit words of the range coder
4 bytes   CRC-32 of everything before
"""

import functools
import importlib.util
import platform
import struct
import zlib
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path

import torch

import pgolf
from pgolf.evaluation.codec.coding import CodecError

MAGIC, VERSION, DIGEST = b"pgolfz", 3, 8
TEXT, TOKENS = 0, 1
LARGEST = 1 << 40
LIBRARIES = ("torch", "numpy", "numba", "constriction")
PACKAGES = ("pgolf.kernels", "pgolf.model", "pgolf.evaluation")


@dataclass(frozen=True)
class Stream:
    artifact: bytes
    """The beginning of the artifact's sha256."""
    digest: bytes
    """The beginning of the content's sha256."""
    computer: str
    settings: bytes
    plan: bytes
    patch: bytes
    kind: int
    first: int
    targets: int
    documents: int
    """Coded side by side; 0: one stream, token after token."""
    last_targets: int
    """Of the last document, which does not end with BOS."""
    code: bytes

    def to_bytes(self) -> bytes:
        parts = [MAGIC, bytes([VERSION]), self.artifact, self.digest]
        for string in (self.computer.encode(), self.settings, self.plan, self.patch):
            parts += [varint(len(string)), string]
        parts += [varint(number) for number in (self.kind, self.first, self.targets, self.documents, self.last_targets)]
        body = b"".join(parts) + self.code
        return body + struct.pack("<I", zlib.crc32(body))

    @classmethod
    def from_bytes(cls, data: bytes, where: str | Path) -> "Stream":
        if data[: len(MAGIC)] != MAGIC:
            raise CodecError(f"{where} is no compressed file of pgolf: it does not begin with {MAGIC!r}")
        least = len(MAGIC) + 1 + 2 * DIGEST + 9 + 4
        if len(data) < least or zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
            raise CodecError(f"{where} is damaged or cut off: its checksum does not match; copy or make it again")
        if data[len(MAGIC)] != VERSION:
            raise CodecError(f"{where} has format version {data[len(MAGIC)]}, but this program reads version {VERSION}")
        rest = Cursor(data[len(MAGIC) + 1 : -4], where)
        artifact, digest = rest.take(DIGEST), rest.take(DIGEST)
        computer, settings, plan, patch = (rest.take(rest.varint()) for _ in range(4))
        kind, first, targets, documents, last_targets = (rest.varint() for _ in range(5))
        whole = documents <= targets + 1 and last_targets <= targets if documents else not last_targets
        if kind not in (TEXT, TOKENS) or len(rest.data) % 4 or not whole:
            raise CodecError(f"{where} is no stream that this program writes")
        words = computer.decode("ascii", "replace")
        return cls(artifact, digest, words, settings, plan, patch, kind, first, targets, documents, last_targets, rest.data)


class Cursor:
    def __init__(self, data: bytes, where: str | Path):
        self.data, self.where = data, where

    def take(self, count: int) -> bytes:
        if count > len(self.data):
            raise CodecError(f"{self.where} is no stream that this program writes: it ends within its header")
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def varint(self) -> int:
        number = 0
        for place in range(0, 42, 7):
            byte = self.take(1)[0]
            number |= (byte & 127) << place
            if byte < 128:
                break
        if byte >= 128 or number > LARGEST:
            raise CodecError(f"{self.where} is no stream that this program writes: a number in its header is too large")
        return number


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


# ---- what computes


def computer() -> dict[str, str]:
    """What the last bits of a distribution depend on, beside the artifact."""
    return {
        "pgolf": f"{pgolf.__version__}-{sources():08x}",
        **{name: version_of(name) for name in LIBRARIES},
        "processor": f"{platform.machine()}-{processor():08x}",
        "threads": str(torch.get_num_threads()),
    }


@functools.cache
def sources() -> int:
    """A number for the code that computes: between two versions it changes, and with it a last bit now and then."""
    number = 0
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec and spec.origin
        for path in sorted(Path(spec.origin).parent.rglob("*.py")):
            number = zlib.crc32(path.read_bytes(), number)
    return number


def processor() -> int:
    """A number for the kind of processor: libraries choose their arithmetic by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line for line in lines if line.startswith(("model name", "CPU part"))), "")
    except OSError:
        model = platform.processor()
    return zlib.crc32(f"{model} {torch.backends.cpu.get_cpu_capability()}".encode())
