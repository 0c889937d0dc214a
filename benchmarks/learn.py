"""Learning results: trains with several seeds, one after the other, and evaluates each run's final weights.

    python -m benchmarks.learn --name cartpole --preset cartpole --seeds 0 1 2 3 4 --at-least 475

writes results/NAME.json, a run at a time, with what it takes to repeat it. Runs lie in runs/results/NAME-seedN: a series that was
interrupted goes on where it was when the same command is given again. Everything after `--` goes to impala-learner as it stands.
Exit code 1 if the mean return of an evaluation is below --at-least.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

_CURVE_POINTS = 100


def train(flags: list[str], seed: int, directory: Path) -> int:
    """Returns the exit code of a learner with its local actors; resumes what is in `directory`."""
    learner = [sys.executable, "-m", "learner_server", *flags, "--seed", str(seed), "--run-dir", str(directory)]
    return subprocess.run(learner, stdout=subprocess.DEVNULL, check=False).returncode


def evaluate(directory: Path, episodes: int, flags: list[str]) -> dict[str, Any]:
    """Returns what impala-evaluate says of the final weights: playing greedily, and as in training."""
    program = [sys.executable, "-m", "actor_client.evaluate", "--run-dir", str(directory), "--episodes", str(episodes), "--json"]
    return {
        manner: json.loads(subprocess.run([*program, flag, *flags], stdout=subprocess.PIPE, check=True).stdout)
        for manner, flag in (("greedy", "--greedy"), ("sampled", "--no-greedy"))
    }


def describe(directory: Path) -> dict[str, Any]:
    """Returns how a run went, from its metrics."""
    lines = read_metrics(RunDirectory(directory).metrics)
    last, processes = lines[-1], sum("ended" in line for line in lines)
    known = [line for line in lines if line["mean_return_100"] is not None]
    step = max(1, len(known) // _CURVE_POINTS)
    return {
        "ended": last.get("ended"),
        "processes": processes,
        "seconds": last["seconds"],
        "env_steps": last["env_steps"],
        "learner_updates": last["learner_updates"],
        "steps_per_second": round(last["env_steps"] / last["seconds"]) if last["seconds"] else None,
        "policy_lag_mean": statistics.fmean(line["policy_lag_mean"] for line in lines if line["policy_lag_mean"] is not None),
        "skipped_updates": last["skipped_updates"],
        "mean_return_100": last["mean_return_100"],
        "mean_return_100_by_task": last["mean_return_100_by_task"],
        "curve": [[line["env_steps"], round(line["seconds"], 1), round(line["mean_return_100"], 3)] for line in known[::step]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--at-least", type=float, help="the evaluation's mean return that every seed should reach")
    parser.add_argument("--manner", choices=["greedy", "sampled"], default="greedy", help="which evaluation counts")
    parser.add_argument("--evaluate-flags", nargs="*", default=[], help="more for impala-evaluate")
    parser.add_argument("--folder", type=Path, default=Path("results"))
    parser.add_argument("--again", action="store_true", help="measure anew what was measured before")
    arguments, extra = parser.parse_known_args()
    output = arguments.folder / f"{arguments.name}.json"
    result: dict[str, Any] = {"runs": []}
    if output.exists() and not arguments.again:
        result = json.loads(output.read_text())
    result["command"] = f"python -m benchmarks.learn {' '.join(sys.argv[1:])}"
    result["machine"] = machine()
    result["at_least"], result["manner"] = arguments.at_least, arguments.manner
    flags = ["--preset", arguments.preset, "--actors", str(arguments.actors), *(flag for flag in extra if flag != "--")]
    for seed in arguments.seeds:
        if any(run["seed"] == seed for run in result["runs"]):
            continue
        directory = Path("runs/results") / f"{arguments.name}-seed{seed}"
        if arguments.again and directory.exists():
            shutil.rmtree(directory)
        code = train(flags, seed, directory)
        run = {"seed": seed, "exit_code": code, "commit": _commit(), **describe(directory)}
        run["evaluation"] = evaluate(directory, arguments.episodes, arguments.evaluate_flags)
        result["runs"].append(run)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps({name: value for name, value in run.items() if name != "curve"}), flush=True)
    means = [run["evaluation"][arguments.manner].get("mean") for run in result["runs"]]
    sys.exit(1 if arguments.at_least is not None and any(mean < arguments.at_least for mean in means) else 0)


def _commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
