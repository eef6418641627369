"""Start the interpreter lane in processes of their own and pass on what they said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(str(path) for path in (Path(__file__).parent / "interpreted").glob("test_*.py"))


@pytest.mark.parametrize("half", [0, 1])
def test_lane(half):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *FILES[half::2]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"under the interpreter:\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
