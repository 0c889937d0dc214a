"""Files that are either whole or absent, whatever moment the process dies at."""

import json
import os
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces `path` with `data`: temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    write_synced(temporary, data)
    temporary.replace(path)
    sync_directory(path.parent)


def write_json_atomically(path: Path, value: Any) -> None:
    """Replaces `path` with `value` as indented JSON."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def write_synced(path: Path, data: bytes) -> None:
    """Writes `data` and returns once it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def append_whole(file: FileIO, data: bytes) -> None:
    """Appends all of `data`, or nothing where that fails and the disk still lets a file be made shorter.

    Raises:
        OSError: the disk is full or not writable.
    """
    end, written = file.seek(0, os.SEEK_END), 0
    try:
        while written < len(data):  # a disk that is nearly full takes a part, and says so with the next
            written += file.write(data[written:])
    except OSError:
        with suppress(OSError):
            file.truncate(end)
        raise


def sync_directory(path: Path) -> None:
    """Returns once the names in a folder are on the disk, without which a rename may be lost with the power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
