"""Ranks that come together, and ranks that do not."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from pgolf.distributed import World, launch

RANK = """
import os, signal, sys, time
import torch
import pgolf.distributed as distributed
from pgolf.errors import PgolfError
distributed.JOIN_SECONDS, distributed.COLLECTIVE_SECONDS, distributed.HEARTBEAT_SECONDS = 20.0, 5.0, 0.2
what = sys.argv[1] if os.environ["RANK"] == "1" else ""
if what == "never comes":
    store = next(torch.distributed.rendezvous("env://"))
    time.sleep(60)
distributed.JOIN_SECONDS = 6.0 if sys.argv[1] == "never comes" else 60.0
try:
    with distributed.launch("cpu", "test") as world:
        if what == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "ends":
            os._exit(0)
        total = world.sum(torch.tensor([world.rank + 1.0]))
        print("sum", float(total), "of", world.size)
except PgolfError as error:
    print(error)
"""


def ranks(what: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, what], env={**environment, "RANK": rank}, stdout=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]


@pytest.mark.parametrize(
    "what, says",
    [
        ("all is well", "sum 3.0 of 2"),
        ("stops", "rank 1 is missing: it has ended, or does not move"),
        ("ends", "rank 1 is missing: it has ended, or does not move"),
        ("never comes", "rank 1 of 2 did not come to the stage test within 6 s"),
    ],
)
def test_a_missing_rank_is_named_in_finite_time(what, says):
    first, other = ranks(what)
    try:
        said, _ = first.communicate(timeout=90)
        assert said.startswith(says) and len(said.splitlines()) == 1
    finally:
        for process in (first, other):
            process.kill()
            process.wait()


def test_alone_there_is_no_group():
    with launch("cpu") as world:
        assert world == World(0, 1, torch.device("cpu")) and world.is_first
        assert float(world.sum(torch.tensor([2.0]))) == 2.0 and world.start_average([torch.ones(2)]) == []
