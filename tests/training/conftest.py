import pytest

from pgolf.kernels.threads import torch_threads


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small only lose by sharing their work; on a busy machine they lose by a hundred."""
    with torch_threads(1):
        yield
