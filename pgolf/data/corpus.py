"""Where documents come from: the text that every Python carries, and the user's own files."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import os
import sysconfig
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from pgolf.data.errors import DataError
from pgolf.files import system_error

# Tests are not documentation, site-packages are not the interpreter's own, and topics are read on their own.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}
SHORTEST_DOCUMENT = 64
READ_BYTES = 1 << 12
# a compressed file may expand to so many times its size, or to so many bytes if that is more: text does not reach it
EXPANSION = 100
SMALL_EXPANSION = 1 << 26
LONGEST_LINE = 1 << 28


def standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def builtin_sources() -> list[Path]:
    """The files that the built-in corpus is read from, in the order of their names."""
    root = standard_library()
    paths = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        paths += [Path(folder, name) for name in names if name.endswith(".py")]
    topics = root / "pydoc_data" / "topics.py"
    # a distribution may leave links to files that are not installed
    paths = [path for path in [*paths, topics] if path.is_file()]
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def builtin_fingerprint() -> str:
    """Changes when any source of the built-in corpus does; only names, sizes and times are read, so it is fast."""
    root = standard_library()
    digest = hashlib.sha256()
    for path in builtin_sources():
        status = path.stat()
        digest.update(f"{path.relative_to(root).as_posix()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def builtin_documents() -> list[str]:
    """The interpreter's own documentation: one document for each help topic and for each module's docstrings.

    The sources are parsed, never executed. Documents come in the order of their hashes: in the library's own order a run
    that is shorter than the corpus would see some subjects only, and end on the last of them.
    """
    documents: dict[str, None] = {}
    for path in builtin_sources():
        texts = _topics(path) if path.name == "topics.py" and path.parent.name == "pydoc_data" else [_docstrings(path)]
        documents.update(dict.fromkeys(text for text in texts if len(text) >= SHORTEST_DOCUMENT and _is_text(text)))
    if not documents:
        raise DataError(f"this Python has no library sources in {standard_library()}; give your own text with --text")
    return sorted(documents, key=lambda text: hashlib.blake2b(text.encode(), digest_size=16).digest())


def _parse(path: Path) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            return None  # a template, a deliberately broken file, or one that may not be read


def _topics(path: Path) -> list[str]:
    tree = _parse(path)
    for statement in tree.body if tree else []:
        if isinstance(statement, ast.Assign):
            return [text for _, text in sorted(ast.literal_eval(statement.value).items())]
    return []


def _docstrings(path: Path) -> str:
    texts: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                texts.append(text)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                visit(child)

    tree = _parse(path)
    if tree:
        visit(tree)
    return "\n\n".join(texts)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_documents(paths: Iterable[str | Path]) -> Iterator[str]:
    """The documents of files and folders (recursively, in the order of their names, hidden ones left out).

    A .jsonl file holds one document a line under the key "text"; any other file is one document in UTF-8.
    Either may be compressed (.gz, .zst). Empty documents are left out; a corpus without documents is an error.
    """
    empty = True
    places = [Path(path) for path in paths]
    for place in places:
        for file in _files(place):
            for document in _documents_of(file):
                if document:
                    empty = False
                    yield document
    if empty:
        raise DataError(f"no text found in {', '.join(map(str, places)) or 'an empty list of paths'}; give other files")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"no file or folder at {path}; check the path")
    paths = []
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in paths if file.is_file())


def _documents_of(path: Path) -> Iterator[str]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in (".gz", ".zst") else None
    try:
        with open(path, "rb") as file:
            size = path.stat().st_size
            most = max(EXPANSION * size, SMALL_EXPANSION) if compression else max(size, SMALL_EXPANSION)
            stream = _decompressed(file, compression)
            if suffixes and suffixes[-1] == ".jsonl":
                for number, line in enumerate(_lines(stream, path, most), 1):
                    if line.strip():
                        yield _json_document(line, f"{path}:{number}")
            else:
                data = stream.read(most + 1)
                if len(data) > most:
                    raise DataError(f"{path} expands to more than {most:,} bytes; if it is no mistake, give it expanded")
                yield _utf8(data, str(path))
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path} cannot be decompressed ({error}); it is cut off or damaged") from error
    except OSError as error:
        raise system_error("read", path, error) from error


def _lines(stream: BinaryIO | io.BufferedIOBase, path: Path, most: int) -> Iterator[bytes]:
    """The lines of a stream, none of them longer than LONGEST_LINE, at most `most` bytes in all."""
    total = number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        total += len(line)
        if len(line) > LONGEST_LINE:
            raise DataError(f"{path}:{number} is longer than {LONGEST_LINE:,} bytes; a line holds one document")
        if total > most:
            raise DataError(f"{path} expands to more than {most:,} bytes; if it is no mistake, give it expanded")
        yield line


def _decompressed(file: BinaryIO, compression: str | None) -> BinaryIO | io.BufferedIOBase:
    if compression == ".gz":
        return gzip.GzipFile(fileobj=file)
    if compression == ".zst":
        return io.BufferedReader(ZstdFrames(file))
    return file


class ZstdFrames(io.RawIOBase):
    """Decompresses frame after frame; unlike the library's own predictor it refuses a file that ends inside one."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            compressed = self._frame.unused_data or self._file.read(READ_BYTES)
            if self._frame.eof:
                if not compressed:
                    return 0
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            elif not compressed:
                raise EOFError("it ends inside a compressed frame")
            self._ready = self._frame.decompress(compressed)
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def _utf8(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text (byte {error.start}); convert it or leave it out") from error


def _json_document(line: bytes, where: str) -> str:
    text = _utf8(line, where).removeprefix("\ufeff")
    try:
        record = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}); a .jsonl file holds one JSON object a line") from error
    except RecursionError as error:
        raise DataError(f"{where} is nested too deeply for JSON; a line is an object with a text") from error
    document = record.get("text") if isinstance(record, dict) else None
    if not isinstance(document, str):
        raise DataError(f'{where} has no "text" field with a string; a line reads {{"text": "..."}}')
    if not _is_text(document):
        raise DataError(f"{where} holds half of a surrogate pair, which is not text; repair the escape")
    return document


class CorpusDigest:
    """sha256 over documents as they pass: each one's length in bytes (8, little-endian) and its UTF-8 bytes."""

    def __init__(self):
        self._sha256 = hashlib.sha256()

    def add(self, document: str) -> None:
        data = document.encode()
        self._sha256.update(len(data).to_bytes(8, "little") + data)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def corpus_digest(documents: Iterable[str]) -> str:
    """Names a corpus: the sha256 (hexadecimal) of its documents in their order."""
    digest = CorpusDigest()
    for document in documents:
        digest.add(document)
    return digest.hexdigest()
