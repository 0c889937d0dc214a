"""Batches to the device and weights off it, while the device computes and the host goes on."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from impala.unroll import Unroll

# One batch is trained on while the next is on its way.
_BATCHES_ON_THE_WAY = 2


@dataclass(frozen=True, kw_only=True)
class DeviceBatch:
    """A batch on the device, or on its way there.

    Attributes:
        unroll: [T, B] trajectories.
        parameter_version: [B], on the host.
    """

    unroll: Unroll[Tensor]
    parameter_version: np.ndarray


class Transfer(ABC):
    """Moves tensors between the host and the learner's device. Of one thread.

    Attributes:
        device: where to.
        overlaps: whether the host is free while the device computes, so that the next batch may be fetched meanwhile.
    """

    device: torch.device
    overlaps: bool

    @abstractmethod
    def upload(self, batch: Unroll[np.ndarray]) -> DeviceBatch:
        """Starts to move a batch to the device. At most one batch may be on its way that nothing was computed from yet."""

    @abstractmethod
    def await_uploads(self) -> None:
        """Has the device, not the host, wait for the uploads so far before it computes what it is given from now on."""

    @abstractmethod
    def download(self, tensors: Mapping[str, Tensor]) -> Callable[[], Mapping[str, Tensor]]:
        """Starts to move tensors, as they are once all has been computed that the device was given so far, to the host.

        Returns:
            A function that waits and returns them, good until the next download.
        """


class HostTransfer(Transfer):
    """Nothing moves: the CPU trains where batches lie."""

    device = torch.device("cpu")
    overlaps = False

    def upload(self, batch: Unroll[np.ndarray]) -> DeviceBatch:
        return DeviceBatch(unroll=batch.map(torch.from_numpy), parameter_version=batch.parameter_version)

    def await_uploads(self) -> None:
        pass

    def download(self, tensors: Mapping[str, Tensor]) -> Callable[[], Mapping[str, Tensor]]:
        return lambda: tensors


class CudaTransfer(Transfer):
    """Through pinned memory, made once, which a device reads and writes by itself; uploads on a stream of their own."""

    overlaps = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Batches come in turn; the memory of one is written again when the device has read it.
        self._pinned: list[list[Tensor]] = [[] for _ in range(_BATCHES_ON_THE_WAY)]
        self._read = [torch.cuda.Event() for _ in range(_BATCHES_ON_THE_WAY)]  # type: ignore[no-untyped-call]
        self._turn = 0
        self._downloaded: dict[str, Tensor] = {}

    def upload(self, batch: Unroll[np.ndarray]) -> DeviceBatch:
        turn, self._turn = self._turn, (self._turn + 1) % _BATCHES_ON_THE_WAY
        self._read[turn].synchronize()  # returns at once: two batches ago
        pinned = self._pinned[turn]
        places = itertools.count()
        computing = torch.cuda.current_stream(self.device)

        def move(array: np.ndarray) -> Tensor:
            source, place = torch.from_numpy(array), next(places)
            if place == len(pinned):
                pinned.append(torch.empty(0))
            if (pinned[place].shape, pinned[place].dtype) != (source.shape, source.dtype):
                pinned[place] = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            moved = pinned[place].copy_(source).to(self.device, non_blocking=True)
            # Its memory must not go to another tensor of the upload stream while the device still computes from it.
            moved.record_stream(computing)
            return moved

        with torch.cuda.stream(self._stream):
            unroll = batch.map(move)
            self._read[turn].record()
        return DeviceBatch(unroll=unroll, parameter_version=batch.parameter_version)

    def await_uploads(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def download(self, tensors: Mapping[str, Tensor]) -> Callable[[], Mapping[str, Tensor]]:
        for name, tensor in tensors.items():
            if name not in self._downloaded:
                self._downloaded[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._downloaded[name].copy_(tensor, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(self.device))

        def wait() -> Mapping[str, Tensor]:
            arrived.synchronize()
            return {name: self._downloaded[name] for name in tensors}

        return wait


def transfer_to(device: torch.device) -> Transfer:
    """Returns what moves tensors to a device and back."""
    return CudaTransfer(device) if device.type == "cuda" else HostTransfer()
