"""Learning results: trains with several seeds, one after the other, and evaluates each run's final weights.

    python -m benchmarks.learn --name cartpole --preset cartpole --seeds 0 1 2 3 4 --at-least 475

writes results/NAME.json, a run at a time, with what it takes to repeat it. Runs lie in runs/results/NAME-seedN: a series that was
interrupted goes on where it was when the same command is given again. Everything after `--` goes to impala-learner as it stands.
Exit code 1 if the mean return of an evaluation is below --at-least.

    python -m benchmarks.learn --name atari-pong --preset atari-cpu --minutes 60 120 --at-least 18 19.5 --manner sampled

evaluates after 60 minutes of training, goes on from there, and evaluates again after 120; evaluating takes none of them. Minutes
are those of the learner's processes, from their start on. A series of 60 minutes goes on when it is given as one of 60 and 120.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, machine
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

_CURVE_POINTS = 100
_MANNERS = {"greedy": "--greedy", "sampled": "--no-greedy"}


def train(flags: list[str], seed: int, directory: Path, minutes: float | None = None) -> int:
    """Returns the exit code of a learner with its local actors, 0 or 1; resumes what is in `directory`.

    Args:
        minutes: after which it is told to stop, those of earlier processes of the same run included; None for as long as it takes.

    Raises:
        SystemExit: it was refused, or broke off: what it left is not what was asked for.
    """
    command = [sys.executable, "-m", "learner_server", *flags, "--seed", str(seed), "--run-dir", str(directory)]
    left = None if minutes is None else 60.0 * minutes - seconds_so_far(directory)
    if left is not None and left <= 0.0:
        return 0
    learner = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        code = learner.wait(left)
    except subprocess.TimeoutExpired:
        learner.terminate()
        code = learner.wait()
    lines = _metrics(directory)
    if code not in {0, 1} or not lines or "ended" not in lines[-1]:
        sys.exit(f"{directory}: the learner broke off with code {code}; the same command goes on where it was, if it can")
    return code


def seconds_so_far(directory: Path) -> float:
    """Returns for how long a run has trained, by its metrics."""
    lines = _metrics(directory)
    return float(lines[-1]["seconds"]) if lines else 0.0


def _metrics(directory: Path) -> list[dict[str, Any]]:
    metrics = RunDirectory(directory).metrics
    return read_metrics(metrics) if metrics.exists() else []


def evaluate(directory: Path, episodes: int, manners: list[str], flags: list[str]) -> dict[str, Any]:
    """Returns what impala-evaluate says of the newest weights, by the manner of playing."""
    program = [sys.executable, "-m", "actor_client.evaluate", "--run-dir", str(directory), "--episodes", str(episodes), "--json"]
    return {
        manner: json.loads(subprocess.run([*program, _MANNERS[manner], *flags], stdout=subprocess.PIPE, check=True).stdout)
        for manner in manners
    }


def describe(directory: Path) -> dict[str, Any]:
    """Returns how a run went, from its metrics."""
    lines = read_metrics(RunDirectory(directory).metrics)
    last, processes = lines[-1], sum("ended" in line for line in lines)
    known = [line for line in lines if line["mean_return_100"] is not None]
    step = max(1, len(known) // _CURVE_POINTS)
    by_task = [
        [
            [line["trained_by_task"][task], round(line["seconds"], 1), round(line["mean_return_100_by_task"][task], 3)]
            for line in known[::step]
            if line["mean_return_100_by_task"][task] is not None
        ]
        for task in range(len(last["trained_by_task"]))
    ]
    return {
        "ended": last.get("ended"),
        "processes": processes,
        "seconds": last["seconds"],
        "env_steps": last["env_steps"],
        "learner_updates": last["learner_updates"],
        "steps_per_second": round(last["env_steps"] / last["seconds"]) if last["seconds"] else None,
        "policy_lag_mean": _mean(lines, "policy_lag_mean"),
        "replayed_lag_mean": _mean(lines, "replayed_lag_mean"),
        "effective_sample_size": _mean(lines, "effective_sample_size"),
        "skipped_updates": last["skipped_updates"],
        "mean_return_100": last["mean_return_100"],
        "mean_return_100_by_task": last["mean_return_100_by_task"],
        "curve": [[line["env_steps"], round(line["seconds"], 1), round(line["mean_return_100"], 3)] for line in known[::step]],
        **({"curve_by_task": by_task} if len(by_task) > 1 else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--minutes", type=float, nargs="+", help="of training after which to evaluate, rising; the last ends a run")
    parser.add_argument("--at-least", type=float, nargs="+", help="evaluations' mean returns that every seed should reach, in turn")
    parser.add_argument("--manner", choices=list(_MANNERS), default="greedy", help="which evaluation counts")
    parser.add_argument("--manners", choices=list(_MANNERS), nargs="+", default=list(_MANNERS), help="which to make")
    parser.add_argument("--evaluate-flags", nargs="+", action="extend", default=[], help="more for impala-evaluate")
    parser.add_argument("--folder", type=Path, default=Path("results"))
    parser.add_argument("--again", action="store_true", help="measure anew what was measured before")
    arguments, extra = parser.parse_known_args()
    limits: list[float | None] = list(arguments.minutes or [None])
    bounds: list[float | None] = list(arguments.at_least or [None] * len(limits))
    if len(bounds) != len(limits):
        parser.error(f"--at-least: expected {len(limits)}, one for each evaluation, came {len(bounds)}")
    if arguments.manner not in arguments.manners:
        parser.error(f"--manners: expected {arguments.manner}, which counts, among them, came {' '.join(arguments.manners)}")
    output = arguments.folder / f"{arguments.name}.json"
    result: dict[str, Any] = {"runs": []}
    if output.exists() and not arguments.again:
        result = json.loads(output.read_text())
    command = f"python -m benchmarks.learn {' '.join(sys.argv[1:])}"
    result |= {"command": command, "machine": machine(), "at_least": bounds[-1], "manner": arguments.manner}
    flags = ["--preset", arguments.preset, "--actors", str(arguments.actors), *(flag for flag in extra if flag != "--")]
    for seed in arguments.seeds:
        if any(run["seed"] == seed and _covers(run.get("minutes"), limits[-1]) for run in result["runs"]):
            continue
        directory = Path("runs/results") / f"{arguments.name}-seed{seed}"
        if arguments.again and directory.exists():
            shutil.rmtree(directory)
        evaluations = [
            _evaluated(arguments, flags, seed, directory, minutes) | {"at_least": bound}
            for minutes, bound in zip(limits, bounds, strict=True)
        ]
        *earlier, last = evaluations
        for each in earlier:
            del each["curve"]
            each.pop("curve_by_task", None)
        origin = {"seed": seed, "commit": commit(), "command": command, "flags": flags, "machine": machine()}
        run = {**origin, **last, "earlier": earlier}
        result["runs"] = [other for other in result["runs"] if other["seed"] != seed] + [run]
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps({name: value for name, value in run.items() if not name.startswith("curve")}), flush=True)
    all_of_them = [each for run in result["runs"] for each in (*run.get("earlier", []), run)]
    sys.exit(0 if all(_reached(each, arguments.manner, each.get("at_least", bounds[-1])) for each in all_of_them) else 1)


def _mean(lines: list[dict[str, Any]], name: str) -> float | None:
    known = [line[name] for line in lines if line.get(name) is not None]
    return statistics.fmean(known) if known else None


def _evaluated(
    arguments: argparse.Namespace, flags: list[str], seed: int, directory: Path, minutes: float | None
) -> dict[str, Any]:
    """Returns how a run stood after so many minutes, and how it played then; trains and plays what is missing."""
    # Kept beside the run: what an interrupted series has evaluated is not what its run has become since.
    kept = directory / ("evaluation.json" if minutes is None else f"evaluation-{minutes:g}-minutes.json")
    if not kept.exists():
        code = train(flags, seed, directory, minutes)
        played = evaluate(directory, arguments.episodes, arguments.manners, arguments.evaluate_flags)
        kept.write_text(json.dumps({"minutes": minutes, "exit_code": code, **describe(directory), "evaluation": played}))
    evaluation: dict[str, Any] = json.loads(kept.read_text())
    return evaluation


def _covers(measured: float | None, asked: float | None) -> bool:
    return measured == asked or (measured is not None and asked is not None and measured > asked)


def _reached(run: dict[str, Any], manner: str, bound: float | None) -> bool:
    return bound is None or run["evaluation"][manner]["mean"] >= bound


if __name__ == "__main__":
    main()
