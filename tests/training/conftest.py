import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small only lose by sharing their work; on a busy machine they lose by a hundred."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
