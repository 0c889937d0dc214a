"""Compression of tensors on the wire: Zstandard (RFC 8878), where it makes them smaller, and bounded where it is undone."""

import threading

import numpy as np
import zstandard

from impala.errors import InvalidMessage

# Measured on unrolls of four Atari games (docs/decisions/0023-compression.md). The window reaches back over an unroll's other
# environments to the frame before, which is what a frame is made of.
_PARAMETERS = zstandard.ZstdCompressionParameters.from_level(3, window_log=21)

# Below this the frame's header and the call cost more than they save.
_LEAST_BYTES = 256
# A tensor that did not become this much smaller is left alone for so many unrolls.
_LEAST_SAVED = 0.25
_PAUSE = 100

# Making one takes thirty times as long as using it, and it is not for two threads at once.
_of_thread = threading.local()


class Compressor:
    """Compresses the tensors of one sender, but for those on which it is lost. Of one thread."""

    def __init__(self) -> None:
        self._codec = zstandard.ZstdCompressor(compression_params=_PARAMETERS)
        self._pauses: dict[str, int] = {}

    def compress(self, field: str, elements: np.ndarray) -> bytes | None:
        """Returns one Zstandard frame, which states the size of its content; None where that is better sent as it is.

        Args:
            field: names a tensor that comes again and again: what was learnt of it last time is used.
            elements: C-ordered.
        """
        if elements.nbytes < _LEAST_BYTES:
            return None
        pause = self._pauses.get(field, 0)
        if pause:
            self._pauses[field] = pause - 1
            return None
        compressed: bytes = self._codec.compress(elements.data)
        if len(compressed) > (1.0 - _LEAST_SAVED) * elements.nbytes:
            self._pauses[field] = _PAUSE
            return None
        return compressed


def decompress(data: bytes, size: int, field: str) -> bytes:
    """Returns the content of one Zstandard frame, exactly `size` bytes; allocates no more than those.

    Raises:
        InvalidMessage: `data` is not one whole frame, or does not state `size` as the size of its content.
    """
    expected = f"one Zstandard frame of {size} bytes"
    try:
        stated = zstandard.get_frame_parameters(data).content_size
        # Before anything is allocated, which is done by what the frame states.
        if stated != size:
            came = "none stated" if stated == zstandard.CONTENTSIZE_UNKNOWN else f"{stated} stated"
            raise InvalidMessage(f"{field}.data", expected, came)
        content: bytes = _decompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise InvalidMessage(f"{field}.data", expected, f"{len(data)} bytes that are not one ({error})") from error
    return content


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_of_thread, "decompressor"):
        _of_thread.decompressor = zstandard.ZstdDecompressor()
    decompressor: zstandard.ZstdDecompressor = _of_thread.decompressor
    return decompressor
