"""What the clock decided while a run was scored, as far as its bits depend on it: what a decoder must be told of plan.json."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pgolf.evaluation.codec.coding import CodecError
from pgolf.evaluation.planner import Decision

MOST_BYTES = 1_000_000


@dataclass(frozen=True)
class Plan:
    """As it stands, nothing was given up."""

    targets: int = 0
    """Of the stream that was scored, of which the coded tokens may be the beginning; 0: as many as are coded."""
    changes: tuple[tuple[int, int, int], ...] = ()
    """(target, stride, epochs): what holds from the span that begins at this target on."""
    plain: tuple[int, ...] = ()
    """Numbers of the documents that were scored without adapters."""

    @classmethod
    def of(cls, record: dict | None, wanted: Decision, starts: Sequence[int], targets: int) -> "Plan":
        """Of `Planner.record` for the first `targets` of its stream, whose documents begin at `starts`."""
        if not record:
            return cls()
        changes, at = [], wanted
        for start, *decided in record["spans"]:
            if start < targets and Decision(*decided) != at:
                at = Decision(*decided)
                changes.append((start, *decided))
        plain = set(record["plain_documents"])
        total = record["targets"]
        return cls(
            0 if total == targets else total, tuple(changes), tuple(i for i, start in enumerate(starts) if start in plain)
        )

    def decision(self, start: int, wanted: Decision) -> Decision:
        """For the span that begins at `start`."""
        for target, stride, epochs in reversed(self.changes):
            if target <= start:
                return Decision(stride, epochs)
        return wanted

    def to_bytes(self) -> bytes:
        return b"" if self == Plan() else zlib.compress(json.dumps(asdict(self)).encode(), 9)

    @classmethod
    def from_bytes(cls, packed: bytes, where: str | Path) -> "Plan":
        if not packed:
            return cls()
        try:
            said = json.loads(zlib.decompressobj().decompress(packed, MOST_BYTES))
            plan = cls(said["targets"], tuple(map(tuple, said["changes"])), tuple(said["plain"]))
            numbers = [plan.targets, *(number for change in plan.changes for number in change), *plan.plain]
            if not all(type(number) is int and 0 <= number < 1 << 40 for number in numbers):
                raise ValueError
            if any(len(change) != 3 for change in plan.changes) or list(plan.changes) != sorted(plan.changes):
                raise ValueError
        except (zlib.error, ValueError, TypeError, KeyError, RecursionError):
            raise CodecError(f"{where} is no stream that this program writes: its plan cannot be read") from None
        return plan
