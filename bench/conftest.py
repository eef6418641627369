"""`pytest bench/` runs every bench once, tiny; `pytest bench/ --benchmark` measures, gates and prints one table.

On top of pytest-benchmark, whose own options keep their meaning: what is measured here is handed to it.
"""

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from bench import budgets, table, timing
from bench.benchmarks import Benchmark, disagreement, quiet_compiler
from bench.ceilings import Ceilings, measure_ceilings
from bench.results import Gate, Line, Results, file_of, line_of, peer_gate, regression_gate, roofline_gate
from pgolf.folder import RunFolder

NEEDS_GPU = "needs an NVIDIA GPU"


def pytest_addoption(parser):
    group = parser.getgroup("benchmark")
    group.addoption("--benchmark", action="store_true", help="measure and gate; without it every bench runs once, tiny")
    group.addoption("--benchmark-each", type=float, default=2.0, metavar="SECONDS", help="for one bench; default: %(default)s")
    group.addoption("--benchmark-stop", type=float, metavar="SECONDS", help="begin no further bench after so many")
    group.addoption("--benchmark-into", type=Path, default=Path("runs/bench"), metavar="FOLDER", help="for JSON and pictures")
    group.addoption("--benchmark-add", action="store_true", help="add to the results that the folder holds already")
    group.addoption("--benchmark-accept", action="store_true", help="make this run the committed one of this device")


def pytest_configure(config):
    if not config.getoption("--benchmark"):
        if config.option.benchmark_accept or config.option.benchmark_json or config.option.benchmark_compare:
            raise pytest.UsageError("there is nothing to keep or compare without --benchmark: a smoke run measures nothing")
        config.option.benchmark_disable = True
    config.option.benchmark_quiet = not config.option.benchmark_verbose
    config.stash[SESSION] = Session(config)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--benchmark") and not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason=NEEDS_GPU))


def pytest_terminal_summary(terminalreporter, config):
    session = config.stash[SESSION]
    if not session.measures:
        terminalreporter.write_line("smoke run: nothing was measured; measure with pytest bench/ --benchmark")
    elif session.results and session.results.lines:
        session.close(terminalreporter.write_line)


class Session:
    """What one run of pytest measures, and what it is held against."""

    def __init__(self, config):
        self.measures = config.getoption("--benchmark")
        self.seconds = config.getoption("--benchmark-each")
        self.folder = config.getoption("--benchmark-into")
        self.accept = config.getoption("--benchmark-accept")
        self.adds = config.getoption("--benchmark-add")
        self.begun = time.perf_counter()
        self.results: Results | None = None
        self.before: Results | None = None
        self.already: Results | None = None
        self.bills: list[budgets.Bill] = []
        self._clock: timing.HostClock | timing.DeviceClock | None = None
        self._ceilings: Ceilings | None = None

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def size(self) -> str:
        return "tiny" if not self.measures else "full" if self.device == "cuda" else "cpu"

    @property
    def clock(self) -> timing.HostClock | timing.DeviceClock:
        if self._clock is None:
            self._clock = timing.device_clock() if self.device == "cuda" and self.measures else timing.HostClock()
        return self._clock

    @property
    def ceilings(self) -> Ceilings:
        if self._ceilings is None:
            seconds = self.seconds / 2 if self.measures else 0
            self._ceilings = measure_ceilings(self.device, self.clock, seconds, tiny=not self.measures)
        return self._ceilings

    def add(self, line: Line) -> None:
        if self.results is None:
            self.results = Results.here()
            self.before = Results.committed(self.results.device)
        older = self.before.lines.get(line.bench) if self.before else None
        if older and older.pace and line.pace:
            line.gates.append(regression_gate(line.pace, older.pace))
        self.results.add(line)
        # at once: what a later bench breaks must not take this with it
        self.write()

    def write(self) -> Path:
        path = self.folder / file_of(self.results.device).name
        if self._ceilings:
            self.results.ceilings = self._ceilings.named()
        if self.adds and self.already is None and path.exists():
            self.already = Results.read(path)
        self.results.laid_over(self.already).write(path)
        return path

    def close(self, say) -> None:
        from bench.accept import accept
        from bench.picture import draw

        path = self.write()
        say("")
        for line in table.text(self.results).splitlines():
            say(line)
        for bill in self.bills:
            say("")
            for line in bill.text().splitlines():
                say(line)
        if isinstance(self._clock, timing.DeviceClock) and self._clock.not_captured:
            say(f"\n{len(self._clock.not_captured)} contenders were timed without a CUDA graph: {self._clock.not_captured[0]}")
        say(f"\nresults {path}, pictures {', '.join(map(str, draw(Results.read(path), path.with_suffix('.svg'))))}")
        if self.accept:
            accept(path)
            say(f"the committed results of this device are now {file_of(self.results.device)}")


SESSION = pytest.StashKey[Session]()


class Bench:
    """What a bench is given: who it is measured by, at what size, and where its figures go."""

    def __init__(self, session: Session, fixture):
        self.session, self.fixture = session, fixture
        fixture._mode = "times taken by bench/timing.py"

    @property
    def tiny(self) -> bool:
        return not self.session.measures

    @property
    def device(self) -> str:
        return self.session.device

    @property
    def size(self) -> str:
        return self.session.size

    def hold(self, name: str, benchmark: Benchmark) -> None:
        """Compare what all compute; then, if this run measures, time them and ask the gates."""
        wanted = {peer: work() for peer, work in benchmark.peers.items()}
        ours = benchmark.ours()
        for peer, results in wanted.items():
            error, allowed = disagreement(ours, results), benchmark.tolerance
            assert error <= allowed, f"{name}: ours and {peer} differ by {error:.2g}, more than {allowed:g}"
        del wanted, ours
        floor = self.session.ceilings.floor(*benchmark.work) if any(benchmark.work) else 0.0
        details = {"floor": floor, "absent": benchmark.absent, "per_call": benchmark.per_call, "figures": benchmark.figures}
        line = self.measure(name, {"ours": benchmark.ours, **benchmark.peers}, min_speedup=benchmark.min_speedup, **details)
        if line and benchmark.min_roofline and self.device == "cuda":
            line.gates.append(roofline_gate(line, benchmark.min_roofline))
        self.keep(line)

    def measure(
        self,
        name: str,
        contenders: Mapping[str, timing.Work],
        *,
        min_speedup: Mapping[str, float],
        floor: float = 0.0,
        absent: Mapping[str, str] | None = None,
        per_call: tuple[float, str] = (0, ""),
        figures: Mapping[str, float | str] | None = None,
        host: bool = False,
        capture: bool = True,
        rounds: int = timing.MIN_ROUNDS,
    ) -> Line | None:
        """Time contenders in turns. min_speedup: by peer, the least ratio of its time to ours. host: by the wall clock, also
        where there is a GPU. A smoke run only runs each of them once and gives nothing."""
        if self.tiny:
            timing.once(contenders)
            return None
        clock = timing.HostClock() if host else self.session.clock
        samples = timing.interleave(contenders, clock, self.session.seconds, capture=capture, min_rounds=rounds)
        line = line_of(name, samples, on_gpu=self.device == "cuda" and not host, floor=floor, absent=absent, figures=figures)
        if per_call[0]:
            line.figures[per_call[1]] = per_call[0] / line.ours.median
        line.gates += [peer_gate(peer, line.peers[peer].ratio, times) for peer, times in min_speedup.items()]
        return line

    def seconds_of(self, work: timing.Work) -> float:
        """Of one call, without peers."""
        clock = timing.HostClock() if self.tiny else self.session.clock
        return (
            timing.interleave({"ours": work}, clock, self.session.seconds / 4, capture=False, min_rounds=1).of("ours").median
        )

    def keep(self, line: Line | None) -> None:
        """Keep a line, tell pytest-benchmark, and fail if a gate does."""
        if line is None:
            return
        self.session.add(line)
        self._hand_over(line)
        failed = [f"{gate.name}: {gate.why}" for gate in line.gates if not gate.holds]
        assert not failed, f"{line.bench}: {'; '.join(failed)}"

    def bill(self, bill: budgets.Bill) -> Gate:
        self.session.bills.append(bill)
        return Gate(f"{bill.limit:g} s", bill.fits, f"{bill.total:.1f} s")

    def _hand_over(self, line: Line) -> None:
        """It has no public way to take times that were taken elsewhere: the quartiles stand for its rounds."""
        if self.fixture.disabled or line.unit != "s":
            return
        stats = self.fixture._make_stats(1)
        for seconds in (line.ours.low, line.ours.median, line.ours.high):
            stats.update(seconds)
        self.fixture.extra_info |= {
            "bench": line.bench,
            "peers": {peer: {line.unit: p.value, "ratio": vars(p.ratio)} for peer, p in line.peers.items()},
            "absent": line.absent,
            "roofline_fraction": line.roofline_fraction,
            "figures": line.figures,
            "gates": [vars(gate) for gate in line.gates],
        }


@pytest.fixture
def bench(request, benchmark):
    stop = request.config.getoption("--benchmark-stop")
    if stop and time.perf_counter() - request.config.stash[SESSION].begun > stop:
        pytest.skip(f"not begun: {stop:g} s are over")
    torch.manual_seed(0)
    with quiet_compiler():
        yield Bench(request.config.stash[SESSION], benchmark)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def quick_run(request, tmp_path_factory) -> RunFolder:
    """A run of the quick preset from start to end, as a new user starts it; tiny in a smoke run."""
    path = tmp_path_factory.mktemp("bench") / "quick"
    short = [] if request.config.stash[SESSION].measures else ["--scale", "tiny", "--steps", "2"]
    command = [sys.executable, "-m", "pgolf.run", "--preset", "quick", "--out", str(path), *short]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return RunFolder.existing(path)
