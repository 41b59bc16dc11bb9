"""What the tests of layers run under."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """Draw what a test draws, whichever tests ran before it."""
    torch.manual_seed(0)
