"""A device that is none: the order in which a CUDA device does things, on the CPU, where doing them too early or too late shows."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from impala.unroll import Unroll
from learner_server.transfer import DeviceBatch, Transfer


class LateDevice(Transfer):
    """Batches arrive when they are awaited, downloads when they are waited for; until then there is garbage.

    Attributes:
        events: what was asked of it, in order: `upload N`, `await`, `download N`, `wait N`, numbered from 1.
    """

    device = torch.device("cpu")
    overlaps = True

    def __init__(self) -> None:
        self.events: list[str] = []
        self._uploads = self._downloads = 0
        self._under_way: list[tuple[Tensor, Tensor]] = []
        self._downloaded: dict[str, Tensor] = {}

    def upload(self, batch: Unroll[np.ndarray]) -> DeviceBatch:
        self._uploads += 1
        self.events.append(f"upload {self._uploads}")

        def move(array: np.ndarray) -> Tensor:
            source = torch.from_numpy(array.copy())
            target = torch.full_like(source, True if source.dtype == torch.bool else 77)
            self._under_way.append((target, source))
            return target

        return DeviceBatch(unroll=batch.map(move), parameter_version=batch.parameter_version)

    def await_uploads(self) -> None:
        self.events.append("await")
        for target, source in self._under_way:
            target.copy_(source)
        self._under_way.clear()

    def download(self, tensors: Mapping[str, Tensor]) -> Callable[[], Mapping[str, Tensor]]:
        self._downloads += 1
        number = self._downloads
        self.events.append(f"download {number}")
        arriving = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        for name, tensor in arriving.items():
            self._downloaded.setdefault(name, torch.empty_like(tensor)).fill_(True if tensor.dtype == torch.bool else 77)

        def wait() -> Mapping[str, Tensor]:
            self.events.append(f"wait {number}")
            for name, tensor in arriving.items():
                self._downloaded[name].copy_(tensor)
            return self._downloaded

        return wait
