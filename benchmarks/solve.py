"""Time to solve: trains a preset with several seeds, one after the other, and evaluates each final checkpoint.

    python -m benchmarks.solve --preset cartpole --seeds 0 1 2 3 4 --output benchmarks/cartpole.json

Everything after `--` goes to impala-learner as it stands. Exit code 1 if a seed did not solve it.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from run_directory.journal import read_last_metrics
from run_directory.layout import RunDirectory


def train(preset: str, seed: int, actors: int, directory: Path, extra: list[str]) -> dict[str, Any]:
    """Returns how one run ended and how its final checkpoint plays."""
    learner = [sys.executable, "-m", "learner_server", "--preset", preset, "--actors", str(actors), "--seed", str(seed)]
    code = subprocess.run([*learner, "--run-dir", str(directory), *extra], stdout=subprocess.DEVNULL, check=False).returncode
    last = read_last_metrics(RunDirectory(directory).metrics) or {}
    evaluation = subprocess.run(
        [sys.executable, "-m", "actor_client.evaluate", "--run-dir", str(directory), "--episodes", "100", "--json"],
        stdout=subprocess.PIPE,
        check=True,
    )
    return {
        "seed": seed,
        "exit_code": code,
        "ended": last.get("ended"),
        "seconds": last.get("seconds"),
        "env_steps": last.get("env_steps"),
        "steps_per_second": round(last["env_steps"] / last["seconds"]) if last.get("seconds") else None,
        "evaluation_mean": json.loads(evaluation.stdout)["mean"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cartpole")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments, extra = parser.parse_known_args()
    extra = [argument for argument in extra if argument != "--"]
    runs = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as directory:
            runs.append(train(arguments.preset, seed, arguments.actors, Path(directory) / "run", extra))
        print(runs[-1], flush=True)
    solved = [run for run in runs if run["ended"] == "solved"]
    result = {
        "command": f"python -m benchmarks.solve {' '.join(sys.argv[1:])}",
        "machine": f"{platform.machine()}, {platform.python_version()}",
        "solved": f"{len(solved)} of {len(runs)}",
        "median_seconds": statistics.median(run["seconds"] for run in runs),
        "least_evaluation_mean": min(run["evaluation_mean"] for run in runs),
        "runs": runs,
    }
    print(json.dumps({name: value for name, value in result.items() if name != "runs"}, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(0 if len(solved) == len(runs) else 1)


if __name__ == "__main__":
    main()
