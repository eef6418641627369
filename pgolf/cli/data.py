"""The stage data: a dataset from any text, or the challenge's public shards."""

from dataclasses import dataclass

from pgolf.cli.common import progress_on
from pgolf.cli.parse import parse
from pgolf.data import Dataset, build_dataset, open_dataset, read_documents
from pgolf.data.passages import PASSAGE
from pgolf.errors import UsageError
from pgolf.progress import Display


@dataclass(frozen=True)
class Options:
    """Make a dataset: any text, or the challenge's public shards."""

    out: str = ""
    """Folder to write tokenizer and shards to."""
    text: tuple[str, ...] = ()
    """Files, folders or JSONL with a `text` field; .zst and .gz of these."""
    vocab: int = 1024
    """Entries of the tokenizer to train."""
    tokenizer: str = ""
    """Use this SentencePiece model instead of training one."""
    caseops: bool = False
    """Write capital letters as marks before lower-case words, which then share their tokens."""
    name: str = "text"
    """First part of the shards' names."""
    fineweb: str = ""
    """Fetch the challenge's public set instead: sp1024, sp8192, ..."""
    shards: int = 1
    """How many training shards to fetch."""
    overlap: str = ""
    """Make nothing: say how much of this dataset's validation text stands, passage by passage, in its training text too."""


def main(words: list[str]) -> int:
    return make_data(parse(Options, words, "data"))


def make_data(options: Options) -> int:
    if options.overlap:
        if options.text or options.fineweb or options.out:
            raise UsageError("data --overlap makes no dataset; leave --text, --fineweb and --out out")
        print(overlap_line(open_dataset(options.overlap)))
        return 0
    if bool(options.text) == bool(options.fineweb):
        raise UsageError("data needs either --text with files or folders, or --fineweb with a variant such as sp1024")
    if not options.out:
        raise UsageError("data needs --out, the folder to write to")
    with Display() as display:
        progress = progress_on(display)
        if options.fineweb:
            from pgolf.data.fineweb import fetch_fineweb

            dataset = fetch_fineweb(options.fineweb, options.shards, options.out, progress=progress)
        else:
            vocab = None if options.tokenizer else options.vocab
            documents = read_documents(options.text)
            tokenizer = options.tokenizer or None
            dataset = build_dataset(
                documents,
                options.out,
                vocab_size=vocab,
                name=options.name,
                tokenizer=tokenizer,
                case_ops=options.caseops,
                progress=progress,
            )
        display.settle()
        counts = f"{len(dataset.train_shards)} training and {len(dataset.val_shards)} validation shards"
        display.say(f"dataset {options.out}: {counts}")
        display.say(f"use it with: pgolf --data.path {options.out} --model.vocab-size {dataset.vocab_size}")
    return 0


def overlap_line(dataset: Dataset) -> str:
    shared, of = dataset.shared_passages()
    share = shared / of if of else 0.0
    return (
        f"{dataset.folder}: {shared:,} of {of:,} validation bytes, {share:.1%}, lie in passages of {PASSAGE} bytes or more "
        "that also stand in a training document"
    )
