"""The weights' codec: one safetensors file, named as in the network's state dict."""

from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch

from impala.errors import InvalidMessage


def encode_parameters(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Returns named weights as one safetensors file."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


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
