"""A pytest plugin (`-p bench.instantly`): what fails is told when it fails, so that a process that is killed has told it."""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    if report.failed:
        print(f"\n{report.nodeid} failed:\n{report.longreprtext}", flush=True)
