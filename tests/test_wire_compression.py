"""Compressed tensors: smaller, equal when they come back, and no way to make a learner allocate."""

import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import zstandard

from impala.errors import InvalidMessage
from impala.specs import EntrySpec, EnvironmentSpec, UnrollSpec, discrete
from impala.wire import MAX_MESSAGE_BYTES, Compressor, decode_tensor, decode_unroll, encode_tensor, encode_unroll
from impala.wire.tensors import NUMPY_OF_DTYPE
from protos import impala_pb2 as pb
from tests.samples import make_unroll

FRAMES = UnrollSpec(
    unroll_length=5,
    max_environments=8,
    environment=EnvironmentSpec(
        observations={"observation": EntrySpec(shape=(84, 84), dtype=np.dtype(np.uint8))},
        actions=discrete(2),
    ),
    state={"frames.observation": EntrySpec(shape=(3, 84, 84), dtype=np.dtype(np.uint8))},
)
# As random play leaves them: a picture that stays, and a few pixels of it that move.
PICTURE = np.random.default_rng(0).integers(0, 256, size=(84, 84)).astype(np.uint8)


def make_frames(*leading: int) -> np.ndarray:
    frames = np.broadcast_to(PICTURE, (*leading, 84, 84)).copy()
    frames[..., 40:44, 40:44] = np.random.default_rng(1).integers(0, 256, size=(*leading, 4, 4))
    return frames


def random_floats(size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=size).astype(np.float32)


def make_message(data: bytes, shape: list[int], **fields: Any) -> pb.Tensor:
    return pb.Tensor(**{"dtype": pb.DTYPE_UINT8, "shape": shape, "data": data, "encoding": pb.ENCODING_ZSTD, **fields})


def refusal(message: pb.Tensor) -> str:
    with pytest.raises(InvalidMessage) as caught:
        decode_tensor(message, "unroll.rewards")
    return str(caught.value)


def frame_of(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


@pytest.mark.parametrize("shape", [(2000,), (40, 50), (10, 1, 200)], ids=str)
@pytest.mark.parametrize("dtype", sorted(NUMPY_OF_DTYPE.values(), key=str), ids=str)
def test_a_compressed_array_comes_back_equal(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    array = (np.arange(2000) % 2).reshape(shape).astype(dtype)
    message = encode_tensor(array, "x", Compressor())
    assert message.encoding == pb.ENCODING_ZSTD
    decoded = decode_tensor(pb.Tensor.FromString(message.SerializeToString()), "x")
    assert (decoded.dtype, decoded.shape) == (dtype, shape)
    np.testing.assert_array_equal(decoded, array)


@pytest.mark.parametrize("layout", ["transposed", "strided", "reversed", "big-endian"])
def test_an_array_of_any_layout_comes_back_equal_from_compression(layout: str) -> None:
    array = (np.arange(4000) // 50).astype(np.int32).reshape(40, 100)
    laid = {"transposed": array.T, "strided": array[:, ::2], "reversed": array[::-1], "big-endian": array.astype(">i4")}[layout]
    message = encode_tensor(laid, "x", Compressor())
    assert message.encoding == pb.ENCODING_ZSTD
    np.testing.assert_array_equal(decode_tensor(message, "x"), laid)


def test_an_unroll_of_frames_travels_in_a_fraction_of_its_bytes() -> None:
    unroll = make_unroll(
        environments=4,
        observations={"observation": make_frames(6, 4)},
        initial_state={"frames.observation": make_frames(4, 3)},
    )
    message = encode_unroll(unroll, Compressor())
    assert len(message.SerializeToString()) < len(encode_unroll(unroll).SerializeToString()) / 10
    decoded = decode_unroll(message, FRAMES)
    for got, sent in zip(decoded.arrays(), unroll.arrays(), strict=True):
        np.testing.assert_array_equal(got, sent)


def test_any_zstandard_reads_what_is_sent() -> None:
    message = encode_tensor(make_frames(3), "x", Compressor())
    assert zstandard.ZstdDecompressor().decompress(message.data) == make_frames(3).tobytes()


def test_without_a_compressor_bytes_are_raw() -> None:
    assert encode_tensor(make_frames(3)).encoding == pb.ENCODING_RAW


def test_what_does_not_become_a_quarter_smaller_is_raw() -> None:
    message = encode_tensor(random_floats(1000), "x", Compressor())
    assert (message.encoding, message.data) == (pb.ENCODING_RAW, random_floats(1000).tobytes())


def test_a_few_bytes_are_raw() -> None:
    assert encode_tensor(np.zeros(255, np.uint8), "x", Compressor()).encoding == pb.ENCODING_RAW
    assert encode_tensor(np.zeros(256, np.uint8), "x", Compressor()).encoding == pb.ENCODING_ZSTD


def test_a_field_on_which_it_was_lost_is_tried_again_a_hundred_unrolls_later() -> None:
    compressor = Compressor()
    assert encode_tensor(random_floats(1000), "x", compressor).encoding == pb.ENCODING_RAW
    later = [encode_tensor(np.zeros(1000, np.uint8), "x", compressor).encoding for _ in range(101)]
    assert later == [pb.ENCODING_RAW] * 100 + [pb.ENCODING_ZSTD]


def test_one_field_does_not_decide_for_another() -> None:
    compressor = Compressor()
    encode_tensor(random_floats(1000), "x", compressor)
    assert encode_tensor(np.zeros(1000, np.uint8), "y", compressor).encoding == pb.ENCODING_ZSTD


def test_entries_of_one_name_in_observations_and_state_are_told_apart() -> None:
    compressor, noise = Compressor(), np.random.default_rng(0).integers(0, 256, size=(4, 300)).astype(np.uint8)
    unroll = make_unroll(environments=4, observations={"a": np.zeros((6, 4, 99), np.uint8)}, initial_state={"a": noise})
    messages = [encode_unroll(unroll, compressor) for _ in range(2)]
    assert [message.observations[0].tensor.encoding for message in messages] == [pb.ENCODING_ZSTD] * 2
    assert [message.initial_state[0].tensor.encoding for message in messages] == [pb.ENCODING_RAW] * 2


@pytest.mark.parametrize("size", [999, 1001, 0, 2**40])
def test_a_frame_that_states_another_size_than_the_shape_is_refused(size: int) -> None:
    # A frame's header: magic number, one segment with eight bytes of content size; then nothing.
    header = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size)
    data = frame_of(bytes(size)) if 0 < size < 2000 else header
    expected = f"unroll.rewards.data: expected one Zstandard frame of 1000 bytes, came {size} stated"
    assert refusal(make_message(data, [1000])) == expected


def test_a_frame_that_states_no_size_is_refused() -> None:
    streaming = zstandard.ZstdCompressor().compressobj()
    data = streaming.compress(bytes(1000)) + streaming.flush()
    assert refusal(make_message(data, [1000])).endswith("expected one Zstandard frame of 1000 bytes, came none stated")


def test_bytes_that_are_no_whole_frame_are_refused() -> None:
    whole = frame_of(random_floats(250).tobytes())
    for data in (b"", b"garbage", whole[:-1], whole[:6], whole + b"x", whole + whole, whole[:7] + b"\xff" + whole[8:]):
        said = refusal(make_message(data, [1000]))
        assert said.startswith("unroll.rewards.data: expected one Zstandard frame of 1000 bytes, came "), data[:30]


def test_a_frame_with_more_in_it_than_it_states_is_refused() -> None:
    honest = frame_of(bytes(2000))
    assert zstandard.get_frame_parameters(honest).content_size == 2000
    lying = honest.replace(struct.pack("<H", 2000 - 256), struct.pack("<H", 1000 - 256), 1)  # two bytes of size count from 256
    assert zstandard.get_frame_parameters(lying).content_size == 1000
    assert "of 1000 bytes, came" in refusal(make_message(lying, [1000]))


def test_a_bomb_is_refused_before_anything_is_allocated() -> None:
    # A hundred megabytes in a few kilobytes, said to be what it is, and said to be sixteen bytes.
    bomb = frame_of(bytes(100 * 2**20))
    tracemalloc.start()
    try:
        said = refusal(make_message(bomb, [100 * 2**20]))
        other = refusal(make_message(bomb, [16]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert said == f"unroll.rewards.shape: expected at most {MAX_MESSAGE_BYTES} bytes of elements, came {100 * 2**20}"
    assert other == f"unroll.rewards.data: expected one Zstandard frame of 16 bytes, came {100 * 2**20} stated"
    assert peak < 100_000


@pytest.mark.parametrize("shape", [[2**62], [2**32, 2**32], [2**64 - 1] * 8], ids=str)
def test_absurd_shapes_are_refused(shape: list[int]) -> None:
    assert refusal(make_message(frame_of(bytes(16)), shape)).startswith("unroll.rewards.shape: expected at most")


def test_as_much_as_a_message_may_hold_is_decompressed() -> None:
    array = decode_tensor(make_message(frame_of(bytes(MAX_MESSAGE_BYTES)), [MAX_MESSAGE_BYTES]), "x")
    assert (array.size, int(array.max())) == (MAX_MESSAGE_BYTES, 0)


def test_compressed_values_are_checked_like_any_others() -> None:
    message = make_message(frame_of(bytes([0, 1, 2] * 100)), [300], dtype=pb.DTYPE_BOOL)
    assert refusal(message) == "unroll.rewards.data: expected bytes of 0 or 1, came 2"
