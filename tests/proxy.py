"""A TCP proxy between actors and a learner that can go silent and reset connections: the network's faults, without root."""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_CHUNK_BYTES = 65_536
# That wait in a silent direction; beyond that the sender's kernel holds on to what it has.
_CHUNKS_HELD = 64


class Proxy:
    """Passes connections on to `target`, HOST:PORT, from a port of its own. Every method may be called from any thread.

    While a direction is silent nothing passes in it: no bytes, no end of a connection, no reset. What a sender's kernel has room
    for waits, and passes afterwards, as over a link that comes back. New connections are taken and heard of nowhere.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.accepted = 0
        # Connections that an actor, and that the target, has ended, whether or not the other end has heard of it.
        self.ended_by_actor = self.ended_by_target = 0
        # One for each direction; set while it passes.
        self._to_target, self._from_target = asyncio.Event(), asyncio.Event()
        self.heal()
        self._server = self._run(lambda: asyncio.start_server(self._take, "127.0.0.1", 0, limit=_CHUNK_BYTES))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def silence(self, *, to_target: bool = True, from_target: bool = True) -> None:
        """Lets nothing pass any more in these directions."""

        def apply() -> None:
            if to_target:
                self._to_target.clear()
            if from_target:
                self._from_target.clear()

        self._do(apply)

    def heal(self) -> None:
        """Lets everything pass."""
        self._do(lambda: (self._to_target.set(), self._from_target.set()))

    def reset(self) -> int:
        """Resets every connection on both sides; returns how many there were. New ones are taken as before."""
        return self._do(self._reset)

    def close(self) -> None:
        """Ends all connections and joins the thread."""

        async def end() -> None:
            self._server.close()
            self._reset()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._run(end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _reset(self) -> int:
        for writer in self._writers:
            # A close that lingers for no time at all is a reset.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        return len(self._writers) // 2

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        opened = [writer]
        try:
            await self._to_target.wait()
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=_CHUNK_BYTES)
            opened.append(far_writer)
            self._writers.add(far_writer)
            # A group, for it leaves no task behind when one of them ends.
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(reader, far_writer, self._to_target, self._note_end_by_actor))
                group.create_task(self._pass_on(far_reader, writer, self._from_target, self._note_end_by_target))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for each in opened:
                self._writers.discard(each)
                each.transport.abort()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: asyncio.Event, note_end: Callable[[], None]
    ) -> None:
        waiting: asyncio.Queue[bytes] = asyncio.Queue(_CHUNKS_HELD)

        async def take() -> None:
            try:
                while chunk := await reader.read(_CHUNK_BYTES):
                    await waiting.put(chunk)
            except ConnectionResetError:
                pass
            note_end()
            await waiting.put(b"")

        async def give() -> None:
            while chunk := await waiting.get():
                await passes.wait()
                writer.write(chunk)
                await writer.drain()
            await passes.wait()
            # gRPC ends a connection in both directions at once.
            raise ConnectionResetError

        async with asyncio.TaskGroup() as group:
            group.create_task(take())
            group.create_task(give())

    def _note_end_by_actor(self) -> None:
        self.ended_by_actor += 1

    def _note_end_by_target(self) -> None:
        self.ended_by_target += 1

    def _do(self, work: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return work()

        return self._run(run)

    def _run(self, work: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(30.0)


@contextmanager
def proxy_to(target: str) -> Iterator[Proxy]:
    """Yields a proxy to `target`, HOST:PORT, and closes it."""
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
