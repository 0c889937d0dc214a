"""Actors that come and go: real ones, in processes forked off one that has everything imported, so that a start costs little."""

import logging
import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field

_CONTEXT = multiprocessing.get_context("forkserver")
# No channel is open in the process that others are forked off: these modules only define things.
_PRELOADED = ["actor_client.__main__", "benchmarks.slow_cartpole", __name__]

# A few at a time, whatever the dice say.
_MOST_AT_ONCE = 8
_END_SECONDS = 20.0


def act(arguments: list[str]) -> None:
    """Is an actor, with the command line of one; runs in a process of its own."""
    from actor_client.__main__ import main

    # Its log would be of two hours of joining.
    logging.disable(logging.INFO)
    sys.argv = ["impala-actor", *arguments]
    main()


@dataclass
class Visit:
    """One actor that came: its process, when it goes, and how."""

    name: str
    process: multiprocessing.process.BaseProcess
    leaves_at: float
    number: signal.Signals
    told: float | None = None


@dataclass
class PassersBy:
    """Has actors come every few seconds, and go.

    Args:
        arguments: of every actor, besides its name.
        mean_gap: seconds between two that come, exponential.
        mean_stay: seconds that one stays, exponential.
        returning: share that come under the name of one that has gone.
    """

    arguments: list[str]
    seed: int
    mean_gap: float = 5.0
    mean_stay: float = 12.0
    returning: float = 0.2
    joined: int = 0
    came_back: int = 0
    terminated: int = 0
    killed: int = 0
    # What ended otherwise than it was told to: a name and an exit code each.
    ended_badly: list[tuple[str, int | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        _CONTEXT.set_forkserver_preload(_PRELOADED)
        self._dice = random.Random(self.seed)  # noqa: S311 - a schedule, not a secret
        self._present: list[Visit] = []
        self._gone: list[str] = []
        self._next_at = time.monotonic()

    def look_after(self) -> None:
        """Starts who is due to come, tells those to go who are due to, and takes note of who went."""
        now = time.monotonic()
        for visit in list(self._present):
            self._look_after(visit, now)
        if now >= self._next_at:
            # Drawn before the question whether there is room, so that the schedule is the seed's alone.
            gap, stay = self._dice.expovariate(1 / self.mean_gap), self._dice.expovariate(1 / self.mean_stay)
            number = self._dice.choice((signal.SIGTERM, signal.SIGKILL))
            returns, which = self._dice.random() < self.returning, self._dice.random()
            self._next_at += gap
            if len(self._present) < _MOST_AT_ONCE:
                self._come(now + stay, number, which if returns else None)

    def _come(self, leaves_at: float, number: signal.Signals, which: float | None) -> None:
        again = which is not None and bool(self._gone)
        name = self._gone.pop(int((which or 0.0) * len(self._gone))) if again else f"passer-by-{self.joined}"
        process = _CONTEXT.Process(target=act, args=([*self.arguments, "--name", name],), name=name)
        process.start()
        self.joined += 1
        self.came_back += again
        self._present.append(Visit(name, process, leaves_at, number))

    def _look_after(self, visit: Visit, now: float) -> None:
        code = visit.process.exitcode
        if code is not None:
            wanted = 0 if visit.number is signal.SIGTERM else -signal.SIGKILL
            # One that is told before it has installed its handler ends by the signal itself.
            if visit.told is None or code not in (wanted, -visit.number):
                self.ended_badly.append((visit.name, code))
            self._forget(visit)
        elif visit.told is None and now >= visit.leaves_at:
            visit.told = now
            self.terminated += visit.number is signal.SIGTERM
            self.killed += visit.number is signal.SIGKILL
            assert visit.process.pid is not None
            os.kill(visit.process.pid, visit.number)
        elif visit.told is not None and now >= visit.told + _END_SECONDS:
            self.ended_badly.append((visit.name, None))
            visit.process.kill()
            visit.process.join()
            self._forget(visit)

    def _forget(self, visit: Visit) -> None:
        visit.process.join()
        visit.process.close()
        self._present.remove(visit)
        self._gone.append(visit.name)

    def close(self) -> None:
        """Ends those that are still here."""
        for visit in list(self._present):
            visit.process.terminate()
            visit.process.join(_END_SECONDS)
            visit.process.kill()
            visit.process.join()
            self._present.remove(visit)
