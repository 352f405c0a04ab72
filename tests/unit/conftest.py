"""The toy rooms, for tests of the spine; one thread, for tests of small models."""

from collections.abc import Iterator

import pytest

from tests.toy_rooms import quick as quick
from tests.toy_rooms import toy as toy


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread of PyTorch, as a run gives small models; restored afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
