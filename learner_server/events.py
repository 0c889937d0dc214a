"""TensorBoard event files, written on the calling thread, so that it hears of a disk that fails and goes on all the same.

torch's SummaryWriter writes on a thread of its own, which ends with the first failure for good.
"""

import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from run_directory.files import append_whole

# Within a process and a second, as the second event file of a folder must come after the first.
_numbers = itertools.count()


class EventWriter:
    """Appends scalars to one event file, made with the first of them.

    Args:
        folder: where; made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self._path = folder / name
        self._whole_bytes = 0

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Writes scalars by name, at a step.

        Raises:
            OSError: they are not written, and what was written before can still be read.
        """
        # Late: a learner that is about to train needs it, and nobody else.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        events = [Event(wall_time=time.time(), step=step, summary=Summary(value=values))]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as file:
            if file.tell() > self._whole_bytes:  # behind half a record nothing can be read
                file.truncate(self._whole_bytes)
            if not self._whole_bytes:
                events.insert(0, Event(wall_time=time.time(), file_version="brain.Event:2"))
            append_whole(file, b"".join(_record(event.SerializeToString()) for event in events))
            self._whole_bytes = file.tell()


def _record(data: bytes) -> bytes:
    """Returns a TFRecord: length, its checksum, data, its checksum."""
    length = len(data).to_bytes(8, "little")
    return b"".join((length, _masked_crc32c(length), data, _masked_crc32c(data)))


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_CASTAGNOLI if value & 1 else 0)  # noqa: PLW2901 - eight bits of it go, one after the other
        table.append(value)
    return table


# The reversed polynomial of CRC-32C. TensorBoard's own function brings half a second of imports.
_CASTAGNOLI = 0x82F63B78
_CRC_TABLE = _crc_table()


def _masked_crc32c(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked.to_bytes(4, "little")
