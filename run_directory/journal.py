"""`metrics.jsonl`, written line by line and read back: what a run had counted when its last process ended, however it ended."""

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from run_directory.files import append_whole

# More than a line of metrics is ever long, so that the last whole line lies within this many bytes of the end.
_TAIL_BYTES = 64 * 1024

# Lines that wait in memory for a disk to take them: over eight minutes of them, and a few MB.
_MOST_ASIDE = 1000


class JournalWriter:
    """Appends lines to a run's metrics. What a failing disk did not take is kept aside, and goes before the next line, in order.

    The newest of what is kept aside also goes where there is room already: over a reserve of the disk, taken at the start. So a
    process that is killed while its disk is full has said how far it had come.

    Args:
        path: the file, made with the first line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._aside: deque[bytes] = deque(maxlen=_MOST_ASIDE)
        self._reserve = _reserve_of(path)
        with suppress(OSError):  # without it a full disk costs what it always did
            if not self._reserve.exists() or self._reserve.stat().st_size < _TAIL_BYTES:
                self._reserve.write_bytes(b"\n" * _TAIL_BYTES)

    @property
    def aside(self) -> int:
        """How many lines are kept aside."""
        return len(self._aside)

    def append(self, line: Mapping[str, Any]) -> None:
        """Writes a line, whole or not at all; it can be read at once.

        Raises:
            OSError: it is kept aside, and with it at most the 999 before it.
        """
        self._aside.append(json.dumps(line).encode() + b"\n")
        try:
            self.retry()
        except OSError:
            with suppress(OSError), self._reserve.open("r+b", buffering=0) as file:
                file.write(self._aside[-1])
            raise

    def retry(self) -> None:
        """Writes what is kept aside.

        Raises:
            OSError: some of it still is.
        """
        if not self._aside:
            return
        written = 0
        try:
            # Opened each time, for a disk that comes back may come back as another.
            with self._path.open("ab+", buffering=0) as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # a line that was torn is lost, but must not take ours with it
                        append_whole(file, b"\n")
                for line in self._aside:
                    append_whole(file, line)
                    written += 1
        except OSError:
            # A network filesystem may say only at the closing that it has no room, and not what arrived: better twice than never.
            if written == len(self._aside):
                written = 0
            raise
        finally:
            for _ in range(written):
                self._aside.popleft()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns every whole line of a run's metrics, in order; a line torn by a crash is passed over."""
    return list(each_metrics(path))


def each_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yields what `read_metrics` returns, one at a time: those of a day take more than a GB of memory together."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for text in file:
            line = _parse(text)
            if line is not None:
                yield line


def read_last_metrics(path: Path) -> dict[str, Any] | None:
    """Returns the last whole line, or the one in the reserve where that is further on; None where there is none."""
    last, reserved = _last_of(path), _first_of(_reserve_of(path))
    return reserved if reserved is not None and (last is None or _progress(reserved) > _progress(last)) else last


def _progress(line: Mapping[str, Any]) -> tuple[int, int]:
    return line.get("parameter_version", 0), line.get("env_steps", 0)


def _reserve_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.reserve")


def _first_of(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        return _parse(file.readline(_TAIL_BYTES))


def _last_of(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        for text in reversed(file.read().split(b"\n")):
            line = _parse(text)
            if line is not None:
                return line
    return None


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):  # brackets within brackets without end
        return None
    return line if isinstance(line, dict) else None
