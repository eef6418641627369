"""Start each file of the interpreter lane in a process of its own and pass on what it said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LANE = Path(__file__).parent / "interpreted"


@pytest.mark.parametrize("file", sorted(path.name for path in LANE.glob("test_*.py")))
def test_lane(file):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(LANE / file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{file} under the interpreter:\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
