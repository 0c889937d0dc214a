"""Connections that do not speak HTTP/2, or speak it badly."""

import asyncio
import random
from contextlib import suppress

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_TALKS = (
    b"",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /impala.v1.Learner/Join HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"\x00" * 64,
    b"\xff" * 64,
    _PREFACE[:9],
    _PREFACE,
    _PREFACE + _SETTINGS,
)


async def send_garbage(address: str, rng: random.Random) -> None:
    """Opens a connection, says something that makes no sense, and hangs up, now and then without a word of farewell."""
    host, _, port = address.rpartition(":")
    with suppress(OSError, asyncio.TimeoutError):
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), 10)
        try:
            writer.write(_talk(rng))
            await asyncio.wait_for(writer.drain(), 10)
            if rng.random() < 0.5:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(reader.read(4096), 0.05)
        finally:
            if rng.random() < 0.3:
                writer.transport.abort()
            writer.close()


def _talk(rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return rng.choice(_TALKS)
    if rng.random() < 0.3:
        return rng.randbytes(rng.randrange(1, 2000))
    return _PREFACE + _SETTINGS + b"".join(_frame(rng) for _ in range(rng.randrange(1, 12)))


def _frame(rng: random.Random) -> bytes:
    """Returns a frame of a known or unknown type, whose length, flags, stream and content need not fit."""
    content = rng.randbytes(rng.choice((0, 1, 4, 5, 8, 9, 100)))
    length = len(content) if rng.random() < 0.8 else rng.choice((0, 1, 2**14, 2**24 - 1))
    kind, flags = rng.choice((*range(10), 255)), rng.choice((0, 1, 4, 5, 8, 0x20, 0xFF))
    stream = rng.choice((0, 1, 1, 3, 2, 2**31 - 1))
    return length.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content
