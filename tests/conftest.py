"""What holds for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.programs import Programs

# As the programs do: two threads that wait for each other on a busy machine make steps of microseconds take seconds.
torch.set_num_threads(1)


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Starts programs, and ends those that a test leaves running."""
    programs = Programs(tmp_path)
    yield programs
    programs.end()
