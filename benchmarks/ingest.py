"""Ingest: agent steps per second that a learner's service takes in, checks, expands and puts side by side in batches.

    python -m benchmarks.ingest --output benchmarks/ingest.json

The service is the learner's own, on loopback, without TLS; senders are processes of their own, each an actor with several calls
under way, that send recorded unrolls of a real game again and again, under new sequences. A thread takes batches and marks them
trained at once; nothing learns. Everything is on this machine's processors, senders included. Bytes are those of the loopback
interface: HTTP/2, TCP, IP, answers and acknowledgements. Exit code 1 if the median rate is below --at-least.
"""

import argparse
import asyncio
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import torch

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


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Counters at one moment: agent steps in batches, bytes on loopback, processor seconds of this process."""

    at: float
    steps: int
    bytes: int
    processor: float

    @classmethod
    def now(cls, steps: int) -> "Sample":
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(at=time.monotonic(), steps=steps, bytes=_loopback_bytes(), processor=usage.ru_utime + usage.ru_stime)


def _loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])  # received; what is sent is the same bytes
    raise RuntimeError("no interface lo")


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


def serve(agent: AgentConfig, spec: UnrollSpec, queue: UnrollQueue) -> tuple[LearnerServer, LearnerServicer, str]:
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
    return LearnerServer(servicer, "127.0.0.1:0"), servicer, digest


def measure(
    agent: AgentConfig, spec: UnrollSpec, unrolls: list[bytes], *, senders: int, under_way: int, batch: int, seconds: float
) -> dict[str, Any]:
    """Returns the rate of one run, after its warm-up."""
    queue = UnrollQueue(capacity=2 * batch, max_line=4096)
    server, servicer, digest = serve(agent, spec, queue)
    address = f"127.0.0.1:{server.start()}"
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
        context.Process(target=send, args=(address, index, digest, unrolls, under_way), daemon=True) for index in range(senders)
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
        first = Sample.now(taken[0])
        time.sleep(seconds)
        last = Sample.now(taken[0])
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
    for _ in range(arguments.repeats):
        runs.append(
            measure(
                agent,
                spec,
                unrolls,
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
        machine = f"{platform.machine()}, Python {platform.python_version()}"
        arguments.output.write_text(json.dumps({"command": command, "machine": machine, "runs": runs}, indent=1) + "\n")
    sys.exit(0 if median >= arguments.at_least else 1)


if __name__ == "__main__":
    main()
