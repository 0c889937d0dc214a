"""Side by side with a peer, in one run: the same environments, networks and processors, one after the other, in turns.

    python -m benchmarks.compare --peer .venv-peers/bin/python --output benchmarks/compare.json

`make bench` makes .venv-peers first. Stable-Baselines3's A2C and PPO are the peers, on CartPole-v1 with its own tuned settings.
Ours is a learner and its actors over gRPC. Figures are medians over --repeats rounds, and ratios of medians. Beside ours stands the
most that the machine could do, from `benchmarks.parts` in the same round; with the paper's shallow network that alone. bfloat16 is
measured where the processor has it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import has_bfloat16, machine
from benchmarks.throughput import measure
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

_PEER = "benchmarks/peers/stable_baselines.py"
# As fast as it gets, and not what learns fastest: wide unrolls and batches.
CARTPOLE_FLAGS = ["--envs", "256", "--batch-size", "512"]
# The network of the peer's policy.
BREAKOUT_FLAGS = ["--env", "ALE/Breakout-v5", "--network", "nature", "--max-in-flight", "2", "--envs", "32"]
BFLOAT16_FLAGS = ["--precision", "bfloat16", "--acting-precision", "bfloat16"]
SHALLOW_FLAGS = {game: ["--env", f"ALE/{game}-v5", "--max-in-flight", "2"] for game in ("Breakout", "Pong")}
_PARTS = ("cartpole", "breakout", "shallow", "solve")


def run_peer(python: str, *arguments: str) -> dict[str, Any]:
    """Returns what a peer's script printed."""
    done = subprocess.run([python, _PEER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def throughput(preset: str, seconds: float, flags: list[str]) -> dict[str, Any]:
    """Returns our rate in one run, after its warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        return measure(preset, 2, seconds, Path(folder) / "run", flags)


def limit(preset: str, flags: list[str]) -> dict[str, Any]:
    """Returns what two cores could do at most: the parts alone, and the limit that follows as `steps_per_second`."""
    command = [sys.executable, "-m", "benchmarks.parts", "--cores", "2", "--seconds", "3", "--preset", preset, *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    parts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])["agent_steps_per_second"]
    return {"steps_per_second": parts.pop("limit"), **parts}


def solve(seed: int, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Returns how long the preset took from the first environment step until the run ended."""
    with tempfile.TemporaryDirectory() as folder:
        learner = [sys.executable, "-m", "learner_server", "--preset", "cartpole", "--actors", "2", "--seed", str(seed), *flags]
        code = subprocess.run([*learner, "--run-dir", f"{folder}/run"], stdout=subprocess.DEVNULL, check=False).returncode
        lines = read_metrics(RunDirectory(Path(folder) / "run").metrics)
    return {"seed": seed, "solved": code == 0, "env_steps": lines[-1]["env_steps"], "seconds": lines[-1]["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=".venv-peers/bin/python", help="the interpreter that has the peer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement of throughput")
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_PARTS)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rounds: dict[str, dict[str, list[Any]]] = {}

    def note(what: str, who: str, result: dict[str, Any]) -> None:
        rounds.setdefault(what, {}).setdefault(who, []).append(result)
        print(what, who, json.dumps(result), flush=True)

    seconds = str(arguments.seconds)
    for number in range(arguments.repeats):
        if "cartpole" in arguments.only:
            note("CartPole-v1", "ours", throughput("cartpole", arguments.seconds, CARTPOLE_FLAGS))
            note("CartPole-v1", "limit", limit("cartpole", CARTPOLE_FLAGS))
            for algorithm in ("a2c", "ppo"):
                note(
                    "CartPole-v1", algorithm, run_peer(arguments.peer, "throughput", algorithm, "CartPole-v1", "--seconds", seconds)
                )
        if "breakout" in arguments.only:
            note("Breakout", "ours", throughput("atari-shallow", arguments.seconds, BREAKOUT_FLAGS))
            note("Breakout", "limit", limit("atari-shallow", BREAKOUT_FLAGS))
            if has_bfloat16():
                # The peer has no such setting.
                note("Breakout", "ours_bfloat16", throughput("atari-shallow", arguments.seconds, BREAKOUT_FLAGS + BFLOAT16_FLAGS))
                note("Breakout", "limit_bfloat16", limit("atari-shallow", BREAKOUT_FLAGS + BFLOAT16_FLAGS))
            # Of a network this large both processors may have a share.
            flags = ["ALE/Breakout-v5", "--seconds", seconds, "--threads", "2"]
            note("Breakout", "a2c", run_peer(arguments.peer, "throughput", "a2c", *flags))
        if "shallow" in arguments.only:
            for game, game_flags in SHALLOW_FLAGS.items():
                note(f"{game}, shallow", "ours", throughput("atari-shallow", arguments.seconds, game_flags))
                note(f"{game}, shallow", "limit", limit("atari-shallow", game_flags))
        if "solve" in arguments.only:
            # As the peers, it ends where the mean first reaches 475; the preset sees besides whether that holds.
            note("solve", "ours", solve(number, ["--settle-steps", "0"]))
            note("solve", "ours_settled", solve(number))
            for algorithm in ("a2c", "ppo"):
                note("solve", algorithm, run_peer(arguments.peer, "solve", algorithm, "CartPole-v1", "--seed", str(number)))
    summary = {what: _summary(what, results) for what, results in rounds.items()}
    print(json.dumps(summary, indent=1))
    if arguments.output is not None:
        command = f"python -m benchmarks.compare {' '.join(sys.argv[1:])}"
        record = {"command": command, "machine": machine(), "summary": summary, "rounds": rounds}
        arguments.output.write_text(json.dumps(record, indent=1) + "\n")


def _summary(what: str, results: dict[str, list[Any]]) -> dict[str, Any]:
    name = "seconds" if what == "solve" else "steps_per_second"
    medians = {who: statistics.median(run[name] for run in runs) for who, runs in results.items()}
    summary: dict[str, Any] = {f"median_{name}": medians}
    peers = [value for who, value in medians.items() if not who.startswith(("ours", "limit"))]
    for ours in [who for who in medians if who.startswith("ours")]:
        limit = ours.replace("ours", "limit")
        if peers:
            summary[f"{ours}_to_best_peer"] = round(medians[ours] / (min if what == "solve" else max)(peers), 3)
        if limit in medians:
            summary[f"{ours}_to_limit"] = round(medians[ours] / medians[limit], 3)
    if what == "solve":
        summary["solved"] = {who: sum(run["solved"] for run in runs) for who, runs in results.items()}
    return summary


if __name__ == "__main__":
    main()
