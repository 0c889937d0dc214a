"""The codec between arrays and messages: the one package that knows both NumPy or torch and the protos.

Every `decode_*` treats its message as hostile: dtype, shape, byte count and values are checked against what this run expects,
sizes before anything is allocated, and the error names the field.
"""

from impala.wire.assignments import (
    PROTOCOL_VERSION,
    Assignment,
    decode_assignment,
    encode_assignment,
    spec_digest,
)
from impala.wire.compression import Compressor
from impala.wire.message_sizes import max_submission_bytes
from impala.wire.parameters import decode_parameters, encode_parameters
from impala.wire.tensors import MAX_MESSAGE_BYTES, decode_tensor, encode_tensor
from impala.wire.traces import decode_trace, encode_trace
from impala.wire.unrolls import decode_episodes, decode_times, decode_unroll, encode_episodes, encode_times, encode_unroll

__all__ = [
    "MAX_MESSAGE_BYTES",
    "PROTOCOL_VERSION",
    "Assignment",
    "Compressor",
    "decode_assignment",
    "decode_episodes",
    "decode_parameters",
    "decode_tensor",
    "decode_times",
    "decode_trace",
    "decode_unroll",
    "encode_assignment",
    "encode_episodes",
    "encode_parameters",
    "encode_tensor",
    "encode_times",
    "encode_trace",
    "encode_unroll",
    "max_submission_bytes",
    "spec_digest",
]
