"""Actors behind a slow link: learner and actors in network namespaces of their own, on a link of a given delay and bandwidth.

    sudo python -m benchmarks.far --round-trips 0 20 50 100

trains CartPole-v1 at each round trip in milliseconds, over TLS and with a token, several times in turn, and writes
results/far.json: agent steps a second at each as a ratio to the first. Needs Linux, the right to make network namespaces, and
iproute2. The namespaces and everything started in them end with the program.

The link is two TUN devices and the loop below that carries packets from one to the other, each at its time: kernels of small
virtual machines often come without netem. Every round trip goes through it, that of 0 as well, so that what it costs is in all
figures alike.
"""

import argparse
import asyncio
import fcntl
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

LEARNER, ACTORS = "10.77.0.1", "10.77.0.2"
PORT = 50051
OUTPUT = Path("results/far.json")
# Larger batches than the preset's, hence fewer updates while an unroll travels, and a learning rate that stands a lag of ten.
FLAGS = [
    *("--preset", "cartpole", "--envs", "64", "--batch-size", "128", "--max-in-flight", "2"),
    *("--learning-rate", "1e-3", "--max-on-the-way", "16", "--total-steps", "2000000"),
]
_MTU = 1500
# From <linux/if_tun.h>.
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
# A router's: what does not fit is dropped, and TCP slows down.
_BUFFER_SECONDS = 0.2
# What a run takes until it is up to speed, and the end, are left out.
_FROM, _TO = 0.2, 0.95


@dataclass
class Direction:
    """One direction of a link: packets leave one after the other at the link's rate and arrive `delay` seconds later."""

    source: int
    target: int
    delay: float
    seconds_per_byte: float
    free_at: float = 0.0
    packets: int = 0
    dropped: int = 0

    def carry(self) -> None:
        """Takes one packet from the source and sees to it that it arrives at its time."""
        loop = asyncio.get_running_loop()
        packet = os.read(self.source, 65_536)
        now = loop.time()
        if self.free_at - now > _BUFFER_SECONDS:
            self.dropped += 1
            return
        self.packets += 1
        self.free_at = max(now, self.free_at) + len(packet) * self.seconds_per_byte
        loop.call_at(self.free_at + self.delay, os.write, self.target, packet)


def ip(*arguments: str) -> None:
    """Runs the command ip."""
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def namespace(name: str, address: str) -> Iterator[int]:
    """Yields the file of a TUN device that is the only way out of a new network namespace, whose own address is given."""
    ip("netns", "add", name)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
        ip("link", "set", name, "netns", name)
        ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
        ip("-n", name, "link", "set", name, "mtu", str(_MTU), "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield device
    finally:
        os.close(device)
        ip("netns", "del", name)


class Processes:
    """Starts programs in network namespaces; whatever still runs at the end is ended."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, where: str, *command: str) -> subprocess.Popen[bytes]:
        """Starts a Python module in a namespace."""
        with (self._logs / f"{len(self._started)}.log").open("wb") as log:
            process = subprocess.Popen(["ip", "netns", "exec", where, sys.executable, "-m", *command], stdout=log, stderr=log)
        self._started.append(process)
        return process

    def end(self) -> None:
        """Ends them all."""
        for process in self._started:
            process.terminate()
        for process in self._started:
            process.wait()


async def train(round_trip: float, megabits: float, flags: list[str]) -> dict[str, Any]:
    """Returns how a run went whose actors are `round_trip` seconds away."""
    suffix = os.getpid()
    with ExitStack() as open_ones:
        folder = Path(open_ones.enter_context(tempfile.TemporaryDirectory()))
        certs = folder / "certs"
        make_certificates = [sys.executable, "-m", "learner_server.certificates", "--dir", str(certs), "--hosts", LEARNER]
        subprocess.run(make_certificates, check=True, stdout=subprocess.DEVNULL)
        here, there = f"learner{suffix}", f"actors{suffix}"
        devices = [open_ones.enter_context(namespace(name, address)) for name, address in ((here, LEARNER), (there, ACTORS))]
        seconds_per_byte = 8.0 / (megabits * 1e6)
        directions = [Direction(*pair, round_trip / 2, seconds_per_byte) for pair in (devices, devices[::-1])]
        loop = asyncio.get_running_loop()
        for direction in directions:
            loop.add_reader(direction.source, direction.carry)
            open_ones.callback(loop.remove_reader, direction.source)
        processes = Processes(folder)
        open_ones.callback(processes.end)
        learner = processes.start(
            here, "learner_server", *flags, "--run-dir", str(folder / "run"), "--listen", f"{LEARNER}:{PORT}",
            "--token-file", str(certs / "token"),
            "--tls-cert", str(certs / "learner.pem"), "--tls-key", str(certs / "learner-key.pem"),
        )  # fmt: skip
        actors = []
        for _ in range(2):
            secrets = ["--token-file", str(certs / "token"), "--tls-ca", str(certs / "ca.pem")]
            actors.append(processes.start(there, "actor_client", "--learner", f"{LEARNER}:{PORT}", *secrets))
        while learner.poll() is None and not any(actor.poll() for actor in actors):
            await asyncio.sleep(0.1)
        if learner.returncode not in {0, 1}:
            raise RuntimeError("\n".join(path.read_text() for path in sorted(folder.glob("*.log"))))
        return {"exit_code": learner.returncode, **_describe(folder / "run"), **_traffic(directions)}


def _describe(run: Path) -> dict[str, Any]:
    lines = [line for line in read_metrics(RunDirectory(run).metrics) if line["env_steps"]]
    steps = lines[-1]["env_steps"]
    steady = [line for line in lines if _FROM * steps <= line["env_steps"] <= _TO * steps]
    first, last = steady[0], steady[-1]
    return {
        "ended": lines[-1]["ended"],
        "env_steps": steps,
        "seconds": lines[-1]["seconds"],
        "mean_return_100": lines[-1]["mean_return_100"],
        "steps_per_second": (last["env_steps"] - first["env_steps"]) / (last["seconds"] - first["seconds"]),
        "policy_lag_mean": statistics.fmean(line["policy_lag_mean"] for line in steady if line["policy_lag_mean"] is not None),
    }


def _traffic(directions: list[Direction]) -> dict[str, int]:
    to_actors, to_learner = directions
    return {
        "packets_to_actors": to_actors.packets,
        "packets_to_learner": to_learner.packets,
        "packets_dropped": to_actors.dropped + to_learner.dropped,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--round-trips", type=float, nargs="+", default=[0, 20, 50, 100], help="milliseconds")
    parser.add_argument("--megabits", type=float, default=100.0, help="bandwidth of each direction, a second")
    parser.add_argument("--times", type=int, default=3, help="runs at each round trip")
    parser.add_argument("flags", nargs="*", default=FLAGS, help=f"after `--`: for impala-learner; default: {' '.join(FLAGS)}")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for time in range(arguments.times):
        for round_trip in arguments.round_trips:
            run = asyncio.run(train(round_trip / 1e3, arguments.megabits, arguments.flags))
            runs.append({"round_trip_ms": round_trip, "time": time, **run})
            print(json.dumps(runs[-1]), flush=True)
    medians = {
        each: statistics.median(run["steps_per_second"] for run in runs if run["round_trip_ms"] == each)
        for each in arguments.round_trips
    }
    first = medians[arguments.round_trips[0]]
    ratios = {str(each): round(median / first, 3) for each, median in medians.items()}
    print("steps a second, as a ratio to the first:", ratios)
    command = f"python -m benchmarks.far {' '.join(sys.argv[1:])}"
    OUTPUT.write_text(
        json.dumps({"command": command, "megabits": arguments.megabits, "ratios": ratios, "runs": runs}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
