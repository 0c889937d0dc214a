"""When a checkpoint is due, and which is the newest whole one: on a disk that fails, soon again, and the one before."""

import time
from pathlib import Path

from impala.errors import CheckpointError
from run_directory.checkpoint import Checkpoint, checkpoint_path, save_checkpoint

# After a failure: this share of the time between checkpoints, and at most so many seconds.
_RETRY_SHARE = 0.1
_MOST_RETRY_SECONDS = 10.0


class CheckpointKeeper:
    """Writes a run's checkpoints.

    Args:
        folder: where.
        seconds: between checkpoints.
        keep: the newest so many are kept.
        version: of the whole checkpoint that the run goes on from; None where there is none.
    """

    def __init__(self, folder: Path, *, seconds: float, keep: int, version: int | None) -> None:
        self._folder, self._seconds, self._keep = folder, seconds, keep
        self._next = time.monotonic() + seconds
        self._newest: Path | None = None
        self._newest_at = 0.0
        if version is not None and (newest := checkpoint_path(folder, version)).exists():
            self._newest = newest
            self._newest_at = time.monotonic() - max(0.0, time.time() - newest.stat().st_mtime)

    @property
    def due(self) -> bool:
        """Whether it is time for the next."""
        return time.monotonic() >= self._next

    @property
    def age_seconds(self) -> float | None:
        """Seconds since the newest whole one was written; None where there is none."""
        return None if self._newest is None else round(time.monotonic() - self._newest_at, 3)

    def write(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint; the next is due in `seconds`, or soon where this one fails.

        Raises:
            CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        wait = min(_RETRY_SHARE * self._seconds, _MOST_RETRY_SECONDS)
        try:
            self._newest = save_checkpoint(self._folder, checkpoint, keep=self._keep)
            self._newest_at, wait = time.monotonic(), self._seconds
        except OSError as error:
            raise CheckpointError(f"checkpoint: cannot write to {self._folder}: {error.strerror}; {self._said()}") from error
        finally:
            # From here, for on a disk that hangs before it fails the attempt itself may take longer than the wait.
            self._next = time.monotonic() + wait

    def _said(self) -> str:
        if self._newest is None:
            return "no whole one was ever written"
        return f"the newest whole one is {self._newest}, written {self.age_seconds:.0f} s ago"
