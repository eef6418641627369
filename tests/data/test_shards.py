import errno
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf import files as files_module
from pgolf.data import open_shard, write_shard
from pgolf.data.shards import token_count
from pgolf.errors import PgolfError


@settings(max_examples=50, deadline=None)
@given(tokens=st.lists(st.integers(0, 65535), max_size=300))
def test_round_trip_in_the_challenges_format(tmp_path_factory, tokens):
    path = tmp_path_factory.mktemp("shard") / "x_train_000000.bin"
    write_shard(path, tokens)
    expected = struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253) + struct.pack(f"<{len(tokens)}H", *tokens)
    assert path.read_bytes() == expected
    read = open_shard(path)
    assert read.dtype == np.uint16 and read.tolist() == tokens
    assert not tokens or not read.flags.writeable


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_shard_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("shard") / "x_train_000000.bin"
    write_shard(path, np.arange(101) % 50)
    whole = path.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "grown", "header", "token"]))
    if kind == "cut":
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    elif kind == "grown":
        path.write_bytes(whole + data.draw(st.binary(min_size=1, max_size=4)))
    elif kind == "header":
        at = data.draw(st.integers(0, 11))
        flipped = whole[at] ^ data.draw(st.integers(1, 255))
        path.write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :])
    else:
        at = data.draw(st.integers(0, 100))
        damaged = bytearray(whole)
        struct.pack_into("<H", damaged, 1024 + 2 * at, data.draw(st.integers(50, 65535)))
        path.write_bytes(damaged)
    with pytest.raises(PgolfError) as error:
        open_shard(path, vocab_size=50)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    if kind == "token":
        assert f"at position {at}," in str(error.value)


def test_messages_name_the_fault(tmp_path):
    path = tmp_path / "x_val_000000.bin"
    with pytest.raises(PgolfError, match="cannot read shard .*x_val_000000.bin: No such file"):
        token_count(path)
    for words, complaint in [
        ((7, 1, 0), "not a token shard: it begins with 7"),
        ((20240520, 2, 0), "version 2"),
        ((20240520, 1, 3), "promises 3 tokens, which is 1030"),
        ((20240520, 1, -1), "promises -1 tokens"),
    ]:
        path.write_bytes(struct.pack("<256i", *words, *[0] * 253))
        with pytest.raises(PgolfError, match=complaint):
            open_shard(path)
    path.write_bytes(b"\0" * 100)
    with pytest.raises(PgolfError, match="cut off: 100 bytes"):
        open_shard(path)


def test_a_token_far_into_a_shard_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("pgolf.data.shards.CHUNK_BYTES", 64)
    tokens = np.zeros(1000, np.uint16)
    tokens[777] = 9
    write_shard(tmp_path / "x", tokens)
    assert len(open_shard(tmp_path / "x", vocab_size=10)) == 1000
    with pytest.raises(PgolfError, match="token 9 at position 777, but the vocabulary has 9"):
        open_shard(tmp_path / "x", vocab_size=9)


def test_tokens_that_do_not_fit_are_refused(tmp_path):
    for tokens in ([65536], [-1]):
        with pytest.raises(PgolfError, match="from 0 to 65535"):
            write_shard(tmp_path / "x", tokens)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "x_train_000000.bin"
    monkeypatch.setattr(files_module.os, call, full)
    with pytest.raises(PgolfError, match="cannot write .*x_train_000000.bin: No space left on device; make room"):
        write_shard(path, [1, 2, 3])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "x"
    write_shard(path, [1, 2, 3])
    with pytest.raises(PgolfError):
        write_shard(path, [1 << 20])
    assert open_shard(path).tolist() == [1, 2, 3]
    write_shard(path, [4])
    assert open_shard(path).tolist() == [4]


def test_an_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PgolfError, match="cannot write .*file/x: "):
        write_shard(tmp_path / "file" / "x", [1])
