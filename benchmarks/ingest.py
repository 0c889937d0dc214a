"""Ingest: agent steps per second that a learner's service takes in, checks, expands and puts side by side in batches.

    python -m benchmarks.ingest --output benchmarks/ingest.json

The service is the learner's own, on loopback, without TLS; senders are processes of their own, each an actor with several calls
under way, that send recorded unrolls of a real game again and again, under new sequences. A thread takes batches and marks them
trained at once; nothing learns. Everything is on this machine's processors, senders included. Bytes are those of the loopback
interface: HTTP/2, TCP, IP, answers and acknowledgements. Exit code 1 if the median rate is below --at-least.

    sudo python -m benchmarks.ingest --megabits 100 --at-least 62500 --output benchmarks/ingest-100-megabits.json

puts the senders into a network namespace of their own, whose only way out is a link of that rate in each direction (veth and tbf,
by iproute2; the namespace ends with the program): the paper's 250,000 frames a second are 62,500 agent steps.
"""

import argparse
import asyncio
import ctypes
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import torch

from benchmarks.machine import machine
from benchmarks.wire import collect
from impala.config import AgentConfig
from impala.networks import build_network
from impala.processor import prepare_processor
from impala.specs import UnrollSpec
from impala.unroll import Unroll
from impala.wire import Assignment, Compressor, encode_unroll, spec_digest
from learner_server.actor_registry import Actor, ActorRegistry
from learner_server.config import LearnerConfig
from learner_server.parameter_store import ParameterStore
from learner_server.presets import preset
from learner_server.server import LearnerServer
from learner_server.servicer import LearnerServicer
from learner_server.unroll_queue import UnrollQueue
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc

_WARM_UP_SECONDS = 2.0
# Of <sched.h>.
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Counters at one moment: agent steps in batches, bytes that came over the link, processor seconds of this process."""

    at: float
    steps: int
    bytes: int
    processor: float

    @classmethod
    def now(cls, steps: int, interface: str) -> "Sample":
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(at=time.monotonic(), steps=steps, bytes=_bytes_received(interface), processor=usage.ru_utime + usage.ru_stime)


def _bytes_received(interface: str) -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == interface:
            return int(counters.split()[0])  # on loopback what is sent is the same bytes
    raise RuntimeError(f"no interface {interface}")


@dataclass(frozen=True, kw_only=True)
class Link:
    """How senders reach the service: its host, the interface by which they come in, and the network namespace that they are in."""

    host: str = "127.0.0.1"
    interface: str = "lo"
    namespace: str | None = None  # the one that everything is in


@contextmanager
def shaped(megabits: float) -> Iterator[Link]:
    """Yields a link of that rate in each direction to a new network namespace."""
    name, ours, theirs = f"senders{os.getpid()}", f"in{os.getpid()}", f"out{os.getpid()}"

    def run(*command: str) -> None:
        subprocess.run(command, check=True)

    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs)
        run("ip", "link", "set", theirs, "netns", name)
        rate = ["root", "tbf", "rate", f"{megabits:g}mbit", "burst", "64kb", "latency", "50ms"]
        run("ip", "addr", "add", "10.78.0.1/24", "dev", ours)
        run("ip", "link", "set", ours, "up")
        run("tc", "qdisc", "add", "dev", ours, *rate)
        run("ip", "-n", name, "addr", "add", "10.78.0.2/24", "dev", theirs)
        run("ip", "-n", name, "link", "set", theirs, "up")
        run("tc", "-n", name, "qdisc", "add", "dev", theirs, *rate)
        yield Link(host="10.78.0.1", interface=ours, namespace=name)
    finally:
        run("ip", "netns", "del", name)


def enter(namespace: str) -> None:
    """Moves this thread, the only one so far, to a network namespace."""
    with Path(f"/var/run/netns/{namespace}").open() as file:
        if ctypes.CDLL(None).setns(file.fileno(), _CLONE_NEWNET):
            raise RuntimeError(f"cannot enter the network namespace {namespace}")


def send_from(namespace: str | None, *arguments: Any) -> None:
    """Calls `send` in a network namespace."""
    if namespace is not None:
        enter(namespace)
    send(*arguments)


def send(address: str, index: int, digest: str, unrolls: list[bytes], under_way: int) -> None:
    """Sends unrolls, serialised `Unroll` messages, in turn until killed; with `under_way` calls at once."""
    asyncio.run(_send(address, index, digest, unrolls, under_way))


async def _send(address: str, index: int, digest: str, unrolls: list[bytes], under_way: int) -> None:
    actor_id, incarnation = f"sender-{index}", time.time_ns()
    requests = [
        pb.SubmitTrajectoryRequest(
            actor_id=actor_id, incarnation=incarnation, spec_digest=digest, unroll=pb.Unroll.FromString(each), age_seconds=0.1
        )
        for each in unrolls
    ]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.LearnerStub(channel)
        await stub.Join(pb.JoinRequest(protocol_version=1, actor_id=actor_id, incarnation=incarnation))
        sequences = iter(range(1, sys.maxsize))

        async def keep_sending() -> None:
            for sequence in sequences:
                request = requests[sequence % len(requests)]
                request.sequence = sequence
                # Serialised here and now: the next call sets another sequence on the same message.
                await stub.SubmitTrajectory(request)

        await asyncio.gather(*(keep_sending() for _ in range(under_way)))


def serve(agent: AgentConfig, spec: UnrollSpec, queue: UnrollQueue, host: str) -> tuple[LearnerServer, LearnerServicer, str]:
    """Returns a service that is ready to start, and the digest that unrolls must carry."""
    digest, store = spec_digest(agent, spec), ParameterStore()
    store.publish(1, build_network(agent.network, spec.environment).state_dict())

    def assign(actor: Actor, environments: int) -> Assignment:
        return Assignment(
            run_id="ingest",
            spec_digest=digest,
            environment=agent.environments[0],
            task=0,
            network=agent.network,
            unroll_spec=spec,
            environments=environments or spec.max_environments,
            seed=actor.index,
            max_in_flight=2,
        )

    servicer = LearnerServicer(
        assign=assign,
        spec=spec,
        spec_digest=digest,
        queue=queue,
        store=store,
        actors=ActorRegistry(1),
        max_policy_lag=1000,
        on_unroll=lambda *_: None,
    )
    return LearnerServer(servicer, f"{host}:0"), servicer, digest


def measure(
    agent: AgentConfig,
    spec: UnrollSpec,
    unrolls: list[bytes],
    link: Link,
    *,
    senders: int,
    under_way: int,
    batch: int,
    seconds: float,
) -> dict[str, Any]:
    """Returns the rate of one run, after its warm-up."""
    queue = UnrollQueue(capacity=2 * batch, max_line=4096)
    server, servicer, digest = serve(agent, spec, queue, link.host)
    address = f"{link.host}:{server.start()}"
    stopped, taken = threading.Event(), [0]

    def take() -> None:
        while not stopped.is_set():
            columns: Unroll[Any] | None = queue.take_batch(batch, 0.1)
            if columns is not None:
                queue.mark_trained()
                taken[0] += columns.env_steps

    taker = threading.Thread(target=take, name="taker")
    taker.start()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=send_from, args=(link.namespace, address, index, digest, unrolls, under_way), daemon=True)
        for index in range(senders)
    ]
    for process in processes:
        process.start()
    try:
        deadline = time.monotonic() + 60.0
        while not taken[0]:
            if time.monotonic() > deadline or not any(process.is_alive() for process in processes):
                raise RuntimeError("no unroll arrived")
            time.sleep(0.05)
        time.sleep(_WARM_UP_SECONDS)
        first = Sample.now(taken[0], link.interface)
        time.sleep(seconds)
        last = Sample.now(taken[0], link.interface)
    finally:
        for process in processes:
            process.kill()
            process.join()
        stopped.set()
        taker.join()
        queue.close(run_over=True)
        server.stop(0.5)
    steps, elapsed = last.steps - first.steps, last.at - first.at
    return {
        "steps_per_second": round(steps / elapsed),
        "megabits_per_second": round((last.bytes - first.bytes) * 8e-6 / elapsed, 1),
        "bytes_per_step": round((last.bytes - first.bytes) / steps, 1),
        "learner_microseconds_per_step": round((last.processor - first.processor) / steps * 1e6, 2),
        "learner_cores": round((last.processor - first.processor) / elapsed, 2),
        "refused": dict(servicer.refused),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="ALE/Breakout-v5")
    parser.add_argument("--preset", default="atari-shallow")
    parser.add_argument("--envs", type=int, default=32, help="environments of an unroll")
    parser.add_argument("--unrolls", type=int, default=8, help="recorded ones, sent in turn")
    parser.add_argument("--senders", type=int, default=2)
    parser.add_argument("--under-way", type=int, default=4, help="calls of a sender at once")
    parser.add_argument("--batch", type=int, default=128, help="trajectories")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--at-least", type=float, default=250_000.0, help="agent steps a second")
    parser.add_argument("--megabits", type=float, help="of a link between senders and service; default: loopback, as fast as it is")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    prepare_processor(1)
    torch.manual_seed(0)
    recorded, spec = collect(arguments.game, arguments.preset, environments=arguments.envs, skipped=4, unrolls=arguments.unrolls)
    compressor = Compressor()
    for _ in range(2):  # what does not pay is known from then on
        unrolls = [encode_unroll(unroll, compressor).SerializeToString() for unroll in recorded]
    agent = LearnerConfig(**{**preset(arguments.preset), "env": (arguments.game,)}).agent()
    runs = []
    with nullcontext(Link()) if arguments.megabits is None else shaped(arguments.megabits) as link:
        for _ in range(arguments.repeats):
            runs.append(
                measure(
                    agent,
                    spec,
                    unrolls,
                    link,
                    senders=arguments.senders,
                    under_way=arguments.under_way,
                    batch=arguments.batch,
                    seconds=arguments.seconds,
                )
            )
            print(json.dumps(runs[-1]), flush=True)
    median = statistics.median(run["steps_per_second"] for run in runs)
    print(f"median {median:,.0f} agent steps per second")
    if arguments.output is not None:
        command = f"python -m benchmarks.ingest {' '.join(sys.argv[1:])}"
        arguments.output.write_text(json.dumps({"command": command, "machine": machine(), "runs": runs}, indent=1) + "\n")
    sys.exit(0 if median >= arguments.at_least else 1)


if __name__ == "__main__":
    main()
