"""The weights that actors fetch: one snapshot a version, encoded at most once however many ask."""

import threading
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from impala.wire import encode_parameters


class ParameterStore:
    """The weights that actors are served. Published by the training thread, read by the gRPC event loop.

    Args:
        inject_lag: for experiments: weights are served that are exactly so many publications older than the newest, and while there
            have not been as many, the oldest. The store holds `inject_lag` + 1 copies of the weights, and one of them encoded.
    """

    def __init__(self, inject_lag: int = 0) -> None:
        assert inject_lag >= 0, inject_lag
        self._lock = threading.Lock()
        # The first is served, the last is the newest.
        self._snapshots: deque[tuple[int, Mapping[str, Tensor]]] = deque([(0, {})], maxlen=inject_lag + 1)
        self._encoded: tuple[int, bytes] = (0, b"")
        self._encodings = 0

    @property
    def version(self) -> int:
        """The version that is served: what actors take for the newest; 0 before the first `publish`."""
        with self._lock:
            return self._snapshots[0][0]

    @property
    def newest_version(self) -> int:
        """The version published last; 0 before the first `publish`."""
        with self._lock:
            return self._snapshots[-1][0]

    @property
    def encodings(self) -> int:
        """How many versions were encoded: at most one encoding a version, none for versions that nobody fetched."""
        return self._encodings

    def publish(self, version: int, parameters: Mapping[str, Tensor]) -> None:
        """Makes a copy of `parameters` the newest version.

        Raises:
            ValueError: a version that is not newer; actors would act on one version's weights under another's number.
        """
        snapshot = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in parameters.items()}
        with self._lock:
            newest = self._snapshots[-1][0]
            if version <= newest:
                raise ValueError(f"version: expected more than {newest}, came {version}")
            if not newest:
                self._snapshots.clear()
            self._snapshots.append((version, snapshot))

    def encoded(self) -> tuple[int, bytes]:
        """Returns the served version and its weights as one safetensors file, of one snapshot."""
        with self._lock:
            version, snapshot = self._snapshots[0]
            if self._encoded[0] != version:
                self._encoded = version, encode_parameters(snapshot)
                self._encodings += 1
            return self._encoded
