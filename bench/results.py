"""The results of a run of the bench as data: lines, their gates, and the file of one device's committed results."""

import dataclasses
import datetime
import json
import math
import os
import platform
import re
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.timing import Samples, Spread
from pgolf.process import commit

FOLDER = Path(__file__).parent / "results"
# more than this share lost, beyond the noise, is a regression
TOLERATED = 0.10
PACKAGES = ("torch", "triton", "numba", "numpy", "flash-attn", "liger-kernel", "gemlite", "torchao", "brotli", "zstandard")


@dataclass(frozen=True)
class Peer:
    """Somebody else's figure for the same work (its median), and how many times ours it was, pair by pair."""

    value: float
    ratio: Spread


@dataclass(frozen=True)
class Gate:
    """A condition, whether it holds, and how it was judged."""

    name: str
    holds: bool
    why: str


@dataclass
class Line:
    """One bench: ours and the peers' in seconds, or in whatever `unit` says; less is better.

    pace    what is held against the last committed run: higher is better. On a CPU, whose speed depends on what else runs,
            the ratio to the first peer; on a GPU, calls a second.
    floor   seconds that the device's measured ceilings allow; 0 where there is none
    figures what else is worth knowing, by name
    """

    bench: str
    ours: Spread
    peers: dict[str, Peer] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    pace: Spread | None = None
    floor: float = 0.0
    figures: dict[str, float | str] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)
    unit: str = "s"

    @property
    def holds(self) -> bool:
        return all(gate.holds for gate in self.gates)

    @property
    def roofline_fraction(self) -> float:
        return self.floor / self.ours.median if self.floor else 0.0


def line_of(bench: str, samples: Samples, *, on_gpu: bool, floor: float = 0.0, absent=None, figures=None) -> Line:
    """Contenders named by the samples; "ours" is ours."""
    ours = samples.of("ours")
    names = [name for name in samples.seconds if name != "ours"]
    peers = {name: Peer(samples.of(name).median, samples.ratio(name)) for name in names}
    pace = Spread(1 / ours.median, 1 / ours.high, 1 / ours.low) if on_gpu or not peers else peers[names[0]].ratio
    return Line(bench, ours, peers, dict(absent or {}), pace, floor, dict(figures or {}))


def peer_gate(peer: str, speedup: Spread, min_speedup: float) -> Gate:
    """At least so many times as fast as a peer; what lies within the noise is no failure."""
    return Gate(
        f"{min_speedup:g} x {peer}",
        speedup.high >= min_speedup,
        f"{speedup.median:.2f} x ({speedup.low:.2f} to {speedup.high:.2f})",
    )


def roofline_gate(line: Line, min_roofline: float) -> Gate:
    """At least such a share of what the device's measured ceilings allow."""
    best = line.floor / line.ours.low
    return Gate(f"{min_roofline:.0%} of roofline", best >= min_roofline, f"{line.roofline_fraction:.0%}")


def regression_gate(now: Spread, before: Spread) -> Gate:
    """Not more than a tenth slower than the last committed run, beyond the noise of both."""
    noise = math.hypot(now.noise, before.noise)
    lost = 1 - now.median / before.median
    return Gate("last committed", lost - noise <= TOLERATED, f"{-lost:+.1%} since then, noise {noise:.1%}")


# ---- files


def device_name() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        facts = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)$", text, re.M))
        return f"{facts['model name']} family {facts['cpu family']} model {facts['model']}"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def file_of(device: str, folder: Path = FOLDER) -> Path:
    return folder / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")


def versions() -> dict[str, str]:
    by_name = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            by_name[name] = version(name)
        except PackageNotFoundError:
            continue
    return by_name


@dataclass
class Results:
    """One device's lines by bench, with what they were measured with. Lines are dated one by one: parts of the bench can be
    run at different times."""

    device: str
    versions: dict[str, str]
    ceilings: dict[str, float] = field(default_factory=dict)
    lines: dict[str, Line] = field(default_factory=dict)
    dates: dict[str, str] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls) -> "Results":
        return cls(device_name(), versions())

    def add(self, line: Line) -> None:
        self.lines[line.bench] = line
        self.dates[line.bench] = datetime.date.today().isoformat()
        self.commits[line.bench] = commit()

    def laid_over(self, older: "Results | None") -> "Results":
        """With the older lines that this run did not measure, unless they were measured with other versions."""
        if older is None or older.versions != self.versions or older.device != self.device:
            return self
        merged = lambda name: {**getattr(older, name), **getattr(self, name)}
        return Results(self.device, self.versions, *(merged(name) for name in ("ceilings", "lines", "dates", "commits")))

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """A file that was made by hand or damaged raises ValueError with one line that says so."""
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            table["lines"] = {name: _line(entry) for name, entry in table["lines"].items()}
            return cls(**table)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} holds no results of the bench ({error}); write it anew: --benchmark-accept") from None

    @classmethod
    def committed(cls, device: str, folder: Path = FOLDER) -> "Results | None":
        path = file_of(device, folder)
        return cls.read(path) if path.exists() else None


def _line(entry: dict) -> Line:
    peers = {name: Peer(peer["value"], Spread(**peer["ratio"])) for name, peer in entry["peers"].items()}
    pace = Spread(**entry["pace"]) if entry["pace"] else None
    gates = [Gate(**gate) for gate in entry["gates"]]
    return Line(**{**entry, "ours": Spread(**entry["ours"]), "peers": peers, "pace": pace, "gates": gates})
