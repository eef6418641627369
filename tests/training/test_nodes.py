"""Two nodes, each in a network namespace of its own with a cable between them: one is killed, and the run goes on."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pgolf.training import checkpoint
from tests.training.node import STEPS, settings
from tests.training.tiny import losses, run

ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.97.0.1", "10.97.0.2")


def inside(node: subprocess.Popen) -> list[str]:
    return ["nsenter", "-t", str(node.pid), "-U", "-n", "--preserve-credentials"]


def opened(command: list[str]) -> subprocess.Popen:
    """A process that keeps a new network namespace open; it has one as soon as its name is another than ours."""
    ours, node = os.readlink("/proc/self/ns/net"), subprocess.Popen(command, stderr=subprocess.DEVNULL)
    for _ in range(100):
        time.sleep(0.05)
        if node.poll() is not None:
            pytest.skip("this system allows no network namespaces")
        if os.readlink(f"/proc/{node.pid}/ns/net") not in (ours, opened.last):
            break
    opened.last = os.readlink(f"/proc/{node.pid}/ns/net")
    return node


opened.last = ""


@pytest.fixture
def nodes():
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        pytest.skip("needs unshare, nsenter and ip")
    first = opened(["unshare", "-rn", "sleep", "300"])
    both = [first]
    try:
        both.append(opened([*inside(first), "unshare", "-n", "sleep", "300"]))
        cable = ["ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(both[1].pid)]
        if subprocess.run([*inside(first), *cable], capture_output=True).returncode:
            pytest.skip("this system allows no virtual cable between namespaces")
        for node, address in zip(both, ADDRESSES, strict=True):
            for words in (f"addr add {address}/24 dev cable", "link set cable up", "link set lo up"):
                subprocess.run([*inside(node), "ip", *words.split()], check=True)
        yield both
    finally:
        for node in both:
            node.kill()
            node.wait()


def start(node: subprocess.Popen, rank: int, folder: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--node-rank",
        str(rank),
    ]
    command += ["--master-addr", ADDRESSES[0], "--master-port", "29500", "-m", "tests.training.node", str(folder)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "cable", "OMP_NUM_THREADS": "1"}
    with open(folder / f"{rank}.out", "ab") as log:
        return subprocess.Popen(
            [*inside(node), *command], cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def kill_all(node: subprocess.Popen) -> None:
    """Everything that runs on a node, as a loss of power does it; what holds its namespace open stays."""
    space = os.readlink(f"/proc/{node.pid}/ns/net")
    for process in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            if process != node.pid and os.readlink(f"/proc/{process}/ns/net") == space:
                os.kill(process, signal.SIGKILL)


def test_a_node_is_killed_and_the_run_goes_on(nodes, tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    running = [start(node, rank, folder) for rank, node in enumerate(nodes)]
    try:
        end = time.monotonic() + 120
        while not (folder / checkpoint.NAME).exists() or checkpoint.read(folder / checkpoint.NAME)[1]["step"] < 3:
            assert time.monotonic() < end and running[0].poll() is None, (folder / "0.out").read_text()[-2000:]
            time.sleep(0.1)
        kill_all(nodes[1])
        assert running[0].wait(timeout=120) != 0 and not (folder / "found.json").exists()
        running = [start(node, rank, folder) for rank, node in enumerate(nodes)]
        assert [one.wait(timeout=120) for one in running] == [0, 0], (folder / "0.out").read_text()[-2000:]
    finally:
        for node in nodes:
            kill_all(node)
        for one in running:
            one.wait()
    found = json.loads((folder / "found.json").read_text())
    _, events = run(settings(), tmp_path / "one")
    assert found["ranks"] == 2 and 3 <= found["begun"] < STEPS
    assert found["losses"] == pytest.approx(losses(events)[found["begun"] :], abs=1e-5)
