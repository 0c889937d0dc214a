from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_BOOL: _ClassVar[DType]
    DTYPE_UINT8: _ClassVar[DType]
    DTYPE_INT32: _ClassVar[DType]
    DTYPE_INT64: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_FLOAT64: _ClassVar[DType]

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_RAW: _ClassVar[Encoding]
    ENCODING_ZSTD: _ClassVar[Encoding]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_STALE: _ClassVar[Reason]
    REASON_RUN_OVER: _ClassVar[Reason]
DTYPE_UNSPECIFIED: DType
DTYPE_BOOL: DType
DTYPE_UINT8: DType
DTYPE_INT32: DType
DTYPE_INT64: DType
DTYPE_FLOAT32: DType
DTYPE_FLOAT64: DType
ENCODING_UNSPECIFIED: Encoding
ENCODING_RAW: Encoding
ENCODING_ZSTD: Encoding
REASON_UNSPECIFIED: Reason
REASON_STALE: Reason
REASON_RUN_OVER: Reason

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data", "encoding")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    encoding: Encoding
    def __init__(self, dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., encoding: _Optional[_Union[Encoding, str]] = ...) -> None: ...

class NamedTensor(_message.Message):
    __slots__ = ("name", "tensor")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    tensor: Tensor
    def __init__(self, name: _Optional[str] = ..., tensor: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "dtype", "shape", "categories")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    categories: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., categories: _Optional[_Iterable[int]] = ...) -> None: ...

class ActionSpec(_message.Message):
    __slots__ = ("sizes", "dimensions", "single")
    SIZES_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    SINGLE_FIELD_NUMBER: _ClassVar[int]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    dimensions: int
    single: bool
    def __init__(self, sizes: _Optional[_Iterable[int]] = ..., dimensions: _Optional[int] = ..., single: _Optional[bool] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("protocol_version", "actor_id", "incarnation", "host", "environments", "called", "stay", "encodings")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENTS_FIELD_NUMBER: _ClassVar[int]
    CALLED_FIELD_NUMBER: _ClassVar[int]
    STAY_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    actor_id: str
    incarnation: int
    host: str
    environments: int
    called: str
    stay: bool
    encodings: _containers.RepeatedScalarFieldContainer[Encoding]
    def __init__(self, protocol_version: _Optional[int] = ..., actor_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., host: _Optional[str] = ..., environments: _Optional[int] = ..., called: _Optional[str] = ..., stay: _Optional[bool] = ..., encodings: _Optional[_Iterable[_Union[Encoding, str]]] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("protocol_version", "run_id", "spec_digest", "environment_id", "environment_kwargs_json", "environment_wrappers_json", "life_loss_terminates", "task", "network_json", "environments", "unroll_length", "observation_specs", "state_specs", "actions", "seed", "max_message_bytes", "max_in_flight", "max_on_the_way", "max_environments", "encoding", "redirect")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_ID_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_KWARGS_JSON_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_WRAPPERS_JSON_FIELD_NUMBER: _ClassVar[int]
    LIFE_LOSS_TERMINATES_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    NETWORK_JSON_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENTS_FIELD_NUMBER: _ClassVar[int]
    UNROLL_LENGTH_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_SPECS_FIELD_NUMBER: _ClassVar[int]
    STATE_SPECS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_ON_THE_WAY_FIELD_NUMBER: _ClassVar[int]
    MAX_ENVIRONMENTS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    run_id: str
    spec_digest: str
    environment_id: str
    environment_kwargs_json: str
    environment_wrappers_json: str
    life_loss_terminates: bool
    task: int
    network_json: str
    environments: int
    unroll_length: int
    observation_specs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    state_specs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    actions: ActionSpec
    seed: int
    max_message_bytes: int
    max_in_flight: int
    max_on_the_way: int
    max_environments: int
    encoding: Encoding
    redirect: str
    def __init__(self, protocol_version: _Optional[int] = ..., run_id: _Optional[str] = ..., spec_digest: _Optional[str] = ..., environment_id: _Optional[str] = ..., environment_kwargs_json: _Optional[str] = ..., environment_wrappers_json: _Optional[str] = ..., life_loss_terminates: _Optional[bool] = ..., task: _Optional[int] = ..., network_json: _Optional[str] = ..., environments: _Optional[int] = ..., unroll_length: _Optional[int] = ..., observation_specs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., state_specs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., actions: _Optional[_Union[ActionSpec, _Mapping]] = ..., seed: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_in_flight: _Optional[int] = ..., max_on_the_way: _Optional[int] = ..., max_environments: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., redirect: _Optional[str] = ...) -> None: ...

class GetParametersRequest(_message.Message):
    __slots__ = ("actor_id", "known_version")
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    KNOWN_VERSION_FIELD_NUMBER: _ClassVar[int]
    actor_id: str
    known_version: int
    def __init__(self, actor_id: _Optional[str] = ..., known_version: _Optional[int] = ...) -> None: ...

class GetParametersResponse(_message.Message):
    __slots__ = ("version", "not_modified", "parameters", "recording")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NOT_MODIFIED_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    RECORDING_FIELD_NUMBER: _ClassVar[int]
    version: int
    not_modified: bool
    parameters: bytes
    recording: Recording
    def __init__(self, version: _Optional[int] = ..., not_modified: _Optional[bool] = ..., parameters: _Optional[bytes] = ..., recording: _Optional[_Union[Recording, _Mapping]] = ...) -> None: ...

class Recording(_message.Message):
    __slots__ = ("received", "answered", "steps")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    received: float
    answered: float
    steps: bool
    def __init__(self, received: _Optional[float] = ..., answered: _Optional[float] = ..., steps: _Optional[bool] = ...) -> None: ...

class Unroll(_message.Message):
    __slots__ = ("parameter_version", "observations", "is_first", "actions", "rewards", "terminated", "behaviour_log_probs", "initial_state")
    PARAMETER_VERSION_FIELD_NUMBER: _ClassVar[int]
    OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    IS_FIRST_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    TERMINATED_FIELD_NUMBER: _ClassVar[int]
    BEHAVIOUR_LOG_PROBS_FIELD_NUMBER: _ClassVar[int]
    INITIAL_STATE_FIELD_NUMBER: _ClassVar[int]
    parameter_version: int
    observations: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    is_first: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    behaviour_log_probs: Tensor
    initial_state: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    def __init__(self, parameter_version: _Optional[int] = ..., observations: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., is_first: _Optional[_Union[Tensor, _Mapping]] = ..., actions: _Optional[_Union[Tensor, _Mapping]] = ..., rewards: _Optional[_Union[Tensor, _Mapping]] = ..., terminated: _Optional[_Union[Tensor, _Mapping]] = ..., behaviour_log_probs: _Optional[_Union[Tensor, _Mapping]] = ..., initial_state: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ...) -> None: ...

class Episode(_message.Message):
    __slots__ = ("episode_return", "length")
    EPISODE_RETURN_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    episode_return: float
    length: int
    def __init__(self, episode_return: _Optional[float] = ..., length: _Optional[int] = ...) -> None: ...

class ActorTimes(_message.Message):
    __slots__ = ("total", "environment", "inference", "waiting", "line", "sending", "fetching", "starved")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    SENDING_FIELD_NUMBER: _ClassVar[int]
    FETCHING_FIELD_NUMBER: _ClassVar[int]
    STARVED_FIELD_NUMBER: _ClassVar[int]
    total: float
    environment: float
    inference: float
    waiting: float
    line: float
    sending: float
    fetching: float
    starved: float
    def __init__(self, total: _Optional[float] = ..., environment: _Optional[float] = ..., inference: _Optional[float] = ..., waiting: _Optional[float] = ..., line: _Optional[float] = ..., sending: _Optional[float] = ..., fetching: _Optional[float] = ..., starved: _Optional[float] = ...) -> None: ...

class UnrollTrace(_message.Message):
    __slots__ = ("waited", "began", "collected", "encoded", "sent", "step_micros", "clock_least", "clock_most")
    WAITED_FIELD_NUMBER: _ClassVar[int]
    BEGAN_FIELD_NUMBER: _ClassVar[int]
    COLLECTED_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    STEP_MICROS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_LEAST_FIELD_NUMBER: _ClassVar[int]
    CLOCK_MOST_FIELD_NUMBER: _ClassVar[int]
    waited: float
    began: float
    collected: float
    encoded: float
    sent: float
    step_micros: _containers.RepeatedScalarFieldContainer[int]
    clock_least: float
    clock_most: float
    def __init__(self, waited: _Optional[float] = ..., began: _Optional[float] = ..., collected: _Optional[float] = ..., encoded: _Optional[float] = ..., sent: _Optional[float] = ..., step_micros: _Optional[_Iterable[int]] = ..., clock_least: _Optional[float] = ..., clock_most: _Optional[float] = ...) -> None: ...

class SubmitTrajectoryRequest(_message.Message):
    __slots__ = ("actor_id", "incarnation", "sequence", "spec_digest", "unroll", "episodes", "age_seconds", "times", "trace")
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SPEC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    UNROLL_FIELD_NUMBER: _ClassVar[int]
    EPISODES_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    actor_id: str
    incarnation: int
    sequence: int
    spec_digest: str
    unroll: Unroll
    episodes: _containers.RepeatedCompositeFieldContainer[Episode]
    age_seconds: float
    times: ActorTimes
    trace: UnrollTrace
    def __init__(self, actor_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., sequence: _Optional[int] = ..., spec_digest: _Optional[str] = ..., unroll: _Optional[_Union[Unroll, _Mapping]] = ..., episodes: _Optional[_Iterable[_Union[Episode, _Mapping]]] = ..., age_seconds: _Optional[float] = ..., times: _Optional[_Union[ActorTimes, _Mapping]] = ..., trace: _Optional[_Union[UnrollTrace, _Mapping]] = ...) -> None: ...

class SubmitTrajectoryResponse(_message.Message):
    __slots__ = ("accepted", "reason", "duplicate", "parameter_version", "join_again", "waited_seconds", "recording")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_VERSION_FIELD_NUMBER: _ClassVar[int]
    JOIN_AGAIN_FIELD_NUMBER: _ClassVar[int]
    WAITED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RECORDING_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    reason: Reason
    duplicate: bool
    parameter_version: int
    join_again: bool
    waited_seconds: float
    recording: Recording
    def __init__(self, accepted: _Optional[bool] = ..., reason: _Optional[_Union[Reason, str]] = ..., duplicate: _Optional[bool] = ..., parameter_version: _Optional[int] = ..., join_again: _Optional[bool] = ..., waited_seconds: _Optional[float] = ..., recording: _Optional[_Union[Recording, _Mapping]] = ...) -> None: ...
