"""HTTP/2 and gRPC by hand, as no library would send them: for those who mean ill. Clear text, and just enough of it."""

import socket
import struct
from collections.abc import Iterable

_DATA, _HEADERS, RESET, _SETTINGS = 0, 1, 3, 4
_ACK, _END_HEADERS = 1, 4

# What opens a connection: the magic bytes, and settings that change nothing.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Returns one frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def acknowledge_settings() -> bytes:
    """Returns the frame without which the other end does not hold this one to its settings."""
    return frame(_SETTINGS, _ACK, 0, b"")


def kinds(received: bytes) -> list[int]:
    """Returns the kinds of the whole frames in what was received from the connection's start on."""
    found, start = [], 0
    while start + 9 <= len(received):
        found.append(received[start + 3])
        start += 9 + int.from_bytes(received[start : start + 3], "big")
    return found


def begin_call(method: str, stream: int, metadata: Iterable[tuple[str, str]] = ()) -> bytes:
    """Returns the frame that begins a call of /impala.v1.Learner/`method`; `stream` is 1, 3, 5, ... on each connection."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method if method.startswith("/") else f"/impala.v1.Learner/{method}"),
        (":authority", "learner"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *metadata,
    ]
    # Literals without indexing, of fewer than 127 bytes each.
    block = b"".join(bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in fields)
    return frame(_HEADERS, _END_HEADERS, stream, block)


def begin_message(size: int, stream: int) -> bytes:
    """Returns the frame that announces a message of `size` bytes, none of which is in it."""
    return frame(_DATA, 0, stream, b"\0" + struct.pack(">I", size))


def part_of_message(content: bytes, stream: int) -> bytes:
    """Returns the frame with a part of a message."""
    return frame(_DATA, 0, stream, content)


def is_closed(connection: socket.socket) -> bool:
    """Returns whether the other end has closed a connection; reads what it has sent."""
    connection.setblocking(False)
    try:
        while connection.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
