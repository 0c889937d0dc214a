"""The weights that actors fetch: one snapshot a version, encoded at most once however many ask."""

import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from impala.wire import encode_parameters


class ParameterStore:
    """The newest published weights. Published by the training thread, read by the gRPC event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version = 0
        self._snapshot: Mapping[str, Tensor] = {}
        self._encoded: bytes | None = None
        self._encodings = 0

    @property
    def version(self) -> int:
        """The newest version; 0 before the first `publish`."""
        return self._version

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
            if version <= self._version:
                raise ValueError(f"version: expected more than {self._version}, came {version}")
            self._version, self._snapshot, self._encoded = version, snapshot, None

    def encoded(self) -> tuple[int, bytes]:
        """Returns the newest version and its weights as one safetensors file, of one snapshot."""
        with self._lock:
            if self._encoded is None:
                self._encoded = encode_parameters(self._snapshot)
                self._encodings += 1
            return self._version, self._encoded
