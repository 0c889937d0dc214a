"""The proxy of a chaos run: it forwards, and misbehaves on request."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from benchmarks.chaos_proxy import Proxy
from benchmarks.processes import free_ports

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
# What must not come has this long to come.
MOMENT_SECONDS = 0.1


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1024):
            writer.write(data)
    except ConnectionError:
        pass
    finally:
        writer.close()


def through_a_proxy(test: Callable[[Proxy], Awaitable[None]]) -> None:
    """Runs a test with a proxy before an echo."""

    async def run() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        proxy = Proxy(server.sockets[0].getsockname()[1])
        await proxy.start()
        try:
            await asyncio.wait_for(test(proxy), 60.0)
        finally:
            await proxy.close()
            server.close()

    asyncio.run(run())


async def connect(proxy: Proxy) -> Connection:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def ask(connection: Connection, text: bytes) -> bytes:
    reader, writer = connection
    writer.write(text)
    return await reader.readexactly(len(text))


async def is_silent(connection: Connection) -> bool:
    try:
        await asyncio.wait_for(connection[0].read(1), MOMENT_SECONDS)
    except TimeoutError:
        return True
    return False


def test_bytes_pass_there_and_back() -> None:
    async def test(proxy: Proxy) -> None:
        connection = await connect(proxy)
        assert await ask(connection, b"hello") == b"hello"
        connection[1].close()

    through_a_proxy(test)


def test_in_a_black_hole_nothing_passes_and_afterwards_everything_does() -> None:
    async def test(proxy: Proxy) -> None:
        old = await connect(proxy)
        assert await ask(old, b"before") == b"before"
        proxy.hold()
        new = await connect(proxy)
        for reader_writer in (old, new):
            reader_writer[1].write(b"held")
        assert await is_silent(old)
        assert await is_silent(new)
        proxy.release()
        for reader, writer in (old, new):
            assert await reader.readexactly(4) == b"held"
            writer.close()

    through_a_proxy(test)


def test_a_reset_ends_connections_that_are_open_and_none_that_come_later() -> None:
    async def test(proxy: Proxy) -> None:
        connection = await connect(proxy)
        assert await ask(connection, b"before") == b"before"
        assert proxy.reset() == 1
        with pytest.raises(ConnectionResetError):
            await connection[0].read(1)
        connection[1].close()
        later = await connect(proxy)
        assert await ask(later, b"after") == b"after"
        later[1].close()

    through_a_proxy(test)


def test_a_port_that_nobody_listens_on_resets_at_once() -> None:
    async def run() -> None:
        proxy = Proxy(free_ports(1)[0])
        await proxy.start()
        reader, writer = await connect(proxy)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 60.0)
        writer.close()
        await proxy.close()

    asyncio.run(run())


def test_delay_holds_back_each_way() -> None:
    async def test(proxy: Proxy) -> None:
        proxy.delay_seconds = 0.05
        connection, began = await connect(proxy), time.monotonic()
        assert await ask(connection, b"slow") == b"slow"
        assert time.monotonic() - began >= 2 * 0.05 - 0.01
        connection[1].close()

    through_a_proxy(test)
