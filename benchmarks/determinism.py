"""Determinism: the same run again and again, learner and actors in lockstep over the wire, and once in a single process.

    python -m benchmarks.determinism --repeats 5 --output results/determinism.json

Each run's SHA-256 is that of its last checkpoint's `parameters.safetensors`. Exit code 1 unless all of a run's are equal, and equal
to what `examples/single_process.py` says. Beside them the same run without --deterministic, for what lockstep costs.
"""

import argparse
import json
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

_COMMON = ["--actors", "2", "--envs", "16", "--max-in-flight", "1", "--stop-at-return", "None"]

# In turn with the first repeats, so that both have the same machine.
_FREE_RUNS = 2

RUNS = {
    "cartpole": ["--preset", "cartpole", *_COMMON, "--total-steps", "200000"],
    "minatar-breakout": ["--preset", "minatar", *_COMMON, "--total-steps", "50000"],
}


def run_learner(flags: list[str]) -> dict[str, Any]:
    """Returns how a learner with its local actors ended."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "learner_server", *flags, "--run-dir", str(run)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        last = read_metrics(RunDirectory(run).metrics)[-1]
        newest = max(RunDirectory(run).checkpoints.glob("version-*"))
        manifest = json.loads((newest / "manifest.json").read_bytes())
    return {
        "sha256": manifest["parameters.safetensors"]["sha256"],
        "env_steps": last["env_steps"],
        "learner_updates": last["learner_updates"],
        "bytes_received": last["bytes_received"],
        "seconds": round(last["seconds"], 2),
        "steps_per_second": round(last["env_steps"] / last["seconds"]),
    }


def run_reference(flags: list[str]) -> dict[str, Any]:
    """Returns what the single process says, and how long it took with its start."""
    began = time.monotonic()
    command = [sys.executable, "-m", "examples.single_process", *flags]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1]
    return {"sha256": said, "seconds_with_start": round(time.monotonic() - began, 2)}


def measure(name: str, flags: list[str], repeats: int) -> dict[str, Any]:
    """Returns the repeats of one run, its reference and the run without lockstep."""
    result: dict[str, Any] = {"name": name, "flags": " ".join([*flags, "--deterministic"]), "repeats": []}
    free = []
    for repeat in range(repeats):
        result["repeats"].append(run_learner([*flags, "--deterministic"]))
        if repeat < _FREE_RUNS:
            free.append(run_learner(flags)["steps_per_second"])
        print(name, result["repeats"][-1], flush=True)
    result["reference"] = run_reference(flags)
    digests = [run["sha256"] for run in result["repeats"]]
    result["equal"] = max(digests.count(digest) for digest in digests)
    result["equal_to_reference"] = digests.count(result["reference"]["sha256"])
    result["steps_per_second"] = statistics.median(run["steps_per_second"] for run in result["repeats"][:_FREE_RUNS])
    result["steps_per_second_without"] = statistics.median(free)
    print({key: value for key, value in result.items() if key != "repeats"}, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=sorted(RUNS), default=sorted(RUNS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    result = {
        "command": f"python -m benchmarks.determinism {' '.join(sys.argv[1:])}".strip(),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], stdout=subprocess.PIPE, text=True, check=False).stdout.strip(),
        "machine": machine(),
        "runs": runs,
    }
    for name in arguments.only:
        runs.append(measure(name, [*RUNS[name], "--seed", str(arguments.seed)], arguments.repeats))
        if arguments.output:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(any(run["equal_to_reference"] < arguments.repeats for run in runs))


if __name__ == "__main__":
    main()
