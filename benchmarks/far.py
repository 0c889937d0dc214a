"""Actors behind a slow link: learner and actors in network namespaces of their own, on a link of a given delay and bandwidth.

    sudo python -m benchmarks.far --round-trips 0 20 50 100

trains CartPole-v1 at each round trip in milliseconds, over TLS and with a token, several times in turn, and writes
results/far.json: agent steps a second at each as a ratio to the first. Needs Linux, the right to make network namespaces, and
iproute2. The namespaces and everything started in them end with the program.

Every round trip goes through that link (benchmarks/link.py), that of 0 as well, so that what it costs is in all figures alike.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.link import LEARNER, Processes, linked
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

PORT = 50051
OUTPUT = Path("results/far.json")
# Larger batches than the preset's, hence fewer updates while an unroll travels, and a learning rate that stands a lag of ten.
FLAGS = [
    *("--preset", "cartpole", "--envs", "64", "--batch-size", "128", "--max-in-flight", "2"),
    *("--learning-rate", "1e-3", "--max-on-the-way", "16", "--total-steps", "2000000"),
]
# What a run takes until it is up to speed, and the end, are left out.
_FROM, _TO = 0.2, 0.95


def train(round_trip: float, megabits: float, flags: list[str]) -> dict[str, Any]:
    """Returns how a run went whose actors are `round_trip` seconds away."""
    with ExitStack() as open_ones:
        folder = Path(open_ones.enter_context(tempfile.TemporaryDirectory()))
        certs = folder / "certs"
        make_certificates = [sys.executable, "-m", "learner_server.certificates", "--dir", str(certs), "--hosts", LEARNER]
        subprocess.run(make_certificates, check=True, stdout=subprocess.DEVNULL)
        link = open_ones.enter_context(linked(round_trip, megabits))
        processes = Processes(folder)
        open_ones.callback(processes.end)
        learner = processes.start(
            link.learner, "learner_server", *flags, "--run-dir", str(folder / "run"), "--listen", f"{LEARNER}:{PORT}",
            "--token-file", str(certs / "token"),
            "--tls-cert", str(certs / "learner.pem"), "--tls-key", str(certs / "learner-key.pem"),
        )  # fmt: skip
        actors = []
        for _ in range(2):
            secrets = ["--token-file", str(certs / "token"), "--tls-ca", str(certs / "ca.pem")]
            actors.append(processes.start(link.actors, "actor_client", "--learner", f"{LEARNER}:{PORT}", *secrets))
        while learner.poll() is None and not any(actor.poll() for actor in actors):
            time.sleep(0.1)
        if learner.returncode not in {0, 1}:
            raise RuntimeError("\n".join(path.read_text() for path in sorted(folder.glob("*.log"))))
        return {"exit_code": learner.returncode, **_describe(folder / "run"), **link.traffic()}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--round-trips", type=float, nargs="+", default=[0, 20, 50, 100], help="milliseconds")
    parser.add_argument("--megabits", type=float, default=100.0, help="bandwidth of each direction, a second")
    parser.add_argument("--times", type=int, default=3, help="runs at each round trip")
    parser.add_argument("flags", nargs="*", default=FLAGS, help=f"after `--`: for impala-learner; default: {' '.join(FLAGS)}")
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for turn in range(arguments.times):
        for round_trip in arguments.round_trips:
            run = train(round_trip / 1e3, arguments.megabits, arguments.flags)
            runs.append({"round_trip_ms": round_trip, "time": turn, **run})
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
