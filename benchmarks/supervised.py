"""A program that is started again whenever it ends, as an orchestrator's restart policy has it."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_AFTER_A_FAILURE_SECONDS = 1.0


@dataclass
class Life:
    """One process of a program. Times are of `time.monotonic`.

    Attributes:
        arguments: of its command line.
        told: the signals that it was sent.
        listens: when it said that it listens, for a learner.
    """

    process: asyncio.subprocess.Process
    began: float
    arguments: Sequence[str] = ()
    listens: float | None = None
    ended: float | None = None
    told: set[signal.Signals] = field(default_factory=set)

    @property
    def as_told(self) -> bool:
        """Whether it ended because it was told to, as one that is told that should."""
        wanted: set[int] = set()
        if signal.SIGKILL in self.told:
            wanted.add(-signal.SIGKILL)
        if signal.SIGTERM in self.told:
            # By the signal itself where it had no handler yet, or was told a second time.
            wanted |= {0, -signal.SIGTERM}
        return self.process.returncode in wanted

    def send(self, number: signal.Signals) -> bool:
        """Sends a signal; returns whether there was somebody to send it to."""
        if self.process.returncode is not None:
            return False
        try:
            self.process.send_signal(number)
        except ProcessLookupError:
            return False
        self.told.add(number)
        return True


class Supervised:
    """Runs a module of the project until `finish`, again and again.

    Args:
        arguments: of its command line; may be replaced from one start to the next.
        output: what it prints is appended there.
        at_death: called after each process, before the next is started.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], output: Path, *, at_death: Callable[[Life], None] = lambda _: None
    ) -> None:
        self.module = module
        self.arguments = list(arguments)
        self.lives: list[Life] = []
        self.surprises: list[str] = []
        self._output = output
        self._at_death = at_death
        self._finishing = False

    @property
    def life(self) -> Life:
        """The newest process."""
        return self.lives[-1]

    async def run(self) -> int:
        """Returns the exit code of the last process, after `finish`."""
        while True:
            life = await self._live()
            self._at_death(life)
            code = life.process.returncode
            assert code is not None
            if self._finishing:
                return code
            if not life.as_told:
                self.surprises.append(f"{self._output.stem}: ended with {code}, told {sorted(life.told)}")
                await asyncio.sleep(_AFTER_A_FAILURE_SECONDS)

    def finish(self) -> None:
        """The process that runs now is the last one; it ends by itself, or is told to."""
        self._finishing = True

    async def _live(self) -> Life:
        began, arguments = time.monotonic(), list(self.arguments)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-u",
            "-m",
            self.module,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        life = Life(process, began, arguments)
        self.lives.append(life)
        assert process.stdout is not None
        with self._output.open("ab") as output:
            async for line in process.stdout:
                output.write(line)
                output.flush()
                if life.listens is None and b"learner listens on" in line:
                    life.listens = time.monotonic()
            await process.wait()
        life.ended = time.monotonic()
        return life
