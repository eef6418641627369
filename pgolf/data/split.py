"""Which documents are validation text: about a tenth, in groups that share no passage with the training text."""

import hashlib
from collections.abc import Iterable

import numpy as np

from pgolf.data.passages import groups_by_passage

VALIDATION_SHARE = 10
# A group that is more than this share of the text, around a licence that many documents carry, say, is training text.
LARGEST_GROUP = 1 / 20
# Fingerprints of a text take about its own size in memory; larger ones are split document by document.
GROUPED_BYTES = 1 << 30


def is_validation(document: str) -> bool:
    """Whether a document is chosen for validation: a fixed hash of its text chooses a tenth."""
    return int.from_bytes(_digest(document), "little") % VALIDATION_SHARE == 0


def _digest(document: str) -> bytes:
    return hashlib.blake2b(document.encode(), digest_size=8, person=b"pgolf validation").digest()


def validation_documents(documents: Iterable[str]) -> np.ndarray:
    """(documents,) bool. Documents that share a passage go to one side together: a group is chosen as its document with the
    least hash is. Where that leaves a side empty, and in texts beyond `GROUPED_BYTES`, documents are chosen one by one."""
    digests = [_digest(document) for document in documents]
    sizes = np.array([len(document.encode()) for document in documents], np.int64)
    alone = np.array([int.from_bytes(digest, "little") % VALIDATION_SHARE == 0 for digest in digests], bool)
    if sizes.sum() > GROUPED_BYTES:
        return alone
    groups = groups_by_passage(documents)
    leader: dict[int, int] = {}
    for number, group in enumerate(groups.tolist()):
        if group not in leader or digests[number] < digests[leader[group]]:
            leader[group] = number
    small = np.bincount(groups, sizes, len(groups)) <= LARGEST_GROUP * sizes.sum()
    grouped = alone[[leader[group] for group in groups.tolist()]] & small[groups]
    return grouped if 0 < grouped.sum() < len(grouped) else alone
