import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from pgolf.data import build as build_module
from pgolf.data import (
    build_dataset,
    corpus_digest,
    default_dataset,
    load_tokenizer,
    open_dataset,
    open_shard,
    train_tokenizer,
    write_shard,
)
from pgolf.data import dataset as dataset_module
from pgolf.data.build import _Survey
from pgolf.data.split import validation_documents
from pgolf.errors import PgolfError


def texts_of(dataset, shards):
    tokens = np.concatenate([open_shard(path) for path in shards])
    borders = [*dataset.documents(tokens), len(tokens)]
    return [dataset.tokenizer.decode(tokens[a + 1 : b]) for a, b in zip(borders[:-1], borders[1:], strict=True)]


@pytest.fixture
def some(documents):
    return [*documents[100:160], " begins with a space", "\u2581", documents[101]]


@pytest.mark.parametrize("once", [False, True], ids=["list", "iterator"])
def test_every_document_is_there_again(tmp_path, some, once):
    seen = []
    source = iter(some) if once else some
    built = build_dataset(source, tmp_path / "d", vocab_size=300, shard_tokens=1001, progress=lambda *args: seen.append(args))
    validation = validation_documents(some)
    assert texts_of(built, built.train_shards) == [text for text, chosen in zip(some, validation, strict=True) if not chosen]
    assert texts_of(built, built.val_shards) == [text for text, chosen in zip(some, validation, strict=True) if chosen]
    assert [len(open_shard(path)) for path in built.train_shards[:-1]] == [1001] * (len(built.train_shards) - 1)
    assert built.train_shards[1].name == "text_train_000001.bin" and built.vocab_size == 300
    assert built.digest == corpus_digest(some) and built == open_dataset(tmp_path / "d")
    size = sum(len(text.encode()) for text in some)
    assert seen[-1] == ("tokenizing", size, size) and ("reading", size, None) in seen

    table = json.loads((tmp_path / "d" / "dataset.json").read_text())
    assert table["digest"] == built.digest and table["lossless"] is True
    assert sum(table["bytes"].values()) == size and sum(table["documents"].values()) == len(some)
    assert table["tokens"]["train"] == sum(len(open_shard(path)) for path in built.train_shards)
    names = {"tokenizer.model", "dataset.json", *(path.name for path in built.train_shards + built.val_shards)}
    assert {path.name for path in (tmp_path / "d").iterdir()} == names
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_equal_documents_never_stand_on_both_sides(dataset, tmp_path, tiny_tokenizer):
    assert dataset.shared_documents() == 0
    tokenizer = load_tokenizer(tiny_tokenizer)
    texts = [[1, *tokenizer.encode(text)] for text in ("one", "two", "three")]
    write_shard(tmp_path / "x_train_000000.bin", sum(texts, []))
    write_shard(tmp_path / "x_val_000000.bin", texts[1] + [1, 5])
    assert open_dataset(tmp_path, tiny_tokenizer).shared_documents() == 1


def test_the_end_of_the_training_text_is_held_out(tmp_path, tiny_tokenizer):
    write_shard(tmp_path / "x_val_000000.bin", [1, 5])
    assert len(open_dataset(tmp_path, tiny_tokenizer).held_out(30)) == 0
    write_shard(tmp_path / "x_train_000001.bin", np.arange(100, 299))
    write_shard(tmp_path / "x_train_000000.bin", np.full(5000, 1))
    dataset = open_dataset(tmp_path, tiny_tokenizer)
    assert [dataset.held_out(count).tolist() for count in (0, 3, 30)] == [[], [296, 297, 298], [*range(280, 299)]]


def test_a_given_tokenizer_is_used(tmp_path, some, tiny_tokenizer):
    built = build_dataset(some, tmp_path / "d", vocab_size=None, tokenizer=tiny_tokenizer, name="mine")
    assert (tmp_path / "d" / "tokenizer.model").read_bytes() == tiny_tokenizer.read_bytes()
    assert built.vocab_size == 300 and built.train_shards[0].name == "mine_train_000000.bin"
    with pytest.raises(PgolfError, match="has 300 entries, but a vocabulary of 400"):
        build_dataset(some, tmp_path / "e", vocab_size=400, tokenizer=tiny_tokenizer)
    with pytest.raises(PgolfError, match="cannot copy the tokenizer .*nothing: No such file"):
        build_dataset(some, tmp_path / "e", vocab_size=None, tokenizer=tmp_path / "nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_single_book_is_cut_into_sections(tmp_path, documents, tiny_tokenizer):
    book = "\n\n".join(documents[:40]) + "y" * 30_000
    built = build_dataset([book], tmp_path / "d", vocab_size=None, tokenizer=tiny_tokenizer)
    sections = texts_of(built, built.train_shards) + texts_of(built, built.val_shards)
    assert sorted(sections) == sorted(build_module._Sections([book]))
    assert "".join(build_module._Sections([book])) == book
    assert 20 < len(sections) and max(map(len, sections)) < 2 * build_module.LONGEST_SECTION
    with pytest.raises(PgolfError, match="1 documents of 5 bytes are too little text"):
        build_dataset(["hello"], tmp_path / "e", vocab_size=None, tokenizer=tiny_tokenizer)


def test_the_tokenizers_sample_is_bounded_and_knows_no_order(monkeypatch, documents):
    monkeypatch.setattr(build_module, "SAMPLE_BYTES", 100_000)
    silent = lambda *_: None
    sample = _Survey(documents, silent).sample()
    assert 30_000 < sum(len(piece.encode()) for piece in sample) <= 100_000
    assert _Survey(documents[::-1], silent).sample() == sample
    held_out = {text for text, chosen in zip(documents, validation_documents(documents), strict=True) if chosen}
    assert not held_out & set(sample)


def test_a_folder_in_use_is_left_alone(tmp_path, some, tiny_tokenizer):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "precious").write_text("x")
    with pytest.raises(PgolfError, match="d already holds files; give a new folder"):
        build_dataset(some, tmp_path / "d", vocab_size=None, tokenizer=tiny_tokenizer)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["precious"]
    (tmp_path / "d" / "precious").unlink()
    build_dataset(some, tmp_path / "d", vocab_size=None, tokenizer=tiny_tokenizer)


@pytest.mark.parametrize("failing_write", [1, 2, 3, 5])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch, some, failing_write):
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == failing_write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr("pgolf.files.os.fsync", full)
    with pytest.raises(PgolfError, match="No space left on device"):
        build_dataset(iter(some), tmp_path / "d", vocab_size=300)
    assert list(tmp_path.iterdir()) == []


def test_arguments_of_build(tmp_path, some):
    for settings, complaint in [
        ({"vocab_size": None}, "needs a vocabulary size or a tokenizer"),
        ({"vocab_size": 300, "name": "a/b"}, "not 'a/b'"),
        ({"vocab_size": 300, "shard_tokens": 0}, "at least one token"),
    ]:
        with pytest.raises(PgolfError, match=complaint):
            build_dataset(some, tmp_path / "d", **settings)
    with pytest.raises(PgolfError, match="too little text"):
        build_dataset([], tmp_path / "d", vocab_size=300)
    (tmp_path / "file").write_text("x")
    with pytest.raises(PgolfError, match="cannot write .*file/d"):
        build_dataset(some, tmp_path / "file" / "d", vocab_size=300)


@pytest.fixture
def challenge(tmp_path, tiny_tokenizer):
    """A folder as the challenge lays it out: shards only."""
    folder = tmp_path / "fineweb10B_sp300"
    for number in range(3):
        write_shard(folder / f"fineweb_train_{number:06d}.bin", np.arange(700 + number) % 300)
    for number in range(2):
        write_shard(folder / f"fineweb_val_{number:06d}.bin", np.arange(60) % 300)
    return folder


def test_a_challenge_folder_opens(challenge, tiny_tokenizer):
    opened = open_dataset(challenge, tiny_tokenizer, 300)
    assert [path.name[-10:] for path in opened.train_shards] == ["000000.bin", "000001.bin", "000002.bin"]
    assert opened.name == "fineweb" and opened.vocab_size == 300 and len(opened.val_shards) == 2
    assert opened.documents(opened.val_tokens()).tolist() == [1, 61]
    assert len(opened.val_tokens()) == 120
    assert opened.val_tokens(7).tolist() == [*range(60), *range(60)][:120]
    assert len(opened.val_tokens(50)) == 101
    with pytest.raises(PgolfError, match="120 tokens, fewer than one sequence of 120"):
        opened.val_tokens(120)

    some = open_dataset(f"{challenge}/fineweb_*_000000.bin", tiny_tokenizer)
    assert (len(some.train_shards), len(some.val_shards)) == (1, 1)
    only = open_dataset(f"{challenge}/fineweb_train_*.bin", tiny_tokenizer)
    with pytest.raises(PgolfError, match="has no validation shards"):
        only.val_tokens()

    digests = {opened.digest, some.digest, only.digest}
    write_shard(challenge / "fineweb_val_000001.bin", np.arange(60) % 59)
    digests.add(open_dataset(challenge, tiny_tokenizer).digest)
    assert len(digests) == 4


def test_what_cannot_be_opened(challenge, tmp_path, tiny_tokenizer, monkeypatch):
    def complains(pattern, *arguments):
        with pytest.raises(PgolfError, match=pattern) as error:
            open_dataset(*arguments)
        assert "\n" not in str(error.value)

    complains("no dataset folder at .*nowhere", tmp_path / "nowhere")
    complains("no file matches", str(tmp_path / "nowhere" / "*.bin"))
    complains("no tokenizer at .*tokenizer.model", challenge)
    complains("no tokenizer at .*gone", challenge, tmp_path / "gone")
    complains("has 300 entries, but a vocabulary of 1024", challenge, tiny_tokenizer, 1024)
    (tmp_path / "bare").mkdir()
    complains("no token shards", tmp_path / "bare", tiny_tokenizer)

    write_shard(challenge / "fineweb_train_000002.bin", [1, 300])
    complains("train_000002.bin holds token 300 at position 1", challenge, tiny_tokenizer)
    monkeypatch.setattr(dataset_module, "CHECKED_WHEN_OPENED", 1000)
    open_dataset(challenge, tiny_tokenizer)
    write_shard(challenge / "fineweb_val_000001.bin", [1, 301])
    complains("val_000001.bin holds token 301 at position 1", challenge, tiny_tokenizer)
    (challenge / "fineweb_train_000001.bin").write_bytes(b"short")
    (challenge / "fineweb_val_000001.bin").unlink()
    complains("train_000001.bin is cut off", challenge, tiny_tokenizer)
    write_shard(challenge / "other_train_000000.bin", [1])
    complains("several datasets: fineweb, other", challenge, tiny_tokenizer)


def test_a_changed_dataset_is_noticed(tmp_path, some, tiny_tokenizer, documents):
    folder = tmp_path / "d"
    built = build_dataset(some, folder, vocab_size=None, tokenizer=tiny_tokenizer)
    table = (folder / "dataset.json").read_bytes()
    tokens = open_shard(built.train_shards[0]).copy()

    write_shard(built.train_shards[0], tokens[:-1])
    with pytest.raises(PgolfError, match="dataset.json says"):
        open_dataset(folder)
    built.train_shards[0].unlink()
    with pytest.raises(PgolfError, match="cannot read shard"):
        open_dataset(folder)
    write_shard(built.train_shards[0], tokens)
    open_dataset(folder)

    no_digest = table.replace(b'"digest": "', b'"digest": 3, "x": "')
    for damage in (table[:-20], b"[]", b"{}", b'{"shards": [{"file": 3}]}', no_digest):
        (folder / "dataset.json").write_bytes(damage)
        with pytest.raises(PgolfError, match="dataset.json is damaged"):
            open_dataset(folder)
    (folder / "dataset.json").write_bytes(table)
    train_tokenizer(documents[:20], 300, folder / "tokenizer.model")
    with pytest.raises(PgolfError, match="not the one that made the shards"):
        open_dataset(folder)


def test_another_process_makes_the_same_default_dataset(tmp_path, dataset, documents):
    program = "import sys; from pgolf.data import default_dataset; default_dataset(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=120)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("builtin-1024-")
    assert json.loads((folder / "dataset.json").read_text())["digest"] == corpus_digest(documents)
    for path in dataset.folder.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_two_processes_build_the_default_dataset_at_once(tmp_path):
    program = (
        "import sys; from pgolf.data import build\n"
        "texts = [f'number {i} is followed by number {i + 1}. ' * 99 for i in range(99)]\n"
        "build.builtin_documents = lambda: sys.stdout.write('building') and (sys.stdin.read(1), texts)[1]\n"
        "sys.stdout.reconfigure(write_through=True)\n"
        "print(build.default_dataset(sys.argv[1], vocab_size=300).digest)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    racing = [subprocess.Popen(command, **pipes) for _ in range(2)]
    # both have found an empty cache before either may go on
    assert [process.stdout.read(8) for process in racing] == ["building"] * 2
    for process in racing:
        process.stdin.write("x")
        process.stdin.flush()
    results = [process.communicate(timeout=120) for process in racing]
    assert [process.returncode for process in racing] == [0, 0], results
    assert results[0][0] == results[1][0]
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("builtin-300-")


def test_the_default_dataset_is_built_once(tmp_path, monkeypatch, documents):
    built = []
    monkeypatch.setattr(build_module, "builtin_documents", lambda: built.append(1) or documents[:50])
    first = default_dataset(tmp_path, vocab_size=300)
    assert default_dataset(tmp_path, vocab_size=300) == first and built == [1]
    assert default_dataset(tmp_path, vocab_size=301).folder != first.folder
    first.val_shards[0].write_bytes(b"")
    with pytest.raises(PgolfError, match=f"cut off.*; delete {first.folder} and it is built again"):
        default_dataset(tmp_path, vocab_size=300)


def test_the_loser_of_a_race_takes_the_winners_dataset(tmp_path, monkeypatch, documents):
    def overtaken():
        monkeypatch.setattr(build_module, "builtin_documents", lambda: documents[:50])
        default_dataset(tmp_path, vocab_size=300)
        return documents[50:90]

    monkeypatch.setattr(build_module, "builtin_documents", overtaken)
    assert default_dataset(tmp_path, vocab_size=300).digest == corpus_digest(documents[:50])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_flipped_bit_in_a_shard_is_noticed(dataset, tmp_path, split):
    for path in dataset.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = next(tmp_path.glob(f"*_{split}_*.bin"))
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1  # still a token of the vocabulary
    shard.write_bytes(content)
    with pytest.raises(PgolfError, match=f"{shard.name} is not what was written"):
        open_dataset(tmp_path)
