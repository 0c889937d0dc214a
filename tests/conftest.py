"""What holds for all tests."""

from collections.abc import Iterator
from pathlib import Path

import grpc
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


@pytest.fixture(scope="session", autouse=True)
def grpc_stays_up() -> Iterator[None]:
    """Keeps gRPC's core from ending between tests, which it does once the last channel and server are gone.

    Its poller, as it ended, once closed a descriptor that had been given to another test's pipe meanwhile (grpcio 1.85: "epoll_wait
    error: Bad file descriptor"). A channel that calls nobody keeps it up.
    """
    with grpc.insecure_channel("127.0.0.1:1"):
        yield
