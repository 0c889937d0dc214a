"""What one actor may ask of the learner at once, and all of them together."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field

from learner_server.actor_registry import Actor

# What an actor may make up for after a pause: the calls of a second. And how many beyond its rate may wait for their time at once,
# with their messages.
_BURST_SECONDS = 1.0
_MOST_PACED = 16


class OverLimit(Exception):
    """An actor asks for more than it may have at once.

    Attributes:
        field: the limit.
    """

    def __init__(self, field: str, most: str) -> None:
        super().__init__(f"{field}: expected at most {most}: try again later")
        self.field = field


@dataclass(kw_only=True)
class ActorLimits:
    """The limits; without arguments there are none. Counts what there is of each; of the event loop alone.

    Attributes:
        calls_per_second: of one actor, those that bring nothing. Two do not count for each unroll that is accepted: its own, and
            one for weights. A few beyond it are made to wait, which slows whoever waits for answers; more are refused.
        unrolls: of one actor that may wait for a place in the queue at once.
        unroll_bytes: of one actor's unrolls that wait, once decompressed. One unroll may wait however large it is.
        all_bytes: the same of all actors together.
        refusal_seconds: for which the answer to a call over a limit is held back, without its message: who asks again at once is
            not answered any faster, and with HTTP/2's limit on calls at once such a connection can make few of them.
    """

    calls_per_second: float = math.inf
    unrolls: float = math.inf
    unroll_bytes: float = math.inf
    all_bytes: float = math.inf
    refusal_seconds: float = 10.0
    _entering_bytes: int = field(default=0, init=False)

    async def pace(self, actor: Actor) -> None:
        """Returns when an actor may make one more call.

        Raises:
            OverLimit: it makes far more of them than it may.
        """
        now = time.monotonic()
        due = max(actor.calls_due, now - _BURST_SECONDS) + 1.0 / self.calls_per_second
        if due - now > _MOST_PACED / self.calls_per_second:
            raise OverLimit("calls_per_second", f"{self.calls_per_second:g} calls a second of one actor that bring nothing")
        actor.calls_due = due
        if due > now:
            await asyncio.sleep(due - now)

    def credit(self, actor: Actor) -> None:
        """Notes that an unroll was accepted: an actor that does its work may make any number of calls."""
        actor.calls_due -= 2.0 / self.calls_per_second

    def check_unrolls(self, actor: Actor) -> None:
        """Raises OverLimit if as many of an actor's unrolls wait as may."""
        if actor.entering >= self.unrolls:
            raise OverLimit("unrolls_in_line", f"{self.unrolls:g} unrolls of one actor that wait for a place")

    def enter(self, actor: Actor, size: int) -> None:
        """Counts an unroll of so many bytes in, until `leave`.

        Raises:
            OverLimit: others that wait take too much memory.
        """
        if self._entering_bytes and self._entering_bytes + size > self.all_bytes:
            raise OverLimit("line_bytes", f"{self.all_bytes:g} bytes of unrolls that wait for a place")
        if actor.entering and actor.entering_bytes + size > self.unroll_bytes:
            raise OverLimit("bytes_in_line", f"{self.unroll_bytes:g} bytes of one actor's unrolls that wait for a place")
        actor.entering += 1
        actor.entering_bytes += size
        self._entering_bytes += size

    def leave(self, actor: Actor, size: int) -> None:
        """Counts an unroll out again."""
        actor.entering -= 1
        actor.entering_bytes -= size
        self._entering_bytes -= size
