"""Mutations that keep enough of a structure to get past the parser: of messages, tensors, JSON, safetensors, and plain bytes."""

import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from impala.wire.tensors import NUMPY_OF_DTYPE
from protos import impala_pb2 as pb

_INTEGERS = (0, 1, 2, 3, 4, 7, 8, 127, 128, 255, 1000, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53)
_LARGE = (*_INTEGERS, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-310, 1e9, -1e9, 3e38, -3e38, 1e308, -1e308, math.inf, -math.inf, math.nan)
_TEXTS = ("", "a", "x" * 129, "x" * 5000, "\x00", "line\nINJECTED", "\x1b[31m", "\U0001f600" * 40, "\u202e", "..", "/")
_JSONS = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    10**30,
    1e999,
    -1e999,
    math.nan,
    "",
    "x",
    "\ud800",
    [],
    {},
    [[]],
    {"": {}},
    [1, "a"],
    [2**40],
)
_TEXTS_OF_JSON = ("", "null", "[" * 5000, '{"a":' * 3000, "1" * 5000, "NaN", "1e999", '"\\ud800"', "{", "\ufeff{}", "[]", "{}")
_DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I8",
    "BOOL",
    "U8",
    "U16",
    "U64",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "C64",
    "X",
    "",
)


def mutate_message(message: Message, rng: random.Random) -> None:
    """Changes one to four things of a message in place, each somewhere within it."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        _mutate_within(message, rng)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Returns bytes with one thing changed that knows nothing of what they are."""
    if not data:
        return rng.randbytes(rng.randrange(1, 20))
    at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return rng.choice(
        (
            lambda: data[:at],
            lambda: data[:at] + data[to:],
            lambda: data[:to] + data[at:],
            lambda: data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:],
            lambda: _with_byte(data, rng.randrange(len(data)), rng.randrange(256)),
            lambda: _with_byte(data, rng.randrange(len(data)), rng.choice((0, 1, 0x7F, 0x80, 0xFF))),
            lambda: data + data,
            lambda: rng.randbytes(len(data)),
        )
    )()


def mutate_json(text: str, rng: random.Random) -> str:
    """Returns JSON with a value of it replaced, removed or nested; now and then text that is none."""
    if rng.random() < 0.15:
        return rng.choice(_TEXTS_OF_JSON)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return rng.choice(_TEXTS_OF_JSON)
    return json.dumps(_mutated_value(value, rng))


def mutate_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Returns a safetensors file with its header's length, an entry of the header or the data changed."""
    if rng.random() < 0.15:
        return mutate_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        _mutate_header(header, rng)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError):
        return mutate_bytes(data, rng)
    written = json.dumps(header).encode()
    if rng.random() < 0.1:
        written = mutate_json(json.dumps(header), rng).encode("utf-8", "surrogatepass")
    stated = rng.choice(_LARGE) if rng.random() < 0.1 else len(written)
    content = data[8 + length :]
    if rng.random() < 0.2:
        content = mutate_bytes(content, rng)
    return (stated % 2**64).to_bytes(8, "little") + written + content


def _mutate_header(header: dict[str, Any], rng: random.Random) -> None:
    name = rng.choice(list(header))
    entry = header[name]
    match rng.randrange(9):
        case 0:
            entry["dtype"] = rng.choice(_DTYPES)
        case 1:  # as many bytes of something else
            entry["dtype"], entry["shape"] = "U8", [entry["data_offsets"][1] - entry["data_offsets"][0]]
        case 2:
            entry["shape"] = [rng.choice(_LARGE) for _ in range(rng.randrange(10))]
        case 3:  # no elements, and beside that a size that none can have
            entry["shape"], entry["data_offsets"] = [0, rng.choice(_LARGE)], [entry["data_offsets"][0]] * 2
        case 4:
            entry["data_offsets"] = sorted(rng.choice(_LARGE) for _ in range(2))
        case 5:
            header["__metadata__"] = rng.choice(({"a": "b"}, {"a": 1}, {}, "x", [1]))
        case 6:
            header[rng.choice(_TEXTS)] = dict(entry)
        case 7:
            del header[name]
        case _:
            entry[rng.choice(("dtype", "shape", "data_offsets"))] = rng.choice(_JSONS)


def _mutated_value(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        match rng.randrange(5):
            case 0:
                return {key: entry for key, entry in value.items() if key != name}
            case 1:
                return {**value, rng.choice(_TEXTS): rng.choice(_JSONS)}
            case _:
                return {**value, name: _mutated_value(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        index = rng.randrange(len(value))
        return [*value[:index], _mutated_value(value[index], rng), *value[index + 1 :]]
    return rng.choice(_JSONS)


def _mutate_within(message: Message, rng: random.Random) -> None:
    if isinstance(message, pb.Tensor) and rng.random() < 0.5:
        rng.choice(_OF_TENSORS)(message, rng)
        return
    present = [(field, value) for field, value in message.ListFields() if field.message_type is not None]
    if present and rng.random() < 0.75:
        field, value = rng.choice(present)
        if field.is_repeated:
            if rng.random() < 0.6:
                _mutate_within(rng.choice(value), rng)
                return
        elif rng.random() < 0.9:
            _mutate_within(value, rng)
            return
    _mutate_field(message, rng.choice(message.DESCRIPTOR.fields), rng)


def _mutate_field(message: Message, field: FieldDescriptor, rng: random.Random) -> None:
    if field.is_repeated:
        _mutate_repeated(getattr(message, field.name), field, rng)
    elif field.message_type is not None:
        if rng.random() < 0.5:
            message.ClearField(field.name)
        else:
            getattr(message, field.name).SetInParent()
    elif rng.random() < 0.05:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _mutated_scalar(getattr(message, field.name), field, rng))


def _mutate_repeated(values: Any, field: FieldDescriptor, rng: random.Random) -> None:
    kept = list(values)
    choice = rng.randrange(7)
    if choice == 0 or not kept:
        kept = [] if kept else [_new_entry(field, rng)]
    elif choice == 1:
        kept.pop(rng.randrange(len(kept)))
    elif choice == 2:
        kept.append(rng.choice(kept))
    elif choice == 3:
        rng.shuffle(kept)
    elif choice == 4:
        kept = [*kept, *[_new_entry(field, rng)] * rng.choice((1, 8, 200))]
    elif field.message_type is None:
        index = rng.randrange(len(kept))
        kept[index] = _mutated_scalar(kept[index], field, rng)
    else:
        kept = [kept[0]] * len(kept)
    if field.message_type is not None:
        kept = [type(entry).FromString(entry.SerializeToString()) for entry in kept]
    del values[:]
    values.extend(kept)


def _new_entry(field: FieldDescriptor, rng: random.Random) -> Any:
    if field.message_type is not None:
        return getattr(pb, field.message_type.name)()
    return _mutated_scalar(field.default_value or 0, field, rng)


def _mutated_scalar(value: Any, field: FieldDescriptor, rng: random.Random) -> Any:
    kind = field.cpp_type
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return rng.choice(_FLOATS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return not value
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 99, 2**31 - 1, -1, -(2**31)))
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return _mutated_text(value, field, rng)
    most = 2**32 if kind == FieldDescriptor.CPPTYPE_UINT32 else 2**64
    nearby = (value + 1, value - 1, value * 2)
    return rng.choice((*nearby, *_LARGE)) % most


def _mutated_text(value: Any, field: FieldDescriptor, rng: random.Random) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return mutate_bytes(value, rng)
    if field.name.endswith("_json"):
        return mutate_json(value, rng).encode("utf-8", "replace").decode()
    return rng.choice((*_TEXTS, value + "x", value[:-1]))


# --- tensors: what is said of the bytes, and the bytes, together or against each other


_MOST_CONTENT = 1 << 20


def _content(tensor: pb.Tensor) -> bytes:
    if tensor.encoding != pb.ENCODING_ZSTD:
        return tensor.data
    try:
        # Our own earlier mutations state sizes that no memory holds.
        if zstandard.get_frame_parameters(tensor.data).content_size <= _MOST_CONTENT:
            return zstandard.ZstdDecompressor().decompress(tensor.data, max_output_size=_MOST_CONTENT)
    except zstandard.ZstdError:
        pass
    return tensor.data


def _other_dtype(tensor: pb.Tensor, rng: random.Random) -> None:
    """The same numbers, of another dtype."""
    dtype, number = NUMPY_OF_DTYPE.get(tensor.dtype), rng.choice(list(NUMPY_OF_DTYPE))
    data = _content(tensor)
    if dtype is not None and len(data) % dtype.itemsize == 0:
        with np.errstate(all="ignore"):
            tensor.data = np.frombuffer(data, dtype).astype(NUMPY_OF_DTYPE[number]).tobytes()
        tensor.encoding = pb.ENCODING_RAW
    tensor.dtype = number


def _other_shape(tensor: pb.Tensor, rng: random.Random) -> None:
    """As many elements, in other axes."""
    shape = list(tensor.shape)
    match rng.randrange(4):
        case 0:
            shape.reverse()
        case 1:
            shape.insert(rng.randrange(len(shape) + 1), 1)
        case 2:
            shape = [math.prod(shape) % 2**64]
        case _:
            shape.append(0)
    del tensor.shape[:]
    tensor.shape.extend(shape)


def _other_columns(tensor: pb.Tensor, rng: random.Random) -> None:
    """Consistent with itself, but of another size along one axis."""
    dtype = NUMPY_OF_DTYPE.get(tensor.dtype)
    if dtype is None or not tensor.shape:
        return
    axis = rng.randrange(len(tensor.shape))
    tensor.shape[axis] = rng.choice((0, 1, 2, 3, 4, 5, 8))
    size = math.prod(tensor.shape) * dtype.itemsize
    if size < 1 << 20:
        tensor.data, tensor.encoding = bytes(size), pb.ENCODING_RAW


def _other_values(tensor: pb.Tensor, rng: random.Random) -> None:
    """One element, or all, at the edge of the dtype or beyond."""
    dtype, data = NUMPY_OF_DTYPE.get(tensor.dtype), bytearray(_content(tensor))
    if dtype is None or len(data) < dtype.itemsize:
        return
    patterns = {"f": _FLOATS, "i": (0, -1, 1, 2, 2**31 - 1, -(2**31)), "u": (0, 1, 255), "b": (0, 1)}[dtype.kind]
    with np.errstate(all="ignore"):
        element = np.array(rng.choice(patterns)).astype(dtype).tobytes()
    if dtype.kind == "b" and rng.random() < 0.5:
        element = bytes([rng.choice((2, 255))])
    if dtype.kind == "i" and dtype.itemsize == 8 and rng.random() < 0.5:
        element = struct.pack("<q", rng.choice((2**63 - 1, -(2**63), 2**40)))
    if rng.random() < 0.3:
        data = bytearray(element * (len(data) // dtype.itemsize))
    else:
        at = rng.randrange(len(data) // dtype.itemsize) * dtype.itemsize
        data[at : at + dtype.itemsize] = element
    tensor.data, tensor.encoding = bytes(data), pb.ENCODING_RAW


def _as_frame(tensor: pb.Tensor, rng: random.Random) -> None:
    """A Zstandard frame: right, or of a wrong size, of no stated size, torn, followed by another, or a bomb."""
    data = _content(tensor)
    tensor.encoding = pb.ENCODING_ZSTD
    match rng.randrange(8):
        case 0:
            tensor.data = zstandard.ZstdCompressor().compress(data)
        case 1:
            tensor.data = zstandard.ZstdCompressor().compress(data + b"\0")
        case 2:
            tensor.data = zstandard.ZstdCompressor(write_content_size=False).compress(data)
        case 3:
            frame = zstandard.ZstdCompressor().compress(data)
            tensor.data = frame[: rng.randrange(len(frame))]
        case 4:
            frame = zstandard.ZstdCompressor().compress(data)
            tensor.data = frame + frame
        case 5:
            tensor.data = mutate_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(data), rng)
        case 6:
            tensor.data = _BOMB
        case _:  # states a size of its own choice: single segment, eight bytes of it
            size = rng.choice((len(data), *_LARGE))
            tensor.data = b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x03\x00\x00" + data[:1]


# 32 MB of zeros in a few kB.
_BOMB = zstandard.ZstdCompressor(level=19).compress(bytes(32 << 20))

_OF_TENSORS: tuple[Callable[[pb.Tensor, random.Random], None], ...] = (
    _other_dtype,
    _other_shape,
    _other_columns,
    _other_values,
    _other_values,
    _other_values,
    _as_frame,
)


def _with_byte(data: bytes, at: int, byte: int) -> bytes:
    return data[:at] + bytes([byte]) + data[at + 1 :]
