"""What holds for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import actor_client.run
from tests.programs import Programs

# As the programs do: two threads that wait for each other on a busy machine make steps of microseconds take seconds.
torch.set_num_threads(1)


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Starts programs, and ends those that a test leaves running."""
    programs = Programs(tmp_path)
    yield programs
    programs.end()


@pytest.fixture(scope="session", autouse=True)
def memory_is_left_alone() -> Iterator[None]:
    """Has actors in this process keep to torch's threads: glibc is told to keep freed memory in programs alone.

    With it, two of three whole runs ended with gRPC's poller closing another test's pipe ("epoll_wait error: Bad file descriptor");
    that it is the cause is a guess.
    """
    before = actor_client.run.prepare_processor
    actor_client.run.prepare_processor = torch.set_num_threads
    yield
    actor_client.run.prepare_processor = before
