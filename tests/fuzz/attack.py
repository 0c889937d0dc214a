"""Calls to a learner that no actor would make, several at once, and what is wrong with the answers."""

import asyncio
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from impala.unroll import Episode
from impala.wire import Compressor, decode_assignment, encode_episodes, encode_unroll
from protos import impala_pb2 as pb
from tests.fuzz.garbage import send_garbage
from tests.fuzz.mutations import mutate_bytes, mutate_message
from tests.fuzz.seeds import random_unroll

_SERVICE = "/impala.v1.Learner/"
_IN_FLIGHT = 8
_SECONDS = 10.0
# Of calls that may never be answered: a watch, a stream without a message.
_SHORT_SECONDS = 0.2
_ACTORS = tuple(f"fuzz-{index}" for index in range(8))
# The highest that there is: no mutated Join may supersede what the attack sends next.
_INCARNATION = 2**64 - 1
# What the .proto promises; UNKNOWN and INTERNAL would be faults of the learner's own.
_STATUSES = frozenset(
    {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
)
# No answer, but our own end: the learner answered, or the deadline passed, before all of a stream was sent.
_ENDED_HERE = "ended here"
_ALSO = {
    "method": {"UNIMPLEMENTED"},
    "health": {"UNIMPLEMENTED", "NOT_FOUND", "CANCELLED"},
    "stream": {"UNIMPLEMENTED", "CANCELLED", _ENDED_HERE},
    "metadata": {"CANCELLED"},
}
# What no answer may hold: tracebacks, and paths of the machine, that of this checkout among them.
_SIGNS = ("Traceback", 'File "', ".py", "site-packages", str(Path(__file__).resolve().parents[2]), "/home/", "/usr/")
_METHODS = ("Nope", "", "Join/", "../Join", "join", "\u00e9", "x" * 4000)
_OTHER_PATHS = ("/x", "/impala.v2.Learner/Join", "/grpc.health.v1.Health/Nope", "//", "/")
_OPEN_PATHS = (
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.health.v1.Health/List",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


class Attack:
    """Sends messages to one learner, as eight actors that joined; the same ones for one seed, but for how they interleave.

    Attributes:
        kinds: what was sent, by kind.
        answers: by kind of call, how often each status came.
        findings: one text for each kind of wrong answer.
    """

    def __init__(self, address: str, token: str | None, seed: int) -> None:
        self.address, self.seed = address, seed
        self.messages = self.connections = 0
        self.kinds = Counter[str]()
        self.answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.findings: dict[str, str] = {}
        self._metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
        self._rng = random.Random(seed)
        self._arrays = np.random.default_rng(seed)
        self._sequence = 0
        self._version = 1
        self._left = 0

    async def run(self, messages: int) -> None:
        """Sends so many more."""
        self._left = messages
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            response = await self._join(channel)
            self._assignment, self._digest = decode_assignment(response), response.spec_digest
            await asyncio.gather(*(self._send_forever(channel) for _ in range(_IN_FLIGHT)))

    async def _join(self, channel: grpc.aio.Channel) -> pb.JoinResponse:
        call = channel.unary_unary(f"{_SERVICE}Join", pb.JoinRequest.SerializeToString, pb.JoinResponse.FromString)
        for actor in _ACTORS:
            request = pb.JoinRequest(
                protocol_version=1, actor_id=actor, incarnation=_INCARNATION, environments=2, encodings=[pb.ENCODING_ZSTD]
            )
            response: pb.JoinResponse = await call(request, metadata=self._metadata, timeout=60)
        return response

    async def _send_forever(self, channel: grpc.aio.Channel) -> None:
        kinds = (self._submit, self._join_mutated, self._fetch, self._bare, self._break_metadata, self._call_others, self._stream)
        while self._left > 0:
            self._left -= 1
            self.messages += 1
            if self.messages % 5_000 == 0:
                print(f"{self.messages} messages", file=sys.stderr, flush=True)
            send = self._rng.choices(kinds, (55, 12, 12, 5, 6, 6, 4))[0]
            await send(channel)
            if self._rng.random() < 0.03:
                self.connections += 1
                await send_garbage(self.address, self._rng)

    async def _submit(self, channel: grpc.aio.Channel) -> None:
        data = self._mutated(self._submission())
        await self._call(channel, "submit", f"{_SERVICE}SubmitTrajectory", data)

    async def _join_mutated(self, channel: grpc.aio.Channel) -> None:
        request = pb.JoinRequest(
            protocol_version=1,
            actor_id=self._rng.choice(_ACTORS),
            incarnation=_INCARNATION,
            host="h",
            environments=2,
            called="127.0.0.1:1",
        )
        if self._rng.random() < 0.3:
            request.actor_id = f"fuzz-{self._rng.getrandbits(64):x}"
        await self._call(channel, "join", f"{_SERVICE}Join", self._mutated(request))

    async def _fetch(self, channel: grpc.aio.Channel) -> None:
        request = pb.GetParametersRequest(actor_id=self._rng.choice(_ACTORS), known_version=self._version)
        await self._call(channel, "fetch", f"{_SERVICE}GetParameters", self._mutated(request))

    async def _bare(self, channel: grpc.aio.Channel) -> None:
        method = self._rng.choice(("Join", "GetParameters", "SubmitTrajectory"))
        data = self._rng.choice((b"", self._rng.randbytes(50), self._submission().SerializeToString(), bytes(100_000)))
        await self._call(channel, "bare", f"{_SERVICE}{method}", data)

    async def _break_metadata(self, channel: grpc.aio.Channel) -> None:
        given: Sequence[tuple[str, Any]] = self._rng.choice(
            (
                (),
                (("authorization", ""),),
                (("authorization", "Bearer x"),),
                (("authorization", "Bearer " + "x" * 3000),),
                (("authorization", "Basic Og=="), *self._metadata),
                (*self._metadata, *(("k", "v" * 100),) * 40),
                (*self._metadata, ("x-bin", self._rng.randbytes(64))),
                (*self._metadata, ("grpc-encoding", "nope")),
                (*self._metadata, ("grpc-timeout", "0n")),
                (*self._metadata, ("content-type", "text/plain")),
                (("x" * 200, "y" * 16_000), *self._metadata),
            )
        )
        await self._call(channel, "metadata", f"{_SERVICE}Join", self._submission().SerializeToString(), metadata=given)

    async def _call_others(self, channel: grpc.aio.Channel) -> None:
        data = self._rng.choice((b"", self._rng.randbytes(20), b"\x0a\x03abc"))
        if self._rng.random() < 0.5:
            path = self._rng.choice((*(f"{_SERVICE}{method}" for method in _METHODS), *_OTHER_PATHS))
            await self._call(channel, "method", path, data)
        else:
            given = self._rng.choice((self._metadata, self._metadata, ()))
            await self._call(channel, "health", self._rng.choice(_OPEN_PATHS), data, metadata=given)

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        """A stream of no message, or of several, where one is expected."""
        datas = [self._mutated(self._submission()) for _ in range(self._rng.choice((0, 2, 3)))]
        method = channel.stream_unary(f"{_SERVICE}{self._rng.choice(('Join', 'SubmitTrajectory'))}")
        seconds = _SECONDS if datas else _SHORT_SECONDS
        await self._judge("stream", lambda: method(iter(datas), metadata=self._metadata, timeout=seconds))

    async def _call(
        self, channel: grpc.aio.Channel, kind: str, path: str, data: bytes, metadata: Sequence[tuple[str, Any]] | None = None
    ) -> None:
        method = channel.unary_unary(path)
        given = self._metadata if metadata is None else metadata
        compression = grpc.Compression.Gzip if self._rng.random() < 0.05 else None
        seconds = _SHORT_SECONDS if path.endswith("/Watch") else _SECONDS
        await self._judge(kind, lambda: method(data, metadata=given, timeout=seconds, compression=compression))

    async def _judge(self, kind: str, call: Callable[[], Awaitable[Any]]) -> None:
        self.kinds[kind] += 1
        try:
            data = await call()
            status, text = "OK", ""
            if kind == "submit":
                self._version = max(self._version, pb.SubmitTrajectoryResponse.FromString(data).parameter_version)
        except grpc.aio.AioRpcError as error:
            status, text = error.code().name, f"{error.details()} {error.trailing_metadata()}"
            if str(error.debug_error_string()).startswith('Failed "execute_batch"'):
                status = _ENDED_HERE
        except asyncio.CancelledError:
            # Of a call whose deadline passed before it began gRPC cancels whoever waits for it; we are not.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            status, text = _ENDED_HERE, ""
        except grpc.aio.UsageError as error:  # the client itself will not send it
            status, text = "OK", f"{error}"
        self.answers[kind][status] += 1
        if status not in _STATUSES | _ALSO.get(kind, set()):
            self.findings.setdefault(f"{kind} {status}", f"{kind}: answered {status}: {text[:500]}")
        for sign in _SIGNS:
            if status != "OK" and sign in text:
                self.findings.setdefault(f"{kind} {sign}", f"{kind}: {sign!r} in the answer {status}: {text[:500]}")

    def _submission(self) -> pb.SubmitTrajectoryRequest:
        """Returns an unroll that the learner would take."""
        self._sequence += 1
        unroll = random_unroll(self._assignment.unroll_spec, self._rng.choice((1, 2, 4)), self._arrays)
        message = encode_unroll(unroll, Compressor() if self._rng.random() < 0.2 else None)
        message.parameter_version = self._version
        return pb.SubmitTrajectoryRequest(
            actor_id=self._rng.choice(_ACTORS),
            incarnation=_INCARNATION,
            sequence=self._sequence,
            spec_digest=self._digest,
            unroll=message,
            episodes=encode_episodes([Episode(episode_return=20.0, length=20)]),
            age_seconds=0.1,
        )

    def _mutated(self, message: Any) -> bytes:
        chance = self._rng.random()
        if chance < 0.1:
            return mutate_bytes(message.SerializeToString(), self._rng)
        if chance < 0.95:
            mutate_message(message, self._rng)
        return bytes(message.SerializeToString())
