"""These networks are too small to share between threads: waiting for each other would take most of the time."""

import pytest

from pgolf.kernels.threads import torch_threads


@pytest.fixture(autouse=True)
def one_thread():
    with torch_threads(1):
        yield
