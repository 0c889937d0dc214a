"""A TCP proxy that misbehaves on request: a black hole, resets and delay between one actor and its learner."""

import asyncio
import socket
import struct
from contextlib import suppress

_CHUNK_BYTES = 65_536
_SEND_RST = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards connections to a port of this machine, from `start` to `close`.

    In a black hole nothing passes in either direction, nor does the end of a connection, and connections stay open, new ones too;
    afterwards what was held back goes on its way, as TCP has it. The kernel's buffers take in a few hundred KiB meanwhile.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._passes = asyncio.Event()
        self._passes.set()
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay_seconds = 0.0
        self.port = 0

    async def start(self) -> int:
        """Returns the port once it takes connections."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.port

    def hold(self) -> None:
        """Begins a black hole."""
        self._passes.clear()

    def release(self) -> None:
        """Ends it."""
        self._passes.set()

    def reset(self) -> int:
        """Ends every connection with RST, at both ends; returns how many there were."""
        pairs = list(self._pairs)
        for writer in (writer for pair in pairs for writer in pair):
            _reset(writer)
        return len(pairs)

    async def close(self) -> None:
        """Takes no more connections, and ends those that there are."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._forward(reader, writer)
        except asyncio.CancelledError:
            pass  # by `close`; asyncio's server would report it
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passes.wait()
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(writer)  # whoever calls a port that nobody listens on is told so at once
            return
        pair = (writer, there_writer)
        self._pairs.add(pair)
        pumps = [asyncio.create_task(self._pump(reader, there_writer)), asyncio.create_task(self._pump(there_reader, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._pairs.discard(pair)
            for end in pair:
                end.close()  # what was written is still sent
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                await self._passes.wait()
                writer.write(data)
                await writer.drain()
        await self._passes.wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    end = writer.get_extra_info("socket")
    if end is not None:
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _SEND_RST)
    writer.transport.abort()
