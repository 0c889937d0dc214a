"""Off-policy corrections under injected lag, with and without replay (paper, section 5.2.2 and Table 2).

    python -m benchmarks.corrections --steps 1000000 --seeds 0 1

writes results/corrections.json, run by run; a series that was interrupted goes on where it was. Every run, a learner and two
actors, has two cores of its own; `--jobs 4` has four at a time, on a machine of eight.
"""

import argparse
import itertools
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

ENVIRONMENT = "MinAtar/Breakout-v1"
OUTPUT = Path("results/corrections.json")
CORRECTIONS = ("vtrace", "one-step", "epsilon", "none")
_CORES_OF_A_RUN = 2


def train(flags: list[str], cores: set[int]) -> dict[str, Any]:
    """Returns the mean of a run's mean returns over the last tenth of its steps, and the lag that was measured."""
    # Of this thread, and so of what it starts.
    os.sched_setaffinity(0, cores)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "learner_server", "--preset", "minatar", "--env", ENVIRONMENT, "--actors", "2", *flags]
        code = subprocess.run([*command, "--run-dir", f"{folder}/run"], stdout=subprocess.DEVNULL, check=False).returncode
        lines = read_metrics(RunDirectory(Path(folder) / "run").metrics)
    last = lines[-1]
    late = [line["mean_return_100"] for line in lines if line["env_steps"] >= 0.9 * last["env_steps"]]
    lags = {name: [line[name] for line in lines if line[name] is not None] for name in ("policy_lag_mean", "replayed_lag_mean")}
    return {
        "exit_code": code,
        "env_steps": last["env_steps"],
        "seconds": last["seconds"],
        "score": statistics.fmean(value for value in late if value is not None),
        **{name: statistics.median(values) if values else None for name, values in lags.items()},
        "skipped_updates": last["skipped_updates"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 8, 32, 128])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < _CORES_OF_A_RUN * arguments.jobs:
        parser.error(f"--jobs: expected at most {len(cores) // _CORES_OF_A_RUN} on {len(cores)} cores, came {arguments.jobs}")
    result: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"runs": []}
    result["command"] = f"python -m benchmarks.corrections {' '.join(sys.argv[1:])}"
    result["environment"] = ENVIRONMENT
    names = ("seed", "inject_lag", "replay_fraction", "correction")
    series = itertools.product(arguments.seeds, arguments.lags, (0.0, 0.5), CORRECTIONS)
    asked = [dict(zip(names, values, strict=True)) for values in series]
    missing = [which for which in asked if not any(which.items() <= run.items() for run in result["runs"])]
    free: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    for job in range(arguments.jobs):
        free.put(set(cores[_CORES_OF_A_RUN * job : _CORES_OF_A_RUN * (job + 1)]))

    def run(which: dict[str, Any]) -> dict[str, Any]:
        flags = [text for name, value in which.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        mine = free.get()
        try:
            return {**which, **train([*flags, "--total-steps", str(arguments.steps)], mine), "machine": machine()}
        finally:
            free.put(mine)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        for done in as_completed([pool.submit(run, which) for which in missing]):
            result["runs"].append(done.result())
            arguments.output.parent.mkdir(exist_ok=True)
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")
            print(json.dumps(result["runs"][-1]), flush=True)


if __name__ == "__main__":
    main()
