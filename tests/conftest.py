import pytest
import torch
from hypothesis import settings

settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.load_profile("same")  # tests.fuzz draws other inputs each time


@pytest.fixture(autouse=True)
def same_numbers():
    """What one test draws depends neither on the day nor on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def one_thread(request):
    """Small tensors are slower on several threads, and the cores may be busy."""
    before = torch.get_num_threads()
    if request.node.get_closest_marker("heavy") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
