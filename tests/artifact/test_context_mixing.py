"""The compressor of the counted script: what comes back is what went in, and it beats the usual ones on source text."""

import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pgolf.artifact import compact, context_mixing

SOURCE = Path(context_mixing.__file__).read_bytes()
TEXTS = {
    "nothing": b"",
    "one letter": b"a",
    "every byte": bytes(range(256)) * 2,
    "noise": np.random.default_rng(0).integers(0, 256, 3000, np.uint8).tobytes(),
    "a long repeat": b"abc" * 3000,
    "brackets": b"([{" * 300 + b")]}" * 400,
    "a source": SOURCE,
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_comes_back(name):
    text = TEXTS[name]
    data = context_mixing.compressed(text)
    digits = np.frombuffer(bytes(context_mixing.DIGITS.index(one) for one in data), np.uint8).copy()
    found, used = context_mixing.transcode(np.zeros(len(text), np.uint8), digits, False)
    assert found.tobytes() == text and used <= len(data)
    assert not set(data) & set(b"\0\n\r")


def test_source_text_needs_less_than_lzma():
    assert len(context_mixing.compressed(SOURCE)) < 0.85 * len(lzma.compress(SOURCE, preset=9 | lzma.PRESET_EXTREME))


def run(path, script):
    path.write_bytes(script)
    return subprocess.run([sys.executable, path, "a", "b"], capture_output=True, text=True, cwd=path.parent)


def test_a_script_unpacks_its_module_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = compact.packed(b"def main(words):\n print(words, __file__)\n return 3\n")
    done = run(tmp_path / "train_gpt.py", script)
    assert done.returncode == 3 and done.stdout.startswith("['a', 'b'] ") and not done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["train_gpt.py"]
    damaged = bytearray(script)
    damaged[-10] = 65 if damaged[-10] != 65 else 66
    for broken in (bytes(damaged), script[:-5]):
        done = run(tmp_path / "train_gpt.py", broken)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "damaged or cut off" in done.stderr


@pytest.mark.parametrize("data", [b"\0", b"\x001", b'\0007\r\n\\"', bytes(range(256))])
def test_bytes_survive_as_a_literal(data):
    source = f'# coding: latin-1\nfound = "{compact.as_literal(data)}".encode("latin-1")'
    names: dict = {}
    exec(compile(source.encode("latin-1"), "text", "exec"), names)
    assert names["found"] == data
