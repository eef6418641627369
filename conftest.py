"""`-n auto` (pyproject.toml): folders of tests run with a worker a core; files, single tests and the bench in this process."""

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parent / "tests"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    paths = [Path(argument.split("::")[0]).resolve() for argument in config.args]
    whole = all(path.is_dir() and TESTS in (path, *path.parents) for path in paths)
    return len(os.sched_getaffinity(0)) if whole else 0
