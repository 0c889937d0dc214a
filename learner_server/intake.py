"""The intake of messages: how many may be on their way in at once, and how long each may take."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc

from impala.errors import InvalidMessage

# Memory set aside for messages that have not come whole, and how many there may be of them, whatever their size.
_MEMORY_BYTES = 2**30
_LEAST, _MOST = 128, 1024
_CANCELLATION_SECONDS = 0.1


def messages_at_once(max_message_bytes: int) -> int:
    """Returns how many messages may be on their way in at once, given how large each may be."""
    return min(_MOST, max(_LEAST, _MEMORY_BYTES // max_message_bytes))


class Intake:
    """Places for messages that are being received. Of the event loop alone.

    A message has so many seconds to come whole. Where all places are taken, newcomers wait for one, in order and unread: of those
    the machine holds no more than HTTP/2 sends ahead. For each that waits, one of those that have a place, the oldest first, has
    `seconds_when_full` in all: senders that drip their messages cannot keep others out.

    Args:
        places: messages at once.
        seconds: that a message may take.
        seconds_when_full: the same where others wait.
    """

    def __init__(self, places: int, *, seconds: float = 120.0, seconds_when_full: float = 20.0) -> None:
        self._free = places
        self._seconds, self._seconds_when_full = seconds, seconds_when_full
        # When each began; the oldest first, like the line.
        self._receiving: dict[asyncio.Timeout, float] = {}
        self._line: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """While open, a message may be received.

        Raises:
            TimeoutError: it took too long.
        """
        await self._enter()
        try:
            # Others that wait may have hurried only those that had a place when they came.
            async with asyncio.timeout(self._seconds_when_full if self._line else self._seconds) as limit:
                self._receiving[limit] = asyncio.get_running_loop().time()
                try:
                    yield
                finally:
                    del self._receiving[limit]
        finally:
            self._leave()

    async def receive(self, context: Any) -> bytes:
        """Returns the one message of a call whose handler runs before it is received.

        Raises:
            TimeoutError: it took too long.
            InvalidMessage: the call has none.
        """
        async with self.place():
            message = await context.read()
        if message is grpc.aio.EOF:
            # Where gRPC, or the caller, has ended the call, its cancellation is about to get here.
            await asyncio.sleep(_CANCELLATION_SECONDS)
            raise InvalidMessage("message", "one", "none")
        received: bytes = message
        return received

    async def _enter(self) -> None:
        if self._free:
            self._free -= 1
            return
        self._hurry_one()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # a place that became free has passed it over already
                    self._line.remove(turn)
            else:
                self._leave()  # it was given a place in the same instant
            raise

    def _leave(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _hurry_one(self) -> None:
        now = asyncio.get_running_loop().time()
        for limit, began in self._receiving.items():
            due = max(now, began + self._seconds_when_full)
            when = limit.when()
            if when is not None and when > due:  # else it was hurried before
                limit.reschedule(due)
                return
