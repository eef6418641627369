import pytest

from pgolf.kernels.threads import torch_threads


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Networks this small only wait for a second thread."""
    with torch_threads(1):
        yield
