"""Counters that outlive the process that counts: in a file's pages, which the system keeps whatever kills who wrote them.

A line of metrics comes every half second. A learner that is killed in between has acknowledged unrolls that no line knows of;
these counters know them, for they are written before the acknowledgement is. Only the machine's own death loses them, and then the
last line counts.
"""

import json
import os
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

# Written in turn, so that one is whole whenever the writer is killed. A page each.
_SLOTS, _SLOT_BYTES = 2, 4096
# CRC-32 of all that follows; how often was written, which tells the newer; the length of the JSON that comes next.
_HEADER = struct.Struct("<IQI")
_CHECKED_FROM = 4


class CounterFile:
    """Keeps a run's newest counters, of a few microseconds' work each time. For one thread at a time.

    Where the file cannot be made, or no longer be written, nothing is kept: metrics and checkpoints say that the disk fails.

    Args:
        path: the file, made if it is not there; what is in it stays until the first `write`.
    """

    def __init__(self, path: Path) -> None:
        self._turn = _newest(path)[0]
        self._descriptor: int | None = None
        with suppress(OSError):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            # Taken at once, for the disk may be full when it is needed.
            os.posix_fallocate(self._descriptor, 0, _SLOTS * _SLOT_BYTES)

    def write(self, counters: Mapping[str, Any]) -> None:
        """Replaces what is kept by `counters`, JSON values of at most 4 kB."""
        if self._descriptor is None:
            return
        self._turn += 1
        text = json.dumps(counters).encode()
        checked = _HEADER.pack(0, self._turn, len(text))[_CHECKED_FROM:] + text
        slot = struct.pack("<I", zlib.crc32(checked)) + checked
        assert len(slot) <= _SLOT_BYTES, f"{len(slot)} bytes of counters"
        with suppress(OSError):
            os.pwrite(self._descriptor, slot, self._turn % _SLOTS * _SLOT_BYTES)

    def close(self) -> None:
        """Lets go of the file; nothing is kept any more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_counters(path: Path) -> dict[str, Any] | None:
    """Returns what was written last, or None where nothing was, or nothing that is whole."""
    return _newest(path)[1]


def _newest(path: Path) -> tuple[int, dict[str, Any] | None]:
    """Returns the turn of the newest whole slot and its counters; 0 and None where there is none."""
    try:
        data = path.read_bytes()[: _SLOTS * _SLOT_BYTES]
    except OSError:
        return 0, None
    slots = [_read(data[start : start + _SLOT_BYTES]) for start in range(0, len(data), _SLOT_BYTES)]
    return max(slots, key=lambda slot: slot[0], default=(0, None))


def _read(slot: bytes) -> tuple[int, dict[str, Any] | None]:
    if len(slot) < _HEADER.size:
        return 0, None
    check, turn, length = _HEADER.unpack_from(slot)
    end = _HEADER.size + length
    if end > len(slot) or zlib.crc32(slot[_CHECKED_FROM:end]) != check:
        return 0, None
    counters = json.loads(slot[_HEADER.size : end])
    return turn, counters
