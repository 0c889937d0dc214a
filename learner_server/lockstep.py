"""Lockstep: an actor is answered when its unroll has been trained on, so that its next one is of the weights that came of it."""

import asyncio
import threading
from dataclasses import dataclass


@dataclass(eq=False)
class _Held:
    """A call that waits until so many batches were trained on."""

    batch: int
    released: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


class Lockstep:
    """Knows which batch each actor's newest unroll is in, and holds its answer back until that was trained on.

    The queue has a lane for each actor, and every batch takes one unroll of each, in the order in which they got their places. So
    an actor's n-th unroll is in the n-th batch, whatever the others do, and whichever process sent it: one that died and came back
    may find an unroll of its earlier life before its own.

    Args:
        actors: of the run; their indices are 0 to actors - 1.
    """

    def __init__(self, actors: int) -> None:
        self._lock = threading.Lock()
        self._placed = [0] * actors
        self._trained = 0
        self._held: list[_Held] = []
        self._ended = False

    def note_place(self, index: int) -> None:
        """One more unroll of an actor got its place in the queue. Any thread."""
        with self._lock:
            self._placed[index] += 1

    def note_trained(self) -> None:
        """The oldest batch was trained on, or given up, and what came of it is published. Training thread."""
        with self._lock:
            self._trained += 1
            self._release()

    def end(self) -> None:
        """Holds no answer back from now on: nothing more is trained on."""
        with self._lock:
            self._ended = True
            self._release()

    async def hold(self, index: int) -> None:
        """Returns when everything that an actor has sent was trained on, or nothing more will be. Event loop only."""
        with self._lock:
            if self._is_free(self._placed[index]):
                return
            loop = asyncio.get_running_loop()
            held = _Held(self._placed[index], loop.create_future(), loop)
            self._held.append(held)
        await held.released

    def _is_free(self, batch: int) -> bool:
        return self._ended or batch <= self._trained

    def _release(self) -> None:
        free = [held for held in self._held if self._is_free(held.batch)]
        self._held = [held for held in self._held if not self._is_free(held.batch)]
        for held in free:
            held.loop.call_soon_threadsafe(_resolve, held.released)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():  # else its caller is gone
        future.set_result(None)
