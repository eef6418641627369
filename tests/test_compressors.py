"""General compressors beside a score: alone, and primed with the training text."""

import sys

import numpy as np
import pytest

from pgolf import compressors
from pgolf.compressors import OWN, ZSTD, measured, standing
from pgolf.summary import Compressor

TRAINING = b"".join(b"line %d of the training text, as it stands\n" % number for number in range(400))
# half of it stands in the training text
TEXT = TRAINING[3000:5000] + np.random.default_rng(0).integers(0, 256, 2000, dtype=np.uint8).tobytes()


def test_alone_and_primed():
    found = measured(TEXT, TRAINING)
    assert {"xz -9e", "bzip2 -9", ZSTD} <= found.keys()
    for name, peer in found.items():
        assert peer.text_bytes == len(TEXT) and peer.bpb == 8 * peer.bytes / len(TEXT)
        assert 1900 < peer.bytes < 2 * len(TEXT), name
        assert peer.primed_bpb == pytest.approx(8 * peer.primed_bytes / len(TEXT))
    # half of the text is noise, which nobody shortens; the other half has been read by those who remember so far
    for name in ("xz -9e", ZSTD):
        assert 1900 < found[name].primed_bytes < found[name].bytes, name
    alone = measured(TEXT, b"")
    assert {name: peer.bytes for name, peer in alone.items()} == {name: peer.bytes for name, peer in found.items()}
    assert all(peer.primed_bpb is None and peer.primed_bytes is None for peer in alone.values())


def test_a_program_that_fails_is_left_out(monkeypatch, tmp_path):
    for name, body in (
        ("zpaq", "import sys; open('out.zpaq', 'wb').write(bytes(7)); sys.exit(0)"),
        ("bzip3", "import sys; sys.exit(3)"),
    ):
        (tmp_path / name).write_text(f"#!{sys.executable}\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert {"zpaq -m5", "bzip3"} <= set(compressors.installed()) and "lrzip -z" not in compressors.installed()
    monkeypatch.setattr(compressors, "installed", lambda: ["xz -9e", "bzip3", "zpaq -m5"])
    found = measured(b"some text", b"")
    assert found.keys() == {"xz -9e", "zpaq -m5"} and found["zpaq -m5"].bytes == 7


def test_where_a_score_stands():
    peers = {"xz -9e": Compressor(1, 2.3, 4, 1, 1.8), "zpaq -m5": Compressor(1, 1.9, 4, 1, 1.3), OWN: Compressor(1, 9.0, 4)}
    assert (
        standing(1.5, peers)
        == "beside compressors that have read the training text: below xz -9e 1.8000; above zpaq -m5 1.3000"
    )
    assert standing(1.2, {"xz -9e": Compressor(1, 2.3, 4)}) == "beside compressors: below xz -9e 2.3000"
    assert standing(1.2, {OWN: Compressor(1, 9.0, 4)}) == ""


def test_the_programs_that_are_here_are_called_rightly():
    """Whatever is installed shortens the text; a wrong word on a command line would leave the program out in silence."""
    found = measured(TRAINING, b"")
    assert found.keys() == set(compressors.installed())
    assert all(peer.bytes < len(TRAINING) / 2 for peer in found.values())
