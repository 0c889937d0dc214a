"""Several learners of one group, each in a process of its own, as torchrun would start them."""

import os
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from learner_server.group import Group, Place, join_group
from tests.service import free_port


class Ranks:
    """A group of processes that do what they are told, one thing after the other. Started when first needed.

    Args:
        size: how many.
    """

    def __init__(self, size: int = 2) -> None:
        self._size = size
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def __call__(self, work: Callable[..., None], *arguments: Any) -> None:
        """Has every rank call `work(group, *arguments)`; raises what failed on any of them, and starts anew after that."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((work, arguments))
        failures = [failure for rank, pipe in enumerate(self._pipes) if (failure := _answer(rank, pipe))]
        if failures:
            self.end()
        assert not failures, "\n".join(failures)

    def end(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        context, port = get_context("spawn"), free_port()
        for rank in range(self._size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self._size, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)


def _answer(rank: int, pipe: Connection) -> str:
    try:
        failure: str = pipe.recv()
    except EOFError:
        return f"rank {rank} is gone"
    return failure


def _serve(rank: int, size: int, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    group: Group = join_group(Place(rank=rank, size=size, local_rank=rank), torch.device("cpu"))
    while True:
        work, arguments = pipe.recv()
        try:
            work(group, *arguments)
        except BaseException:
            pipe.send(f"rank {rank}: {traceback.format_exc()}")
            return
        pipe.send("")
