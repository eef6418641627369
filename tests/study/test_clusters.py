"""The same study on a Slurm of one node and on a local Ray: what it comes to is what this machine's processes come to."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pgolf.study import driver as driver_module
from pgolf.study.driver import Driver
from pgolf.study.executors import executor_of
from pgolf.study.ledger import Ledger
from pgolf.study.plan import study_of
from tests.study.fake_stage import Here
from tests.study.test_study import TABLE, summaries, table

ROOT = Path(__file__).parents[2]
SMALL = table(seeds=[1], arms={"five": TABLE["arms"]["five"]})


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A running Slurm; the environment points at it."""
    pytest.importorskip("submitit")
    folder, script = tmp_path_factory.mktemp("slurm"), str(Path(__file__).with_name("slurm.sh"))
    begun = subprocess.run([script, "start", str(folder)], capture_output=True, text=True, timeout=120)
    try:
        if begun.returncode:
            pytest.skip(f"no Slurm here: {begun.stderr.strip().splitlines()[-1] if begun.stderr else begun.returncode}")
        words = shlex.split((folder / "env").read_text())[1:]
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (word.split("=", 1) for word in words):
                patch.setenv(name, value)
            patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
            yield folder
    finally:
        subprocess.run([script, "stop", str(folder)], timeout=60)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    assert run(folder, Here())[0] == 0
    return folder


def run(folder, executor):
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver_module, "STAGE_MODULE", "tests.study.fake_stage")
        return Driver(study_of(SMALL, "small.toml"), folder, executor, say=said.append).run(), said


def test_a_study_on_slurm_that_is_killed_goes_on(slurm, local, tmp_path):
    """Its jobs live on; the next call waits for them instead of doing their work beside them."""
    code = (
        f"import sys; from pathlib import Path; from tests.study.test_clusters import *\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"sys.exit(run(folder, executor_of('slurm', folder / 'cluster', 2, {{'cpus_per_task': 1}}))[0])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "FAKE_SECONDS": "1"})
    ledger, end = tmp_path / "ledger.jsonl", time.monotonic() + 120
    while not ledger.exists() or ledger.read_text().count('"begin"') < 2:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    code, said = run(tmp_path, executor_of("slurm", tmp_path / "cluster", 2, {}))
    assert code == 0 and summaries(tmp_path) == summaries(local), said
    lines = [line for line in Ledger(ledger).lines() if line["kind"] == "begin"]
    assert {line["executor"] for line in lines} == {"slurm"} and list((tmp_path / "cluster").glob("*_submission.sh"))


def test_ray_comes_to_the_same(local, tmp_path):
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        try:
            code, said = run(tmp_path, executor_of("ray", tmp_path, 2, {}))
        finally:
            ray.shutdown()
    assert code == 0, said
    assert summaries(tmp_path) == summaries(local)


@pytest.mark.parametrize("name", ["slurm", "ray"])
def test_an_engine_that_is_not_installed_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, {"slurm": "submitit", "ray": "ray"}[name], None)
    with pytest.raises(Exception, match="needs .*pip install") as error:
        executor_of(name, tmp_path, 0, {})
    assert "\n" not in str(error.value)
