"""Steady state: trained agent steps per second of a whole local run, after its start is left out.

    python -m benchmarks.throughput --seconds 30 --repeats 5 --output benchmarks/throughput.json

Everything after `--` goes to impala-learner as it stands. Also holds every line of the run's metrics to
received == trained + dropped + waiting; exit code 1 if one does not add up.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

_WARM_UP_SECONDS = 5.0


def measure(preset: str, actors: int, seconds: float, directory: Path, extra: list[str]) -> dict[str, Any]:
    """Returns the rate between the end of the warm-up and the end of one run."""
    endless = ["--total-steps", "1000000000", "--stop-at-return", "1e9"]
    learner = [sys.executable, "-m", "learner_server", "--preset", preset, "--actors", str(actors), "--run-dir", str(directory)]
    with subprocess.Popen([*learner, *endless, *extra], stdout=subprocess.DEVNULL) as process:
        metrics = RunDirectory(directory).metrics
        while process.poll() is None and not (read_metrics(metrics) or [{"seconds": 0.0}])[-1]["seconds"] >= seconds:
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
    lines = read_metrics(metrics)
    if not lines or lines[-1]["seconds"] < _WARM_UP_SECONDS:
        raise SystemExit(f"the learner ended with code {process.returncode} before it was warm")
    steady = [line for line in lines if line["seconds"] >= _WARM_UP_SECONDS and "ended" not in line]
    first, last = steady[0], steady[-1]
    return {
        "exit_code": process.returncode,
        "steps_per_second": round((last["env_steps"] - first["env_steps"]) / (last["seconds"] - first["seconds"])),
        "learner_wait_fraction": _mean(steady, "learner_wait_fraction"),
        "actor_wait_fraction": _mean(steady, "actor_wait_fraction"),
        "actor_environment_fraction": _mean(steady, "actor_environment_fraction"),
        "actor_inference_fraction": _mean(steady, "actor_inference_fraction"),
        "policy_lag_mean": _mean(steady, "policy_lag_mean"),
        "received": lines[-1]["steps_received"],
        "trained": lines[-1]["steps_trained"],
        "dropped": lines[-1]["steps_dropped"],
        "waiting": lines[-1]["steps_waiting"],
        "unbalanced_lines": sum(
            line["steps_received"] != line["steps_trained"] + line["steps_dropped"] + line["steps_waiting"] for line in lines
        ),
        "lines": len(lines),
    }


def _mean(lines: list[dict[str, Any]], name: str) -> float:
    return round(statistics.fmean(line[name] for line in lines if line[name] is not None), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cartpole")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments, extra = parser.parse_known_args()
    extra = [argument for argument in extra if argument != "--"]
    runs = []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as directory:
            runs.append(measure(arguments.preset, arguments.actors, arguments.seconds, Path(directory) / "run", extra))
        print(runs[-1], flush=True)
    result = {
        "command": f"python -m benchmarks.throughput {' '.join(sys.argv[1:])}",
        "machine": machine(),
        "median_steps_per_second": statistics.median(run["steps_per_second"] for run in runs),
        "runs": runs,
    }
    print(f"median {result['median_steps_per_second']:,} trained agent steps per second")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(1 if any(run["unbalanced_lines"] for run in runs) else 0)


if __name__ == "__main__":
    main()
