"""The file: magic, version, a table of named sections, the sections, sha256. Nothing in it is executable, and no length
is believed before it is checked.

    6 bytes   "pgolf\\n"
    2 bytes   version, little endian
    2 bytes   number of sections
    per section: 1 byte length of the name, the name (ASCII), 8 bytes length of the content
    the contents, in the table's order
    32 bytes  sha256 of everything before
"""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path

from pgolf.artifact.errors import ArtifactError

MAGIC = b"pgolf\n"
VERSION = 3
DIGEST = 32


def join_sections(sections: Mapping[str, bytes]) -> bytes:
    table = [MAGIC, struct.pack("<HH", VERSION, len(sections))]
    for name, content in sections.items():
        encoded = name.encode("ascii")
        table.append(struct.pack("<B", len(encoded)) + encoded + struct.pack("<Q", len(content)))
    body = b"".join(table) + b"".join(sections.values())
    return body + hashlib.sha256(body).digest()


def split_sections(data: bytes, where: str) -> dict[str, bytes]:
    """The sections of a file's bytes, each check before the next step relies on it."""
    if data[: len(MAGIC)] != MAGIC:
        raise ArtifactError(f"{where} is no pgolf artifact: it does not begin with {MAGIC!r}")
    if len(data) < len(MAGIC) + 4 + DIGEST:
        raise ArtifactError(f"{where} is cut off: {len(data)} bytes are too few for an artifact")
    version, count = struct.unpack_from("<HH", data, len(MAGIC))
    if version != VERSION:
        advice = "; a newer pgolf made it: update this one" if version > VERSION else ""
        raise ArtifactError(f"{where} has format version {version}, but this program reads version {VERSION}{advice}")
    at, end = len(MAGIC) + 4, len(data) - DIGEST
    sizes: dict[str, int] = {}
    for _ in range(count):
        length = data[at] if at < end else 0
        if not length or at + 1 + length + 8 > end:
            raise ArtifactError(f"{where} is damaged or cut off: its table of sections does not fit the file")
        name = data[at + 1 : at + 1 + length]
        at += 1 + length
        if not name.isascii() or name.decode("ascii") in sizes:
            raise ArtifactError(f"{where} is damaged: its table of sections has a bad name")
        (sizes[name.decode("ascii")],) = struct.unpack_from("<Q", data, at)
        at += 8
    needed = at + sum(sizes.values()) + DIGEST
    if needed != len(data):
        raise ArtifactError(f"{where} is damaged or cut off: its sections need {needed} bytes, it has {len(data)}")
    if hashlib.sha256(data[:end]).digest() != data[end:]:
        raise ArtifactError(f"{where} is damaged: its checksum does not match; copy or make it again")
    sections = {}
    for title, size in sizes.items():
        sections[title] = data[at : at + size]
        at += size
    return sections


def read_container(path: Path) -> dict[str, bytes]:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; was the run packed?") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    return split_sections(data, str(path))
