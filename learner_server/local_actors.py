"""Actor processes on the learner's own machine: started with it, looked after, and ended with it."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from impala.errors import ImpalaError
from impala.logs import LogFormat

log = logging.getLogger(__name__)

# An actor that dies this soon after its start, this often in a row, will not do better the next time.
_SHORT_LIFE_SECONDS = 10.0
_MOST_SHORT_LIVES = 3
_EXIT_REFUSED = 2


def local_actor_id(index: int) -> str:
    """Returns the id under which a local actor joins."""
    return f"local-{index}"


class LocalActorFailed(ImpalaError):
    """A local actor cannot run; its log says why."""


@dataclass
class _Local:
    process: subprocess.Popen[bytes]
    started: float
    short_lives: int = 0


class LocalActors:
    """`count` processes of impala-actor that call `address`.

    Each holds the reading end of a pipe as its standard input and ends when that closes, so that they end with the learner even
    when it is killed.

    Args:
        logs: folder for what they print, a file an actor.
        flags: more for their command line.
        log_format: of what they print. With json what libraries in C print to standard error has a file of its own.
    """

    def __init__(self, count: int, address: str, logs: Path, *, flags: Sequence[str] = (), log_format: LogFormat = "human") -> None:
        self._flags = ["--learner", address, "--log-format", log_format, *flags]
        self._logs = logs
        self._errors_apart = log_format == "json"
        self._actors = [_Local(self._start(index), time.monotonic()) for index in range(count)]

    def look_after(self) -> None:
        """Starts again what has died.

        Raises:
            LocalActorFailed: one cannot run, or keeps dying as soon as it starts.
        """
        for index, actor in enumerate(self._actors):
            code = actor.process.poll()
            if code is None:
                continue
            lived = time.monotonic() - actor.started
            actor.short_lives = actor.short_lives + 1 if lived < _SHORT_LIFE_SECONDS else 0
            if code == _EXIT_REFUSED or actor.short_lives >= _MOST_SHORT_LIVES:
                raise LocalActorFailed(f"local actor {index} ended with code {code}: {self._last_words(index)}")
            log.warning("local actor %d ended with code %d; starting it again", index, code, extra=_named(index))
            assert actor.process.stdin is not None
            actor.process.stdin.close()
            actor.process, actor.started = self._start(index), time.monotonic()

    def stop(self, grace_seconds: float) -> None:
        """Ends them all, by force those that do not end in time."""
        for actor in self._actors:
            if actor.process.poll() is None:
                actor.process.terminate()
        deadline = time.monotonic() + grace_seconds
        for index, actor in enumerate(self._actors):
            try:
                actor.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("local actor %d did not end in %.0f s; killing it", index, grace_seconds, extra=_named(index))
                actor.process.kill()
                actor.process.wait()
            assert actor.process.stdin is not None
            actor.process.stdin.close()

    def _start(self, index: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "actor_client", *self._flags, "--name", local_actor_id(index), "--end-with-stdin"]
        with self._output(index, "log") as output, self._output(index, "err" if self._errors_apart else "log") as errors:
            # A new session, so that Ctrl-C reaches the learner alone, which ends its actors in order.
            return subprocess.Popen(  # noqa: S603 - our own module, with arguments made here
                command, stdin=subprocess.PIPE, stdout=output, stderr=errors, start_new_session=True
            )

    def _output(self, index: int, ending: str) -> BinaryIO:
        """Returns where an actor prints to: its file, or nowhere where the disk fails, for it can train without."""
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            return self._log_path(index, ending).open("ab")
        except OSError as error:
            text = "local actor %d starts without a log: cannot write to %s: %s"
            log.error(text, index, self._logs, error.strerror, extra=_named(index))
            return Path(os.devnull).open("ab")

    def _log_path(self, index: int, ending: str = "log") -> Path:
        return self._logs / f"actor-{index}.{ending}"

    def _last_words(self, index: int) -> str:
        path = self._log_path(index)
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return _message(lines[-1]) if lines else f"it printed nothing ({self._log_path(index)})"


def _named(index: int) -> dict[str, str]:
    return {"actor_id": local_actor_id(index)}


def _message(line: str) -> str:
    """Returns what a line of a log says, without the rest of it where it is JSON."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, TypeError, KeyError):
        return line
