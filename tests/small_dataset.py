"""A dataset that is made in a moment, for tests of stages."""

from pathlib import Path

from pgolf.data import Dataset, build_dataset


def small_dataset(folder: Path, documents: int = 400) -> Dataset:
    lines = "\n\n".join(f"The {word} of {{0}} and its {word * 2}s, said once more." for word in "abcdefgh")
    return build_dataset([lines.format(number) for number in range(documents)], folder, vocab_size=280)
