"""Kernels compiled ahead through Triton's own launch path, without a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


def warm(cache, *names):
    command = [sys.executable, "-m", "bench.warm", *names, "--jobs", "1"]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    said = re.search(r"(\d+) kernels before, (\d+) compiled, (\d+) forms failed", done.stdout)
    return done, *(map(int, said.groups()) if said else (None, None, None))


def test_launches_are_compiled_once_and_found_again(tmp_path):
    """One of the two has a kernel that a launch refused when one of its global constants was not a number."""
    names = "XSA alone", "logit statistics, small vocabulary"
    done, before, compiled, failed = warm(tmp_path, *names)
    assert (done.returncode, before, failed) == (0, 0, 0) and compiled >= 3, done.stdout + done.stderr
    done, before, again, failed = warm(tmp_path, *names)
    assert (before, again, failed) == (compiled, 0, 0)


def test_an_unknown_name_is_refused(tmp_path):
    done, *_ = warm(tmp_path, "nothing of the kind")
    assert done.returncode == 2 and "no benchmark" in done.stderr
