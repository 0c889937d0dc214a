"""What actors that ask for weights cost: how much training slows while a thousand a second are told that theirs are the newest.

    python -m benchmarks.polls --output benchmarks/polls.json

One run of a learner with its local actors, in intervals of a few seconds that take turns: without anybody who asks, and with a
process that calls GetParameters so many times a second, over many connections, with the newest version that any of them has seen.
It is on the same processors, so that what it takes itself slows training too; its share is stated. Exit code 1 where training slows
by more than 5%, or where a version was encoded twice.
"""

import argparse
import asyncio
import json
import multiprocessing
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

from benchmarks.machine import machine
from benchmarks.scale import processor_seconds
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

_MOST_SLOWER = 0.05
_WARM_UP_SECONDS = 6.0


def poll(address: str, connections: int, rate: float, orders: Connection) -> None:
    """Asks while it is told to; answers each order with how many of its calls so far were told "not modified", and how many not."""
    asyncio.run(_poll(address, connections, rate, orders))


async def _poll(address: str, connections: int, rate: float, orders: Connection) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(connections)]
    stubs = [pb_grpc.LearnerStub(channel) for channel in channels]
    newest, asks = 0, False
    counts = {"not_modified": 0, "modified": 0}

    async def ask(index: int) -> None:
        nonlocal newest
        identity = {"actor_id": f"poller-{index}", "incarnation": time.time_ns()}
        await stubs[index].Join(pb.JoinRequest(protocol_version=1, **identity), wait_for_ready=True)
        pause = connections / rate
        due = time.monotonic() + pause * index / connections
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + pause, time.monotonic() - 1.0)
            if not asks:
                continue
            request = pb.GetParametersRequest(actor_id=f"poller-{index}", known_version=newest)
            answer = await stubs[index].GetParameters(request)
            newest = max(newest, answer.version)
            counts["not_modified" if answer.not_modified else "modified"] += 1

    tasks = [asyncio.create_task(ask(index)) for index in range(connections)]
    loop = asyncio.get_running_loop()
    while (order := await loop.run_in_executor(None, orders.recv)) != "end":
        asks = order == "ask"
        orders.send(dict(counts))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def measure(flags: list[str], *, connections: int, rate: float, seconds: float, turns: int) -> dict[str, Any]:
    """Returns trained steps a second in each interval, and what was asked and answered."""
    endless = ["--total-steps", "1000000000", "--stop-at-return", "1e9"]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        metrics = RunDirectory(Path(folder) / "run").metrics
        command = [sys.executable, "-m", "learner_server", "--actors", "2", "--run-dir", f"{folder}/run", *endless, *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as learner:
            assert learner.stdout is not None
            address = next(match[1] for line in learner.stdout if (match := re.search(r"listens on (\S+)", line)))
            # Whatever else it prints must not fill the pipe.
            with subprocess.Popen(["cat"], stdin=learner.stdout, stdout=subprocess.DEVNULL):
                ours, theirs = context.Pipe()
                poller = context.Process(target=poll, args=(address, connections, rate, theirs), daemon=True)
                poller.start()
                try:
                    while not (lines := read_metrics(metrics)) or lines[-1]["seconds"] < _WARM_UP_SECONDS:
                        time.sleep(0.2)
                    intervals = [
                        _interval(ours, metrics, poller.pid or 0, seconds=seconds, asks=bool(n % 2)) for n in range(2 * turns)
                    ]
                    ours.send("end")
                    poller.join()
                finally:
                    poller.kill()
                    learner.send_signal(signal.SIGTERM)
        last = read_metrics(metrics)[-1]
    return {
        "exit_code": learner.returncode,
        "parameter_encodings": last["parameter_encodings"],
        "parameter_version": last["parameter_version"],
        "intervals": intervals,
    }


def _interval(orders: Connection, metrics: Path, poller: int, *, asks: bool, seconds: float) -> dict[str, Any]:
    orders.send("ask" if asks else "rest")
    orders.recv()
    time.sleep(1.0)  # until there are lines of this interval alone
    first, used, began = read_metrics(metrics)[-1], processor_seconds(poller), time.monotonic()
    orders.send("ask" if asks else "rest")
    before = orders.recv()
    time.sleep(seconds)
    orders.send("rest")
    after, last, took = orders.recv(), read_metrics(metrics)[-1], time.monotonic() - began
    answers = {name: after[name] - before[name] for name in after}
    return {
        "asks": asks,
        "steps_per_second": round((last["env_steps"] - first["env_steps"]) / (last["seconds"] - first["seconds"])),
        "answers_per_second": round(sum(answers.values()) / took),
        **answers,
        "poller_cores": round((processor_seconds(poller) - used) / took, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0, help="calls a second")
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each interval")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--preset", default="atari-shallow", help="one whose versions are few, so that nearly all are told so")
    parser.add_argument("--output", type=Path)
    arguments, flags = parser.parse_known_args()
    result = measure(
        ["--preset", arguments.preset, *flags],
        connections=arguments.connections,
        rate=arguments.rate,
        seconds=arguments.seconds,
        turns=arguments.turns,
    )
    for interval in result["intervals"]:
        print(json.dumps(interval))
    without, beside = (
        statistics.median(each["steps_per_second"] for each in result["intervals"] if each["asks"] == asks)
        for asks in (False, True)
    )
    slower = 1.0 - beside / without
    print(f"training slows by {slower:.1%}; {result['parameter_encodings']} encodings of {result['parameter_version']} versions")
    if arguments.output is not None:
        record = {
            "command": f"python -m benchmarks.polls {' '.join(sys.argv[1:])}",
            "machine": machine(),
            "slower": round(slower, 4),
            **result,
        }
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(0 if slower <= _MOST_SLOWER and result["parameter_encodings"] <= result["parameter_version"] else 1)


if __name__ == "__main__":
    main()
