import hashlib
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.artifact.container import MAGIC, VERSION, join_sections, read_container, split_sections
from pgolf.artifact.errors import ArtifactError
from pgolf.artifact.pack import read_artifact, write_artifact
from tests.artifact.conftest import TOKENIZER, settings_with

names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)


@given(st.dictionaries(names, st.binary(max_size=200), max_size=6))
def test_any_sections_come_back(sections):
    assert split_sections(join_sections(sections), "here") == sections


@settings(max_examples=300)
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_are_refused(data, with_magic):
    with pytest.raises(ArtifactError):
        split_sections((MAGIC if with_magic else b"") + data, "here")


def signed(body):
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (struct.pack("<HH", VERSION + 1, 0), "newer pgolf"),
        (struct.pack("<HH", 0, 0), "version 0"),
        (struct.pack("<HH", VERSION, 1), "table of sections"),
        (struct.pack("<HHB", VERSION, 1, 4) + b"meta" + struct.pack("<Q", 2**63), "need 9223372036854775"),
        (struct.pack("<HH", VERSION, 2) + 2 * (b"\1a" + struct.pack("<Q", 0)), "bad name"),
        (struct.pack("<HH", VERSION, 1) + b"\1\xff" + struct.pack("<Q", 0), "bad name"),
        (struct.pack("<HH", VERSION, 0) + b"more", "need"),
    ],
)
def test_a_false_table_is_refused_though_its_checksum_is_right(body, said):
    with pytest.raises(ArtifactError, match=said):
        split_sections(signed(MAGIC + body), "here")


def test_ten_thousand_damaged_files_are_refused(tmp_path, state):
    """Bits flipped, bytes lost, doubled or overwritten: one line each, or the very same file."""
    path = tmp_path / "model.pgolf"
    write_artifact(path, state, settings_with(), TOKENIZER)
    whole = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for turn in range(10_000):
        data = bytearray(whole)
        at = draw.randrange(len(data))
        kind = turn % 4
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at : at + draw.randrange(1, 100)]
        elif kind == 2:
            data[at:at] = draw.randbytes(draw.randrange(1, 100))
        else:
            data[at : at + 40] = draw.randbytes(min(40, len(data) - at))
        try:
            split_sections(bytes(data), "here")
            assert bytes(data) == whole
        except ArtifactError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 9_990


def test_every_single_flipped_bit_of_the_frame_is_refused(tmp_path):
    whole = join_sections({"meta": b"12", "codes": b"345"})
    for at in range(8 * len(whole)):
        data = bytearray(whole)
        data[at // 8] ^= 1 << at % 8
        with pytest.raises(ArtifactError):
            split_sections(bytes(data), "here")


def test_files_that_cannot_be_read_say_so(tmp_path):
    with pytest.raises(ArtifactError, match="was the run packed"):
        read_container(tmp_path / "none")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_artifact(tmp_path)
