"""Several learners that train as one: what torchrun's processes say to each other. A learner by itself is a group of one.

Every method but `leave` is a meeting: all ranks call it, the same ones in the same order, and each returns when all have come.
Between machines these connections are as open as torch makes them: neither encrypted nor authenticated. Nothing is pickled.
"""

import inspect
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from impala.errors import ConfigError, ImpalaError
from impala.networks import Gather, Network, NetworkOutput

log = logging.getLogger(__name__)

# A rank that does not come to a meeting for this long is taken for lost: longer than a checkpoint, or a network's compilation.
_PATIENCE = timedelta(minutes=10)

# What gloo and NCCL say, as plain RuntimeErrors, when a connection to another rank is lost.
_OF_A_CONNECTION = re.compile(r"gloo|nccl|connection|timed out|timeout|broken pipe|socket", re.IGNORECASE)


class RankLost(ImpalaError):
    """Another rank is gone, and with it what it was to add."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where torchrun put this process.

    Attributes:
        rank: among all processes, from 0.
        size: how many there are.
        local_rank: among those of this machine, from 0.
        machine: among the machines, from 0.
        local_size: how many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    machine: int = 0
    local_size: int = 1

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> "Place":
        """Returns what torchrun says in the environment, of a learner by itself where it says nothing.

        Raises:
            ConfigError: something else than numbers.
        """
        try:
            place = cls(
                rank=int(environment.get("RANK", 0)),
                size=int(environment.get("WORLD_SIZE", 1)),
                local_rank=int(environment.get("LOCAL_RANK", 0)),
                machine=int(environment.get("GROUP_RANK", 0)),
                local_size=int(environment.get("LOCAL_WORLD_SIZE", 1)),
            )
        except ValueError as error:
            raise ConfigError(f"RANK, WORLD_SIZE and the like: expected torchrun's numbers, came {error}") from error
        if not 0 <= place.local_rank <= place.rank < place.size:
            raise ConfigError(f"RANK, WORLD_SIZE and the like: expected LOCAL_RANK <= RANK < WORLD_SIZE, came {place}")
        return place


class Group:
    """A learner by itself. `place` is where it is."""

    place = Place()

    def wrap(self, network: Network) -> Callable[..., NetworkOutput]:
        """Returns what to call in the network's place, so that after a backward pass every gradient is the sum of all ranks'.

        Weights and buffers are rank 0's from here on.
        """
        return network

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Around what meets within torch.

        Raises:
            RankLost: a rank went away meanwhile.
        """
        yield

    def all_true(self, flag: Tensor) -> Tensor:
        """Returns whether [] bool is true everywhere; on its own device, which the host does not wait for."""
        return flag

    def gather(self, *, idle: bool) -> Gather | None:
        """Returns how running statistics see the batches of all ranks; None where there is one.

        Args:
            idle: this rank's is to be left out.
        """
        return None

    def exchange(self, numbers: Sequence[float]) -> list[list[float]]:
        """Returns what each rank gave, in their order; all give equally many."""
        return [list(numbers)]

    def collect(self, values: Any) -> list[Any]:
        """Returns the JSON values that each rank gave, in their order."""
        return [values]

    def share(self, data: bytes) -> bytes:
        """Returns what rank 0 gave."""
        return data

    def leave(self) -> None:
        """Ends the connections, after the last meeting."""


class TorchGroup(Group):
    """The processes that torchrun started, over torch.distributed: gloo between hosts, NCCL between CUDA devices.

    Args:
        place: this process's.
        device: what it trains on.

    Raises:
        ConfigError: torchrun did not start them.
        RankLost: they did not all come.
    """

    def __init__(self, place: Place, device: torch.device) -> None:
        self.place = place
        with self.meeting():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            try:
                dist.init_process_group(backend, timeout=_PATIENCE, rank=place.rank, world_size=place.size)
            except ValueError as error:  # what torchrun also says in the environment: where they meet
                raise ConfigError(f"several learners: expected torchrun to start them, came {error}") from error

    def wrap(self, network: Network) -> Callable[..., NetworkOutput]:
        # Statistics are the same everywhere after every step; torch need not send them again before the next one.
        new_name = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        no_buffers: dict[str, Any] = {"forward_sync_buffers" if new_name else "broadcast_buffers": False}
        with self.meeting():
            wrapped = DistributedDataParallel(network, **no_buffers)
        # Losses are sums over the batch, so gradients are summed; torch by itself takes the mean.
        wrapped.register_comm_hook(None, _sum)
        return wrapped

    @contextmanager
    def meeting(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:  # a RuntimeError as well, and this rank's own
            raise
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or _OF_A_CONNECTION.search(str(error))):
                raise  # a fault of this rank's own: of a network of one's own, say
            said = str(error).partition("\n")[0].partition(". ")[0]
            raise RankLost(f"rank {self.place.rank}: another of the {self.place.size} learners is gone ({said})") from error

    def all_true(self, flag: Tensor) -> Tensor:
        agreed = flag.to(torch.int32)
        dist.all_reduce(agreed, dist.ReduceOp.MIN)
        return agreed.bool()

    def gather(self, *, idle: bool) -> Gather:
        # Of moments: nothing of anything, count included.
        return (lambda moments: self._stack(torch.zeros_like(moments))) if idle else self._stack

    def exchange(self, numbers: Sequence[float]) -> list[list[float]]:
        with self.meeting():
            everyone: list[list[float]] = self._stack(torch.tensor(numbers, dtype=torch.float64)).tolist()
        return everyone

    def collect(self, values: Any) -> list[Any]:
        data = json.dumps(values).encode()
        sizes = [int(size) for (size,) in self.exchange([len(data)])]
        padded = torch.frombuffer(bytearray(data.ljust(max(sizes), b" ")), dtype=torch.uint8)
        with self.meeting():
            rows = self._stack(padded)
        return [json.loads(bytes(row.tolist())) for row in rows]

    def share(self, data: bytes) -> bytes:
        size = int(self.exchange([len(data)])[0][0])
        if size == 0:
            return b""
        ours = bytearray(data if self.place.rank == 0 else size)
        tensor = torch.frombuffer(ours, dtype=torch.uint8)
        with self.meeting():
            dist.broadcast(tensor, src=0)
        return bytes(ours)

    def leave(self) -> None:
        dist.destroy_process_group()

    def _stack(self, tensor: Tensor) -> Tensor:
        rows = [torch.empty_like(tensor) for _ in range(self.place.size)]
        dist.all_gather(rows, tensor)
        return torch.stack(rows)


def _sum(state: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    summed: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
    return summed


def join_group(place: Place, device: torch.device) -> Group:
    """Returns the group of a process: torchrun's, or one of its own.

    Raises:
        ConfigError, RankLost: see `TorchGroup`.
    """
    return TorchGroup(place, device) if place.size > 1 else Group()
