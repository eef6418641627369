"""The call for a machine with a GPU, with jobs that crash, hang, are killed or cannot be started."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.benchmarks import BENCHMARKS
from bench.gpu import DEFAULT, Call, Job, Part, parts_of, worth

ROOT = Path(__file__).parents[2]


def job(name, code, **options):
    return Job(name, [sys.executable, "-c", code], **options)


def called(folder, *parts, seconds=60.0, beside=4):
    begun = time.monotonic()
    code = Call(parts, folder, seconds, beside).run()
    return code, time.monotonic() - begun, (folder / "log.txt").read_text()


def alive(pid):
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_all_is_well(tmp_path):
    part = Part("tests", 10, [job("one", "print(1)"), job("two", "print(2)")])
    code, _, log = called(tmp_path, part)
    assert code == 0 and "0 jobs did not end well" in log
    assert (tmp_path / "logs" / "tests-two.txt").read_text() == "2\n"
    (kept,) = json.loads((tmp_path / "status.json").read_text())
    assert [one["state"] for one in kept["jobs"]] == ["done", "done"]


def test_a_job_that_crashes_costs_itself_alone_and_shows_its_end(tmp_path):
    crash = "print('before'); import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    raises = "raise ValueError('an illegal address')"
    part = Part("tests", 20, [job("segfault", crash), job("raises", raises), job("after", "pass")])
    code, _, log = called(tmp_path, part, beside=1)
    assert code == 1 and "segfault: exit -11" in log and "raises: exit 1" in log and "after: done" in log
    assert "   | ValueError: an illegal address" in log and "2 jobs did not end well" in log


def test_a_job_that_hangs_is_killed_with_its_children_and_the_call_goes_on(tmp_path):
    """It starts a child, and neither ends when it is asked to."""
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    hang = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {deaf!r}]); print(p.pid, flush=True); {deaf}"
    parts = Part("tests", 2, [job("hangs", hang), job("quick", "pass")]), Part("operators", 5, [job("next", "pass")])
    code, seconds, log = called(tmp_path, *parts, seconds=30)
    assert code == 1 and seconds < 15 and "hangs: cut off" in log and "quick: done" in log and "next: done" in log
    assert not alive((tmp_path / "logs" / "tests-hangs.txt").read_text().strip())


def test_parts_shrink_to_the_time_that_there_is(tmp_path):
    parts = [Part(name, 100, [job("sleeps", "import time; time.sleep(60)")]) for name in ("one", "two")]
    code, seconds, log = called(tmp_path, *parts, seconds=3)
    assert code == 1 and seconds < 12 and log.count("sleeps: cut off") == 4 and "at most 1 s" in log


def test_what_was_not_begun_is_said(tmp_path):
    part = Part("operators", 1, [job("long", "import time; time.sleep(60)", alone=True), job("never", "pass", alone=True)])
    code, _, log = called(tmp_path, part, seconds=1)
    assert code == 1 and "operators, never: not begun" in log


def test_times_are_taken_alone(tmp_path):
    """Each job writes when it began and ended; those that take times overlap with none."""
    stamp = "import time; print(time.time()); time.sleep(0.3); print(time.time())"
    jobs = [job("a", stamp), job("b", stamp), job("c", stamp, alone=True), job("d", stamp, alone=True)]
    called(tmp_path, Part("p", 30, jobs))
    a, b, c, d = ([float(x) for x in (tmp_path / "logs" / f"p-{one.name}.txt").read_text().split()] for one in jobs)
    assert b[0] < a[1] and c[0] > max(a[1], b[1]) and d[0] > c[1]


def test_a_tool_that_is_not_there_is_said(tmp_path):
    code, _, log = called(tmp_path, Part("sanitizer", 5, [Job("memcheck", ["no-such-tool-here"])]))
    assert code == 1 and "memcheck: not started: No such file" in log


def test_the_call_itself_is_stopped(tmp_path):
    """Its jobs end with it, and the folder says how far they came."""
    code = (
        "import signal, sys; from pathlib import Path; from bench.gpu import Call, Job, Part\n"
        "signal.signal(signal.SIGTERM, lambda *about: sys.exit(143))\n"
        "job = Job('sleeps', [sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'])\n"
        f"Call([Part('p', 600, [job])], Path({str(tmp_path)!r}), 600).run()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    log = tmp_path / "logs" / "p-sleeps.txt"
    end = time.monotonic() + 30
    while not (log.exists() and log.read_text().strip()):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert not alive(log.read_text().strip()) and "sleeps: cut off" in (tmp_path / "log.txt").read_text()


def test_every_part_runs_what_exists(tmp_path):
    """Paths and tests that the jobs name are there; every operator with tests for a GPU has a job."""
    forms = {entry.name: entry.forms for entry in BENCHMARKS}
    parts = parts_of(tmp_path, forms, ["pr549"], "python")
    assert set(DEFAULT) <= set(parts)
    tests = {one.name for one in parts["tests"].jobs}
    assert tests == {path.stem for path in (ROOT / "tests/kernels/gpu").glob("test_*.py")}
    for part in parts.values():
        for one in part.jobs:
            for word in one.command:
                if word.startswith(("bench/", "tests/")):
                    assert (ROOT / word.split("::")[0]).exists(), word
                if word.startswith("bench."):
                    assert (ROOT / (word.replace(".", "/") + ".py")).exists(), word
    assert [one.name for one in parts["operators"].jobs][0].startswith("cross-entropy")
    assert worth("cross-entropy, huge vocabulary") < worth("MLP") < worth("Newton-Schulz, wide")
    assert all(one.alone for one in parts["operators"].jobs + parts["steps"].jobs)


def test_operators_are_chosen_by_ids_that_pytest_knows():
    from bench.test_operators import CASES

    known = {case.id for case in CASES}
    nodes = [word for entry in BENCHMARKS for form in entry.forms for word in [f"{entry.name}, {form}"]]
    assert set(nodes) == known


def test_a_failure_is_told_when_it_happens(tmp_path):
    """A test that hangs after one that failed: the traceback is in the log when the process is killed."""
    (tmp_path / "test_x.py").write_text("import time\ndef test_a():\n    assert 1 == 2\ndef test_b():\n    time.sleep(600)\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "bench.instantly",
        "-p",
        "no:cacheprovider",
        str(tmp_path / "test_x.py"),
    ]
    code, _, _ = called(tmp_path / "out", Part("tests", 8, [Job("x", command)]), seconds=8)
    assert code == 1 and "assert 1 == 2" in (tmp_path / "out" / "logs" / "tests-x.txt").read_text()


def test_the_command_knows_its_parts(tmp_path):
    done = subprocess.run(["bash", "bench/gpu.sh", str(tmp_path), "everything"], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHON": sys.executable})  # fmt: skip
    assert done.returncode == 2 and "no part everything" in done.stderr


@pytest.mark.parametrize("parts, failed", [((), 0), (("tests",), 0)], ids=["all", "one"])
def test_a_dry_run(tmp_path, parts, failed):
    """With a python that answers everything at once: the default call begins and ends, and names nothing that failed."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    command = ["bash", "bench/gpu.sh", str(tmp_path / "out"), *parts, "--python", str(fake), "--seconds", "60"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    assert done.returncode == failed, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("0 jobs did not end well")
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("== ")][:-1] == [
        f"== {name}" for name in (parts or DEFAULT)
    ]
