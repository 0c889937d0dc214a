"""The weights' codec: one safetensors file, named as in the network's state dict."""

import json
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch

from impala.errors import InvalidMessage

_SAFETENSORS_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


def encode_parameters(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Returns named weights as one safetensors file.

    Written here and not by the library's `save`, which takes twice as long for small networks and six times for large ones: every
    version is encoded, on the thread that answers the actors.

    Raises:
        TypeError: a dtype that the file format, or this function, does not know.
    """
    # The largest elements first, so that all of them are aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header, chunks, offset = {}, list[memoryview](), 0
    for name, tensor in ordered:
        if tensor.dtype not in _SAFETENSORS_DTYPES:
            raise TypeError(f"parameters: expected one of {list(_SAFETENSORS_DTYPES)}, came {tensor.dtype} for {name}")
        chunk = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        ends = [offset, offset + chunk.nbytes]
        header[name] = {"dtype": _SAFETENSORS_DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": ends}
        chunks.append(chunk)
        offset += chunk.nbytes
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    return b"".join([len(written).to_bytes(8, "little"), written, *chunks])


def decode_parameters(data: bytes) -> dict[str, torch.Tensor]:
    """Returns the named weights of one safetensors file.

    Raises:
        InvalidMessage: not a whole safetensors file.
    """
    try:
        return safetensors.torch.load(data)
    # safetensors reads headers that torch has no dtype or no size for, and says so with whatever error comes up.
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InvalidMessage("parameters", "a safetensors file", f"{len(data)} bytes that are not one ({error})") from error
