"""The codec of what observations, recurrent states and actions look like: `TensorSpec` and `ActionSpec`."""

import math
from collections.abc import Iterable, Mapping, Sequence

from impala.errors import InvalidMessage
from impala.specs import ActionSpec, EntrySpec
from impala.wire.tensors import DTYPE_OF_NUMPY, NUMPY_OF_DTYPE, decode_shape, enum_name
from protos import impala_pb2 as pb

# Of the elements of an entry, of its categories and of the options or real numbers of an action, each counted together: a network's
# inputs and outputs are as many, and no message holds more.
_MOST = 2**24


def encode_entries(entries: Mapping[str, EntrySpec]) -> list[pb.TensorSpec]:
    """Returns the entries of an observation or a recurrent state as messages."""
    return [
        pb.TensorSpec(name=name, dtype=DTYPE_OF_NUMPY[entry.dtype], shape=entry.shape, categories=entry.categories)
        for name, entry in entries.items()
    ]


def decode_entries(messages: Iterable[pb.TensorSpec], field: str) -> dict[str, EntrySpec]:
    """Returns the entries of an observation or a recurrent state. `field` is their path in the .proto, for errors.

    Raises:
        InvalidMessage: two entries of one name, an unknown dtype, a shape that no message can carry, categories that do not fit.
    """
    entries: dict[str, EntrySpec] = {}
    for message in messages:
        if message.name in entries:
            raise InvalidMessage(field, "entries of different names", f"{message.name!r} twice")
        entries[message.name] = _decode_entry(message, f"{field}[{message.name}]")
    return entries


def _decode_entry(message: pb.TensorSpec, field: str) -> EntrySpec:
    dtype = NUMPY_OF_DTYPE.get(message.dtype)
    if dtype is None:
        raise InvalidMessage(f"{field}.dtype", "a known DType", enum_name(pb.DType, message.dtype))
    shape = decode_shape(message, field)
    if math.prod(shape) > _MOST or max(shape, default=0) > _MOST:
        raise InvalidMessage(f"{field}.shape", f"at most {_MOST} elements", str(list(shape)))
    if not message.categories:
        return EntrySpec(shape=shape, dtype=dtype)
    if dtype.kind not in "iu":
        raise InvalidMessage(f"{field}.categories", f"none for {dtype}", f"{len(message.categories)}")
    if len(message.categories) != math.prod(shape):
        raise InvalidMessage(f"{field}.categories", f"{math.prod(shape)}, one an element", f"{len(message.categories)}")
    return EntrySpec(shape=shape, dtype=dtype, categories=_decode_sizes(message.categories, f"{field}.categories"))


def encode_actions(actions: ActionSpec) -> pb.ActionSpec:
    """Returns what an action is as a message."""
    return pb.ActionSpec(sizes=actions.sizes, dimensions=actions.dimensions, single=actions.single)


def decode_actions(message: pb.ActionSpec, field: str) -> ActionSpec:
    """Returns what an action is. `field` is its path in the .proto, for errors.

    Raises:
        InvalidMessage: sizes and dimensions both or neither, numbers that are absurd, a single choice that is not one.
    """
    if bool(message.sizes) == bool(message.dimensions):
        came = f"sizes {list(message.sizes[:8])} and dimensions {message.dimensions}"
        raise InvalidMessage(field, "either sizes or dimensions", came)
    if message.dimensions > _MOST:
        raise InvalidMessage(f"{field}.dimensions", f"at most {_MOST}", f"{message.dimensions}")
    if message.single and len(message.sizes) != 1:
        raise InvalidMessage(f"{field}.single", "one size where true", f"{len(message.sizes)}")
    return ActionSpec(sizes=_decode_sizes(message.sizes, f"{field}.sizes"), dimensions=message.dimensions, single=message.single)


def _decode_sizes(sizes: Sequence[int], field: str) -> tuple[int, ...]:
    """Returns how many values each of several integers has, held against what memory can hold one-hot."""
    if sizes and (min(sizes) < 1 or sum(sizes) > _MOST):
        raise InvalidMessage(field, f"numbers of at least 1, {_MOST} in all", f"{min(sizes)} to {max(sizes)}, {sum(sizes)} in all")
    return tuple(sizes)
