"""The weights' codec: safetensors and nothing else, least of all anything that can execute."""

import io
import json
import pickle
import struct

import numpy as np
import pytest
import torch

from impala.errors import InvalidMessage
from impala.networks import build_network
from impala.wire import decode_parameters, encode_parameters
from tests.samples import AGENT, SPEC

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def make_file(dtype: str, shape: list[int], size: int) -> bytes:
    """Returns a safetensors file of one tensor, without the library's help."""
    header = json.dumps({"weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_come_back_by_value_and_dtype(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape) * 100).to(dtype)
    came = decode_parameters(encode_parameters({"weight": tensor}))["weight"]
    assert (came.dtype, came.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(came, tensor)


def test_a_networks_state_dict_comes_back_by_name() -> None:
    state = build_network(AGENT.network, SPEC.environment).state_dict()
    came = decode_parameters(encode_parameters(state))
    assert came.keys() == state.keys()
    assert all(torch.equal(came[name], state[name]) for name in state)


def test_weights_that_are_views_or_want_gradients_can_be_sent() -> None:
    weight = torch.arange(6.0, requires_grad=True).reshape(2, 3)
    came = decode_parameters(encode_parameters({"transposed": weight.T, "bias": weight[0]}))
    assert came["transposed"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert came["bias"].tolist() == [0.0, 1.0, 2.0]


def test_elements_of_all_sizes_lie_aligned_in_the_file() -> None:
    tensors = {f"{index}": torch.ones(3, dtype=dtype) for index, dtype in enumerate(reversed(DTYPES))}
    data = encode_parameters(tensors)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert all(header[name]["data_offsets"][0] % tensor.element_size() == 0 for name, tensor in tensors.items())
    came = decode_parameters(data)
    assert all(torch.equal(came[name], tensor) for name, tensor in tensors.items())


def test_a_dtype_that_cannot_be_sent_is_named() -> None:
    with pytest.raises(TypeError, match=r"^parameters: expected one of \[torch\.bool, .*, came torch\.complex64 for wave$"):
        encode_parameters({"weight": torch.ones(1), "wave": torch.ones(2, dtype=torch.complex64)})


def test_a_file_cut_anywhere_is_refused() -> None:
    data = encode_parameters({"weight": torch.ones(3), "bias": torch.ones(2)})
    for length in range(len(data)):
        with pytest.raises(InvalidMessage, match=rf"^parameters: expected a safetensors file, came {length} bytes"):
            decode_parameters(data[:length])


def test_a_file_with_something_behind_it_is_refused() -> None:
    with pytest.raises(InvalidMessage):
        decode_parameters(encode_parameters({"weight": torch.ones(3)}) + b"\0")


@pytest.mark.parametrize("seed", range(5))
def test_garbage_is_refused(seed: int) -> None:
    with pytest.raises(InvalidMessage):
        decode_parameters(np.random.default_rng(seed).bytes(200))


@pytest.mark.parametrize("length", [2**62, 2**64 - 1])
def test_a_header_of_absurd_length_is_refused(length: int) -> None:
    with pytest.raises(InvalidMessage):
        decode_parameters(struct.pack("<Q", length) + b"{}")


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "NO_SUCH_DTYPE"])
def test_a_dtype_that_torch_does_not_have_is_refused(dtype: str) -> None:
    with pytest.raises(InvalidMessage):
        decode_parameters(make_file(dtype, [0], 0))


def test_a_size_that_no_tensor_can_have_is_refused() -> None:
    with pytest.raises(InvalidMessage):
        decode_parameters(make_file("BF16", [0, 2**63], 0))


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a pickle was executed",)


def test_a_pickle_is_refused_and_not_executed() -> None:
    file = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, file)
    for data in (pickle.dumps({"weight": 1.0}), pickle.dumps(_Harmful()), file.getvalue()):
        with pytest.raises(InvalidMessage):
            decode_parameters(data)
