"""The tensor codec: NumPy arrays and `Tensor` messages, with nothing assumed of the sender."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from impala.errors import InvalidMessage
from impala.specs import EntrySpec
from impala.wire.compression import Compressor, decompress
from protos import impala_pb2 as pb

# Of a message, both directions, both ends; and of a tensor's elements once it is decompressed. An unroll of CartPole is 30 kB, the
# paper's deep network 7 MB.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

_MAX_AXES = 8

NUMPY_OF_DTYPE: Mapping[pb.DType, np.dtype[Any]] = {
    pb.DTYPE_BOOL: np.dtype(np.bool_),
    pb.DTYPE_UINT8: np.dtype(np.uint8),
    pb.DTYPE_INT32: np.dtype("<i4"),
    pb.DTYPE_INT64: np.dtype("<i8"),
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_FLOAT64: np.dtype("<f8"),
}
DTYPE_OF_NUMPY = {dtype: number for number, dtype in NUMPY_OF_DTYPE.items()}
assert set(NUMPY_OF_DTYPE) == set(pb.DType.values()) - {pb.DTYPE_UNSPECIFIED}, "a DType of the .proto has no NumPy dtype here"


def encode_tensor(array: np.ndarray, field: str = "", compressor: Compressor | None = None) -> pb.Tensor:
    """Returns an array of any memory layout as a message: C-ordered and little-endian. Copies.

    Args:
        field: names the tensor to `compressor`.
        compressor: makes it smaller where it can; None for raw bytes.

    Raises:
        TypeError: a dtype that the wire does not carry.
    """
    number = DTYPE_OF_NUMPY.get(array.dtype.newbyteorder("<"))
    if number is None:
        raise TypeError(f"tensor: expected one of {[str(dtype) for dtype in DTYPE_OF_NUMPY]}, came {array.dtype}")
    elements = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    compressed = None if compressor is None else compressor.compress(field, elements)
    if compressed is not None:
        return pb.Tensor(dtype=number, shape=array.shape, data=compressed, encoding=pb.ENCODING_ZSTD)
    return pb.Tensor(dtype=number, shape=array.shape, data=elements.tobytes(), encoding=pb.ENCODING_RAW)


def decode_tensor(message: pb.Tensor, field: str) -> np.ndarray:
    """Returns a message as a read-only array, over its own bytes where they are raw. `field` is its path in the .proto, for errors.

    Raises:
        InvalidMessage: unknown dtype or encoding, too many axes, a byte count that is not prod(shape) * itemsize, or more than
            MAX_MESSAGE_BYTES of it where they are compressed.
    """
    dtype = NUMPY_OF_DTYPE.get(message.dtype)
    if dtype is None:
        raise InvalidMessage(f"{field}.dtype", "a DType other than UNSPECIFIED", enum_name(pb.DType, message.dtype))
    shape = decode_shape(message, field)
    # Python integers: a product of absurd sizes cannot wrap around to the right byte count.
    size = math.prod(shape) * dtype.itemsize
    data = _elements(message, size, field)
    if size != len(data):
        raise InvalidMessage(f"{field}.data", f"{size} bytes for {dtype} of shape {list(shape)}", f"{len(data)} bytes")
    if dtype == np.bool_ and not _is_zero_or_one(data):
        raise InvalidMessage(f"{field}.data", "bytes of 0 or 1", f"{max(data)}")
    try:
        return np.frombuffer(data, dtype=dtype).reshape(shape)
    except (ValueError, OverflowError) as error:  # no bytes, as a size is 0, and beside it one that no array can have
        raise InvalidMessage(f"{field}.shape", "sizes that an array can have", str(list(shape))) from error


def _elements(message: pb.Tensor, size: int, field: str) -> bytes:
    """Returns the bytes of a tensor's elements, of which there should be `size`."""
    if message.encoding == pb.ENCODING_RAW:
        return message.data
    if message.encoding != pb.ENCODING_ZSTD:
        raise InvalidMessage(f"{field}.encoding", "ENCODING_RAW or ENCODING_ZSTD", enum_name(pb.Encoding, message.encoding))
    if size > MAX_MESSAGE_BYTES:
        raise InvalidMessage(f"{field}.shape", f"at most {MAX_MESSAGE_BYTES} bytes of elements", f"{size}")
    return decompress(message.data, size, field)


def decode_shape(message: pb.Tensor | pb.TensorSpec, field: str) -> tuple[int, ...]:
    """Returns a tensor's or an entry's shape as claimed: nothing but the number of axes is checked.

    Raises:
        InvalidMessage: too many axes, counted before they are copied.
    """
    if len(message.shape) > _MAX_AXES:
        raise InvalidMessage(f"{field}.shape", f"at most {_MAX_AXES} axes", f"{len(message.shape)}")
    return tuple(message.shape)


def _is_zero_or_one(data: bytes) -> bool:
    return not data or int(np.frombuffer(data, dtype=np.uint8).max()) <= 1


def enum_name(enum: Any, number: int) -> str:
    """Returns the name of an enum's number, also of one that this version does not know."""
    return str(enum.Name(number)) if number in enum.values() else f"unknown number {number}"


def decode_tensor_as(message: pb.Tensor, field: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Returns `decode_tensor`, held against the dtype and shape that this run has.

    Raises:
        InvalidMessage: as `decode_tensor`, or another dtype or shape, or a float that is not finite.
    """
    expected = DTYPE_OF_NUMPY[dtype]
    if message.dtype != expected:
        raise InvalidMessage(f"{field}.dtype", pb.DType.Name(expected), enum_name(pb.DType, message.dtype))
    if decode_shape(message, field) != shape:
        raise InvalidMessage(f"{field}.shape", str(list(shape)), str(list(message.shape)))
    array = decode_tensor(message, field)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidMessage(f"{field}.data", "finite values", f"{np.count_nonzero(~np.isfinite(array))} NaN or infinite")
    return array


def decode_named_tensors(
    messages: Sequence[pb.NamedTensor], field: str, entries: Mapping[str, EntrySpec], leading: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Returns named tensors, of shape leading + entry.shape each.

    Raises:
        InvalidMessage: entries that are missing, unknown, there twice or not as `entries` says.
    """
    # Counted before they are copied.
    fits = len(messages) == len(entries)
    by_name = {message.name: message.tensor for message in messages} if fits else {}
    if not fits or by_name.keys() != entries.keys():
        names = [message.name[:40] for message in messages[:8]]
        raise InvalidMessage(field, f"the entries {sorted(entries)}", f"{len(messages)}: {names}")
    arrays = {}
    for name, entry in entries.items():
        arrays[name] = decode_tensor_as(by_name[name], f"{field}[{name}]", entry.dtype, leading + entry.shape)
        if entry.categories:
            check_choices(arrays[name], f"{field}[{name}]", entry.categories)
    return arrays


def check_choices(array: np.ndarray, field: str, sizes: tuple[int, ...]) -> None:
    """Refuses integers that are not one of 0 .. sizes[i] - 1, i counting the elements of the last axes in C order.

    Args:
        array: [..., *shape], C-ordered and not empty, `shape` having as many elements as there are `sizes`.

    Raises:
        InvalidMessage: as said, of the first element at fault.
    """
    if array.min() >= 0 and array.max() < min(sizes):
        return
    elements = array.reshape(-1, len(sizes))
    lowest, highest = elements.min(axis=0), elements.max(axis=0)
    faults = (lowest < 0) | (highest >= sizes)
    if faults.any():
        index = int(faults.argmax())
        where = f" in element {index}" if len(sizes) > 1 else ""
        raise InvalidMessage(f"{field}.data", f"0 to {sizes[index] - 1}{where}", f"{lowest[index]} to {highest[index]}")


def encode_named_tensors(
    arrays: Mapping[str, np.ndarray], field: str = "", compressor: Compressor | None = None
) -> list[pb.NamedTensor]:
    """Returns named arrays as messages; see `encode_tensor`."""
    return [
        pb.NamedTensor(name=name, tensor=encode_tensor(array, f"{field}[{name}]", compressor)) for name, array in arrays.items()
    ]
