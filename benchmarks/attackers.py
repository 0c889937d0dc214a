"""Processes that mean ill, each in its own way, for benchmarks/hostile.py: at a bounded rate, and only while they are told to."""

import asyncio
import gzip
import os
import resource
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import grpc
import zstandard

from benchmarks.raw_http2 import PREFACE, begin_call, begin_message, is_closed, part_of_message
from benchmarks.scale import synthetic_unroll
from impala.wire import encode_unroll
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc

_BOMB_BYTES = 2**31
_SLICE = 16_000
# As the preset cartpole has them.
_LENGTH, _ENVIRONMENTS = 20, 32


@dataclass(frozen=True)
class Target:
    """The learner, and what somebody with the token knows of it."""

    address: str
    token: str

    @property
    def place(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host, int(port)

    @property
    def bearer(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),)


class Attacker:
    """Attacks while it is told to. `counts` says how the learner answered, so far; intervals are `longer` by that factor."""

    longer = 1.0

    def __init__(self, target: Target) -> None:
        self.target = target
        self.counts: Counter[str] = Counter()
        self.attacks = False

    async def run(self) -> None:
        """Attacks until cancelled."""
        raise NotImplementedError

    async def at_rate(self, rate: float, strike: Callable[[], Awaitable[None]], *, at_once: int = 200) -> None:
        """Strikes so many times a second while told to, without waiting for the answers."""
        due, under_way = time.monotonic(), set[asyncio.Task[None]]()
        while True:
            due = max(due + 1.0 / rate, time.monotonic() - 0.1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self.attacks and len(under_way) < at_once:
                task = asyncio.ensure_future(strike())
                under_way.add(task)
                task.add_done_callback(under_way.discard)

    async def call(self, answer: Awaitable[object]) -> None:
        """Counts how a call is answered."""
        try:
            await answer
            self.counts["OK"] += 1
        except grpc.aio.AioRpcError as error:
            self.counts[f"{error.code().name}: {(error.details() or '').partition(':')[0][:60]}"] += 1

    async def join(self, stub: pb_grpc.LearnerStub) -> pb.JoinResponse:
        """Joins as actor `mallory`."""
        request = pb.JoinRequest(protocol_version=1, actor_id="mallory", incarnation=time.time_ns(), stay=True)
        self.incarnation = request.incarnation
        response: pb.JoinResponse = await stub.Join(request, metadata=self.target.bearer, wait_for_ready=True)
        return response


class _Submitter(Attacker):
    """Submits unrolls that are valid but for one tensor."""

    rate = 50.0

    def spoil(self, tensor: pb.Tensor) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        async with grpc.aio.insecure_channel(self.target.address) as channel:
            stub = pb_grpc.LearnerStub(channel)
            digest = (await self.join(stub)).spec_digest
            unroll = encode_unroll(synthetic_unroll(_LENGTH, _ENVIRONMENTS))
            self.spoil(unroll.rewards)
            identity = {"actor_id": "mallory", "incarnation": self.incarnation, "spec_digest": digest}
            sequence = 0

            async def strike() -> None:
                nonlocal sequence
                sequence += 1
                request = pb.SubmitTrajectoryRequest(sequence=sequence, unroll=unroll, **identity)
                await self.call(stub.SubmitTrajectory(request, metadata=self.target.bearer))

            await self.at_rate(self.rate, strike)


def bomb() -> bytes:
    """Returns a Zstandard frame of some 64 kB that holds two gibibytes, and says so."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=_BOMB_BYTES)
    chunk = bytes(2**24)
    return b"".join(compressor.compress(chunk) for _ in range(_BOMB_BYTES // len(chunk))) + compressor.flush()


def lying_bomb(size: int) -> bytes:
    """Returns the same frame, which says that it holds `size` bytes."""
    frame, stated = bomb(), _BOMB_BYTES.to_bytes(4, "little")
    place = frame.index(stated, 4, 12)
    lying = frame[:place] + size.to_bytes(4, "little") + frame[place + 4 :]
    assert zstandard.get_frame_parameters(lying).content_size == size
    return lying


class Bombs(_Submitter):
    """Tensors of the right shape whose frame holds, and states, gigabytes; 50 a second."""

    def spoil(self, tensor: pb.Tensor) -> None:
        tensor.encoding, tensor.data = pb.ENCODING_ZSTD, bomb()


class LyingBombs(_Submitter):
    """The same, stating the size that the shape takes; 50 a second."""

    def spoil(self, tensor: pb.Tensor) -> None:
        tensor.encoding, tensor.data = pb.ENCODING_ZSTD, lying_bomb(len(tensor.data))


class Shapes(_Submitter):
    """Tensors that claim a shape of [2^62, 2^62]; 100 a second."""

    rate = 100.0

    def spoil(self, tensor: pb.Tensor) -> None:
        tensor.shape[:] = [2**62, 2**62]


class GzipBombs(Attacker):
    """Messages that gRPC itself is to decompress, to 32 MiB of zeros; 50 a second, on a new connection each."""

    async def run(self) -> None:
        # Compressed it fits into the window that a connection has at first.
        content = gzip.compress(bytes(2**25), 9)
        message = b"\1" + len(content).to_bytes(4, "big") + content
        metadata = (*self.target.bearer, ("grpc-encoding", "gzip"))
        attack = PREFACE + begin_call("SubmitTrajectory", 1, metadata)
        attack += b"".join(part_of_message(message[start : start + _SLICE], 1) for start in range(0, len(message), _SLICE))

        async def strike() -> None:
            reader, writer = await asyncio.open_connection(*self.target.place)
            try:
                writer.write(attack)
                came = b""
                while b"not one" not in came and (more := await asyncio.wait_for(reader.read(65_536), 10.0)):
                    came += more
                self.counts["INVALID_ARGUMENT: message" if b"bytes that are not one" in came else "otherwise"] += 1
            finally:
                writer.close()

        await self.at_rate(50.0, strike)


class Connections(Attacker):
    """10,000 connections, half silent, half with HTTP/2's preface, 1,000 a second; those that are closed again, 200 a second."""

    wanted = 10_000
    longer = 4.0  # so that all are opened within an interval

    async def run(self) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        held: list[socket.socket] = []
        opened, looked_at = 0, 0
        while True:
            await asyncio.sleep(0.01)
            if not self.attacks:
                for connection in held:
                    connection.close()
                held.clear()
                opened = 0
                continue
            # Quickly until all were opened once, then slowly.
            for _ in range(10 if opened < self.wanted else 2):
                if len(held) < self.wanted:
                    opened += 1
                    self.counts["opened"] += 1
                    held.append(self._open(preface=bool(opened % 2)))
            for _ in range(min(50, len(held))):
                looked_at = (looked_at + 1) % len(held)
                if is_closed(held[looked_at]):
                    self.counts["closed by the learner"] += 1
                    held.pop(looked_at).close()
                    looked_at = looked_at % len(held) if held else 0
            self.counts["held at most"] = max(self.counts["held at most"], len(held))

    def _open(self, *, preface: bool) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(self.target.place)
        if preface:
            try:
                connection.send(PREFACE)
            except OSError:
                self.counts["no preface sent"] += 1
        return connection


class Drippers(Attacker):
    """64 connections, each with one call whose message of 20,000 bytes comes by two bytes a second."""

    wanted = 64

    async def run(self) -> None:
        held: list[socket.socket] = []
        opening = PREFACE + begin_call("SubmitTrajectory", 1, self.target.bearer) + begin_message(20_000, 1)
        while True:
            await asyncio.sleep(0.5)
            if not self.attacks:
                for connection in held:
                    connection.close()
                held.clear()
                continue
            while len(held) < self.wanted:
                connection = socket.create_connection(self.target.place, timeout=5.0)
                connection.sendall(opening)
                held.append(connection)
                self.counts["calls"] += 1
            for connection in list(held):
                if is_closed(connection):
                    held.remove(connection)
                    self.counts["closed by the learner"] += 1
                    continue
                connection.setblocking(True)
                connection.sendall(part_of_message(b"x", 1))
                self.counts["bytes dripped"] += 1


class NoToken(Attacker):
    """Calls of all methods without the token, with messages of 30 kB; 200 a second."""

    async def run(self) -> None:
        async with grpc.aio.insecure_channel(self.target.address) as channel:
            methods = ("Join", "GetParameters", "SubmitTrajectory")
            calls = [channel.unary_unary(f"/impala.v1.Learner/{method}") for method in methods]
            count = 0

            async def strike() -> None:
                nonlocal count
                count += 1
                await self.call(calls[count % len(calls)](bytes(30_000)))

            await self.at_rate(200.0, strike)


class Greedy(Attacker):
    """One actor that asks for weights that it has, 4,000 times a second over four connections, 1,024 of them at once."""

    async def run(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(self.target.address, options=options) for _ in range(4)]
        stubs = [pb_grpc.LearnerStub(channel) for channel in channels]
        await self.join(stubs[0])
        count, newest = 0, 0

        async def ask(stub: pb_grpc.LearnerStub) -> None:
            nonlocal newest
            request = pb.GetParametersRequest(actor_id="mallory", known_version=newest)
            newest = max(newest, (await stub.GetParameters(request, metadata=self.target.bearer)).version)

        async def strike() -> None:
            nonlocal count
            count += 1
            await self.call(ask(stubs[count % len(stubs)]))

        await self.at_rate(4000.0, strike, at_once=1024)


ATTACKERS: dict[str, type[Attacker]] = {
    "bombs": Bombs,
    "lying-bombs": LyingBombs,
    "gzip-bombs": GzipBombs,
    "shapes": Shapes,
    "connections": Connections,
    "drippers": Drippers,
    "no-token": NoToken,
    "greedy": Greedy,
}


def attack(name: str, target: Target, orders: Connection) -> None:
    """Plays one attacker at the lowest priority; answers each order, "attack", "rest" or "end", with its counts so far."""
    os.nice(19)
    asyncio.run(_attack(ATTACKERS[name](target), orders))


async def _attack(attacker: Attacker, orders: Connection) -> None:
    task = asyncio.create_task(attacker.run())
    loop = asyncio.get_running_loop()
    while (order := await loop.run_in_executor(None, orders.recv)) != "end":
        if task.done():
            task.result()
        attacker.attacks = order == "attack"
        orders.send(dict(attacker.counts))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
