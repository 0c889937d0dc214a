"""The tensor codec: every array that may travel comes back equal, and nothing else comes in."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from impala.errors import InvalidMessage
from impala.specs import EntrySpec
from impala.wire import decode_tensor, encode_tensor
from impala.wire.tensors import NUMPY_OF_DTYPE, decode_named_tensors, decode_tensor_as, encode_named_tensors
from protos import impala_pb2 as pb

DTYPES = sorted(NUMPY_OF_DTYPE.values(), key=str)
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (7,), (3, 4), (0, 4), (2, 1, 5)]
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": lambda array: array,
    "Fortran": np.asfortranarray,
    "strided": lambda array: np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array,
    "negative strides": lambda array: array[tuple(slice(None, None, -1) for _ in array.shape)],
    "transposed": lambda array: array.T,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
}


def make_array(dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2 if dtype == np.bool_ else 200, size=shape).astype(dtype)


def make_message(**fields: Any) -> pb.Tensor:
    """Returns a valid message, four float32, with `fields` replaced."""
    return pb.Tensor(**{"dtype": pb.DTYPE_FLOAT32, "shape": [4], "data": bytes(16), "encoding": pb.ENCODING_RAW, **fields})


def refusal(message: pb.Tensor) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        decode_tensor(message, "unroll.rewards")
    return caught.value


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_array_of_any_dtype_shape_and_layout_comes_back_equal(dtype: np.dtype[Any], shape: tuple[int, ...], layout: str) -> None:
    array = LAYOUTS[layout](make_array(dtype, shape))
    decoded = decode_tensor(pb.Tensor.FromString(encode_tensor(array).SerializeToString()), "x")
    assert decoded.dtype == dtype
    assert decoded.shape == array.shape
    np.testing.assert_array_equal(decoded, array)


def test_the_bytes_are_c_ordered_and_little_endian() -> None:
    message = encode_tensor(np.array([[1, 2], [3, 4]], dtype=">i4").T)
    assert message.data == b"\1\0\0\0\3\0\0\0\2\0\0\0\4\0\0\0"


def test_every_dtype_of_the_proto_has_a_numpy_dtype_of_its_own() -> None:
    assert set(NUMPY_OF_DTYPE) == set(pb.DType.values()) - {pb.DTYPE_UNSPECIFIED}
    assert {pb.DType.Name(number): dtype.name for number, dtype in NUMPY_OF_DTYPE.items()} == {
        name: name.removeprefix("DTYPE_").lower() for name, number in pb.DType.items() if number
    }


@pytest.mark.parametrize("dtype", ["float16", "complex64", "uint64", "int8", "U3", "S3", "O", "M8[s]", "V4"])
def test_an_array_of_another_dtype_is_not_encoded(dtype: str) -> None:
    with pytest.raises(TypeError, match=r"tensor: expected one of \['bool', .*, came "):
        encode_tensor(np.zeros(2, dtype=dtype))


def test_a_decoded_array_is_read_only() -> None:
    decoded = decode_tensor(encode_tensor(np.zeros(3, dtype=np.float32)), "x")
    with pytest.raises(ValueError, match="read-only"):
        decoded[0] = 1.0


@pytest.mark.parametrize(("number", "came"), [(pb.DTYPE_UNSPECIFIED, "DTYPE_UNSPECIFIED"), (99, "unknown number 99")])
def test_an_unknown_dtype_is_refused(number: int, came: str) -> None:
    assert str(refusal(make_message(dtype=number))) == f"unroll.rewards.dtype: expected a DType other than UNSPECIFIED, came {came}"


@pytest.mark.parametrize(("number", "came"), [(pb.ENCODING_UNSPECIFIED, "ENCODING_UNSPECIFIED"), (99, "unknown number 99")])
def test_an_unknown_encoding_is_refused(number: int, came: str) -> None:
    expected = f"unroll.rewards.encoding: expected ENCODING_RAW or ENCODING_ZSTD, came {came}"
    assert str(refusal(make_message(encoding=number))) == expected


def test_eight_axes_are_taken() -> None:
    assert decode_tensor(make_message(shape=[1] * 7 + [4]), "x").ndim == 8


def test_more_than_eight_axes_are_refused() -> None:
    assert str(refusal(make_message(shape=[1] * 8 + [4]))) == "unroll.rewards.shape: expected at most 8 axes, came 9"


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_bytes_that_are_too_few_or_too_many_are_refused(size: int) -> None:
    message = make_message(data=bytes(size))
    assert str(refusal(message)) == f"unroll.rewards.data: expected 16 bytes for float32 of shape [4], came {size} bytes"


def test_a_scalar_without_bytes_is_refused() -> None:
    assert refusal(make_message(shape=[], data=b"")).field == "unroll.rewards.data"


@pytest.mark.parametrize(
    "shape",
    [
        [2**62],
        [2**64 - 1],
        [2**32, 2**32],  # 2^64 elements: 0 in 64 bits
        [2**62, 4],
        [2**61 + 1, 2],  # 2^64 + 16 bytes: 16 in 64 bits, the number that came
        [2**63, 2, 4],
        [2**64 - 1] * 8,
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [0, 16])
def test_absurd_shapes_are_refused_by_their_byte_count(shape: list[int], size: int) -> None:
    error = refusal(make_message(shape=shape, data=bytes(size)))
    assert error.field == "unroll.rewards.data"
    assert str(error).endswith(f"bytes for float32 of shape {shape}, came {size} bytes")


@pytest.mark.parametrize("shape", [[0, 2**62], [2**63, 0], [0, 2**64 - 1], [2**62, 0, 2**62]], ids=str)
def test_a_size_that_no_array_can_have_beside_a_zero_is_refused(shape: list[int]) -> None:
    error = refusal(make_message(shape=shape, data=b""))
    assert str(error) == f"unroll.rewards.shape: expected sizes that an array can have, came {shape}"


@pytest.mark.parametrize(
    "shape", [[2**40], [2**62], [2**20, 2**20, 2**20], [0, 2**62], [1] * 500_000], ids=lambda shape: f"{shape[:3]}"
)
def test_nothing_large_is_allocated_for_a_message_that_is_refused(shape: list[int]) -> None:
    message = make_message(shape=shape, data=b"")
    tracemalloc.start()
    try:
        refusal(message)
        with pytest.raises(InvalidMessage):
            decode_tensor_as(message, "x", np.dtype(np.float32), (4,))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("byte", [2, 128, 255])
def test_a_bool_is_a_byte_of_0_or_1(byte: int) -> None:
    message = pb.Tensor(dtype=pb.DTYPE_BOOL, shape=[3], data=bytes([0, byte, 1]), encoding=pb.ENCODING_RAW)
    assert str(refusal(message)) == f"unroll.rewards.data: expected bytes of 0 or 1, came {byte}"


def test_an_array_is_held_against_the_dtype_that_is_expected() -> None:
    with pytest.raises(InvalidMessage, match=r"^x\.dtype: expected DTYPE_INT64, came DTYPE_FLOAT32$"):
        decode_tensor_as(make_message(), "x", np.dtype(np.int64), (4,))


def test_an_array_is_held_against_the_shape_that_is_expected() -> None:
    with pytest.raises(InvalidMessage, match=r"^x\.shape: expected \[2, 2\], came \[4\]$"):
        decode_tensor_as(make_message(), "x", np.dtype(np.float32), (2, 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_refused(value: float, dtype: Any) -> None:
    array = np.array([0.0, value, 1.0, value], dtype=dtype)
    with pytest.raises(InvalidMessage, match=r"^x\.data: expected finite values, came 2 NaN or infinite$"):
        decode_tensor_as(encode_tensor(array), "x", np.dtype(dtype), (4,))


def test_named_tensors_come_back_by_name() -> None:
    arrays = {"image": np.arange(6, dtype=np.uint8).reshape(2, 3), "speed": np.array([1.5, 2.5], dtype=np.float32)}
    entries = {"speed": EntrySpec(shape=(), dtype=np.dtype(np.float32)), "image": EntrySpec(shape=(3,), dtype=np.dtype(np.uint8))}
    decoded = decode_named_tensors(encode_named_tensors(arrays), "x", entries, (2,))
    assert {name: array.tolist() for name, array in decoded.items()} == {name: array.tolist() for name, array in arrays.items()}


def test_an_error_about_many_names_stays_short() -> None:
    messages = [pb.NamedTensor(name=f"entry {number}") for number in range(10_000)]
    with pytest.raises(InvalidMessage, match=r"^x: expected the entries \['observation'\], came 10000: \['entry 0', ") as caught:
        decode_named_tensors(messages, "x", {"observation": EntrySpec(shape=(), dtype=np.dtype(np.float32))}, ())
    assert len(str(caught.value)) < 300
