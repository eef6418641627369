import gzip
import hashlib
import json
import os

import pytest
import zstandard

from pgolf.data import builtin_documents, corpus_digest, read_documents
from pgolf.data.corpus import _docstrings, builtin_fingerprint
from pgolf.data.split import is_validation, validation_documents
from pgolf.errors import PgolfError


def test_the_builtin_corpus_is_documentation(documents):
    size = sum(len(text.encode()) for text in documents)
    assert 1_500_000 < size < 4_000_000
    assert len(set(documents)) == len(documents)
    assert any("Ellipsis Object" in text[:80] for text in documents), "the help topics"
    assert any(text.startswith("JSON (JavaScript Object Notation)") for text in documents), "the module json"
    held_out = sum(
        len(text.encode()) for text, chosen in zip(documents, validation_documents(documents), strict=True) if chosen
    )
    assert 0.05 < held_out / size < 0.15


def test_the_fingerprint_follows_the_sources(tmp_path, monkeypatch):
    monkeypatch.setattr("pgolf.data.corpus.standard_library", lambda: tmp_path)
    with pytest.raises(PgolfError, match="no library sources in"):
        builtin_documents()
    source = tmp_path / "module.py"
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere")
    seen = [builtin_fingerprint()]
    for text in ("x = 1", '"""A docstring that is long enough to be kept as a document of its own, surely."""'):
        source.write_text(text)
        seen.append(builtin_fingerprint())
    assert builtin_documents() == [source.read_text().strip('"')]
    os.utime(source, ns=(1, 1))
    seen.append(builtin_fingerprint())
    source.rename(tmp_path / "renamed.py")
    seen.append(builtin_fingerprint())
    assert len(set(seen)) == 5 and builtin_fingerprint() == seen[-1]
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("x = 1")
    assert builtin_fingerprint() == seen[-1]


def test_sources_are_parsed_in_order_and_never_executed(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        '"""One."""\nclass A:\n    """Two."""\n    def f(self):\n        """Three."""\n'
        'if True:\n    def g():\n        """Four."""\nraise SystemExit("executed")\n'
    )
    assert _docstrings(source) == "One.\n\nTwo.\n\nThree.\n\nFour."
    source.write_bytes(b"this is not python")
    assert _docstrings(source) == ""


def test_the_split_and_the_digest_are_fixed():
    texts = [f"document {number}" for number in range(2000)]
    held_out = [number for number, text in enumerate(texts) if is_validation(text)]
    assert held_out[:4] == [20, 34, 52, 53]
    assert 150 < len(held_out) < 250
    # lengths are part of the digest, so moving a border between documents changes it
    assert corpus_digest(["ab", "c"]) != corpus_digest(["a", "bc"])
    assert corpus_digest(["é"]) == hashlib.sha256(b"\2\0\0\0\0\0\0\0\xc3\xa9").hexdigest()


def test_files_folders_and_compression(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"second\r\n ")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.md").write_text("first é")
    lines = b'{"text": "third"}\n\n{"text": "", "id": 1}\n{"text": "fourth\\u00e9", "id": 2}'
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines[:20]) + zstandard.compress(lines[20:]))
    (tmp_path / "d.JSONL.gz").write_bytes(gzip.compress(b'\xef\xbb\xbf{"text": "fifth"}'))
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"sixth"))
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("not a document")
    expected = ["first é", "second\r\n ", "third", "fourthé", "fifth", "sixth"]
    assert list(read_documents([tmp_path])) == expected
    assert list(read_documents([tmp_path / "e.txt.gz", tmp_path / "a"])) == ["sixth", "first é"]


BAD = {
    "latin.txt": (b"caf\xe9", "is not UTF-8 text (byte 3)"),
    "a.jsonl": (b'{"text": "x"}\n{"text": \n', "a.jsonl:2 is not JSON"),
    "b.jsonl": (b'{"text": "x"}\n\n{"body": "x"}\n', 'b.jsonl:3 has no "text" field'),
    "c.jsonl": (b'{"text": 7}\n', 'c.jsonl:1 has no "text" field'),
    "d.jsonl": (b"[1]\n", 'd.jsonl:1 has no "text" field'),
    "e.jsonl": (b'{"text": "\\ud800"}\n', "e.jsonl:1 holds half of a surrogate pair"),
    "f.jsonl": (b"[" * 200_000, "f.jsonl:1 is n"),
    "g.txt.gz": (gzip.compress(b"x" * 9999)[:-9], "g.txt.gz cannot be decompressed"),
    "h.txt.gz": (b"plain", "h.txt.gz cannot be decompressed"),
    "i.txt.zst": (zstandard.compress(json.dumps(list(range(99999))).encode())[:-9], "i.txt.zst cannot be decompressed"),
    "j.txt.zst": (b"plain", "j.txt.zst cannot be decompressed"),
    "k.txt": (b"", "no text found in"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_clear_line(tmp_path, name):
    content, complaint = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PgolfError) as error:
        list(read_documents([tmp_path / name]))
    assert complaint in str(error.value) and str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_paths_and_empty_folders(tmp_path):
    with pytest.raises(PgolfError, match="no file or folder at .*nowhere"):
        list(read_documents([tmp_path / "nowhere"]))
    with pytest.raises(PgolfError, match="no text found in"):
        list(read_documents([tmp_path]))


@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_a_compressed_file_that_expands_without_end_is_refused(tmp_path, monkeypatch, kind, form):
    monkeypatch.setattr("pgolf.data.corpus.SMALL_EXPANSION", 100_000)
    data = b'{"text": "a"}\n' * 1_000_000
    path = tmp_path / f"bomb.{form}.{kind}"
    path.write_bytes(gzip.compress(data) if kind == "gz" else zstandard.compress(data))
    assert len(data) > 100 * path.stat().st_size
    with pytest.raises(PgolfError, match="bomb.* expands to more than .* bytes; if it is no mistake, give it expanded"):
        for _ in read_documents([path]):
            pass


def test_a_line_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pgolf.data.corpus.LONGEST_LINE", 1000)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "short"}) + "\n" + json.dumps({"text": "x" * 2000}) + "\n")
    with pytest.raises(PgolfError, match="a.jsonl:2 is longer than 1,000 bytes; a line holds one document"):
        list(read_documents([tmp_path / "a.jsonl"]))
