"""What the tests of scripts share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Benchmarks set the number of torch's threads; the tests after them need not run with it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
