"""From few actors to many: what the learner still does a second, how long a submission takes, what a connection costs in memory.

    python -m benchmarks.scale --connections 4 64 512 --output benchmarks/scale.json

A real learner (preset cartpole) with simulated actors: real gRPC clients, a connection each, that send synthetic unrolls. Twice for
each number of connections: all of them send as soon as they are answered, so that the learner is what limits, and then together no
more than a share of what it took, so that there is room in the queue. Several rounds, in turn. Exit code 1 where a figure asked for
is missed.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.machine import machine
from impala.unroll import Unroll
from impala.wire import encode_unroll
from learner_server.presets import preset
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

_ENVIRONMENTS, _LENGTH = 16, 20
_WARM_UP_SECONDS = 4.0
_PATIENCE_SECONDS = 120.0


def synthetic_unroll(length: int, environments: int) -> Unroll[np.ndarray]:
    """Returns an unroll that could be CartPole's, of random content."""
    generator = np.random.default_rng(0)
    rows = (length, environments)
    return Unroll(
        observations={"observation": generator.normal(size=(length + 1, environments, 4)).astype(np.float32)},
        is_first=np.zeros((length + 1, environments), np.bool_),
        actions=generator.integers(0, 2, size=rows),
        rewards=np.ones(rows, np.float32),
        terminated=np.zeros(rows, np.bool_),
        behaviour_log_probs=np.full(rows, -0.69, np.float32),
        initial_state={},
        parameter_version=np.ones(environments, np.int64),
    )


def simulate(address: str, connections: int, rate: float | None, orders: Connection) -> None:
    """Plays `connections` actors until told to stop, and answers with how long their submissions took, in seconds.

    Args:
        rate: submissions a second of all of them together; None for as many as are answered.
        orders: gives "begin" and "end"; gets "ready", and the times between the two.
    """
    orders.send(asyncio.run(_simulate(address, connections, rate, orders)))


async def _simulate(address: str, connections: int, rate: float | None, orders: Connection) -> list[float]:
    times: list[float] = []
    measuring = [False]
    # A connection each: channels to one address would share one.
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(connections)]

    async def act(index: int) -> None:
        stub, unroll = pb_grpc.LearnerStub(channels[index]), encode_unroll(synthetic_unroll(_LENGTH, _ENVIRONMENTS))
        identity = {"actor_id": f"simulated-{index}", "incarnation": time.time_ns()}
        join = pb.JoinRequest(protocol_version=1, environments=_ENVIRONMENTS, **identity)
        digest = (await stub.Join(join, wait_for_ready=True)).spec_digest
        pause = 0.0 if rate is None else connections / rate
        await asyncio.sleep(pause * index / connections)
        for sequence in range(1, sys.maxsize):
            request = pb.SubmitTrajectoryRequest(sequence=sequence, spec_digest=digest, unroll=unroll, age_seconds=0.1, **identity)
            began = time.monotonic()
            answer = await stub.SubmitTrajectory(request)
            if measuring[0]:
                times.append(time.monotonic() - began)
            unroll.parameter_version = answer.parameter_version
            await asyncio.sleep(max(0.0, began + pause - time.monotonic()))

    tasks = [asyncio.create_task(act(index)) for index in range(connections)]
    orders.send("ready")
    loop = asyncio.get_running_loop()
    for state in (True, False):
        await loop.run_in_executor(None, orders.recv)
        measuring[0] = state
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return times


def resident_bytes(process: int) -> int:
    """Returns a process's resident memory."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {process} has no VmRSS")


def processor_seconds(process: int) -> float:
    """Returns the processor time that a process has used so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class RunningLearner:
    """A learner that waits for actors, in a folder of its own."""

    def __init__(self, folder: Path, flags: list[str]) -> None:
        self._metrics = RunDirectory(folder / "run").metrics
        endless = ["--total-steps", "1000000000", "--stop-at-return", "1e9", "--actors", "0"]
        command = [
            sys.executable,
            "-m",
            "learner_server",
            "--preset",
            "cartpole",
            "--run-dir",
            str(folder / "run"),
            *endless,
            *flags,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = ""
        for line in self.process.stdout:
            if "listens on" in line:
                self.address = line.split()[-1]
                break
        # Whatever else it prints must not fill the pipe.
        self._drain = subprocess.Popen(["cat"], stdin=self.process.stdout, stdout=subprocess.DEVNULL)

    def last(self) -> Mapping[str, Any]:
        """Returns the newest line of its metrics; before there is any, that nobody came yet."""
        lines = read_metrics(self._metrics)
        return lines[-1] if lines else {"actors": 0, "env_steps": 0}

    def stop(self) -> None:
        """Ends it in good order."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self._drain.wait()


def measure(connections: int, seconds: float, rate: float | None) -> dict[str, Any]:
    """Returns what a learner did with so many actors."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        learner = RunningLearner(Path(folder), ["--envs", str(_ENVIRONMENTS)])
        ours, theirs = context.Pipe()
        actors = context.Process(target=simulate, args=(learner.address, connections, rate, theirs), daemon=True)
        try:
            actors.start()
            assert actors.pid is not None
            both = (learner.process.pid, actors.pid)
            assert ours.recv() == "ready"
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while learner.last()["actors"] < connections or not learner.last()["env_steps"]:
                if time.monotonic() > deadline or not actors.is_alive():
                    raise RuntimeError(f"{learner.last()['actors']} of {connections} actors joined")
                time.sleep(0.2)
            time.sleep(_WARM_UP_SECONDS)
            ours.send("begin")
            first, began, used = learner.last(), time.monotonic(), [processor_seconds(each) for each in both]
            time.sleep(seconds)
            ours.send("end")
            last, took = learner.last(), time.monotonic() - began
            used = [processor_seconds(each) - before for each, before in zip(both, used, strict=True)]
            memory = resident_bytes(learner.process.pid)
            times = sorted(ours.recv())
        finally:
            actors.kill()
            actors.join()
            learner.stop()
    elapsed = last["seconds"] - first["seconds"]
    return {
        "connections": connections,
        "offered_a_second": rate,
        "learner_updates_per_second": round((last["learner_updates"] - first["learner_updates"]) / elapsed, 2),
        "submissions_per_second": round(len(times) / took, 1),
        "submit_seconds_median": round(statistics.median(times), 4),
        "submit_seconds_p99": round(times[int(0.99 * (len(times) - 1))], 4),
        "learner_cores": round(used[0] / took, 2),
        "simulation_cores": round(used[1] / took, 2),
        "resident_mebibytes": round(memory / 2**20, 1),
        "unbalanced": last["steps_received"] - last["steps_trained"] - last["steps_dropped"] - last["steps_waiting"],
    }


def _median(runs: list[dict[str, Any]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, nargs="+", default=[4, 64, 512])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; medians of them are summed up")
    parser.add_argument("--share", type=float, default=0.3, help="of what the learner took, offered where there is to be room")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    full: dict[int, list[dict[str, Any]]] = {connections: [] for connections in arguments.connections}
    paced: dict[int, list[dict[str, Any]]] = {connections: [] for connections in arguments.connections}
    batches = preset("cartpole").get("batch_size", 32) / _ENVIRONMENTS
    for _ in range(arguments.repeats):
        for connections in arguments.connections:
            full[connections].append(measure(connections, arguments.seconds, None))
            print(json.dumps(full[connections][-1]), flush=True)
            room = arguments.share * full[arguments.connections[0]][0]["learner_updates_per_second"] * batches
            paced[connections].append(measure(connections, arguments.seconds, room))
            print(json.dumps(paced[connections][-1]), flush=True)
    few, many = arguments.connections[0], arguments.connections[-1]
    added = max(1, many - few)

    def grown(runs: dict[int, list[dict[str, Any]]]) -> float:
        """Returns kilobytes of memory for each actor more."""
        mebibytes = _median(runs[many], "resident_mebibytes") - _median(runs[few], "resident_mebibytes")
        return round(mebibytes * 2**20 / 1e3 / added, 1)

    summary = {
        "updates_many_to_few": round(
            _median(full[many], "learner_updates_per_second") / _median(full[few], "learner_updates_per_second"), 3
        ),
        "worst_p99_with_room_seconds": max(_median(runs, "submit_seconds_p99") for runs in paced.values()),
        "kilobytes_per_actor_with_room": grown(paced),
        "kilobytes_per_actor_all_in_line": grown(full),
    }
    print(json.dumps(summary))
    if arguments.output is not None:
        command = f"python -m benchmarks.scale {' '.join(sys.argv[1:])}"
        runs = {"full": [*itertools.chain(*full.values())], "paced": [*itertools.chain(*paced.values())]}
        record = {"command": command, "machine": machine(), "summary": summary, **runs}
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    met = (
        summary["updates_many_to_few"] >= 0.95
        and summary["worst_p99_with_room_seconds"] <= 0.020
        and summary["kilobytes_per_actor_all_in_line"] <= 100.0
    )
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
