"""Ablations on real Atari: one game with one thing changed at a time, for equal agent steps, and the forms of the wire, bit by bit.

    python -m benchmarks.ablations --seeds 0
    python -m benchmarks.ablations --wire

The first writes results/atari-ablations.json, a run at a time, of the preset `atari-cpu`. Runs lie in runs/ablations: a series that
was interrupted goes on where it was. A run's score is the mean return of its last hundred training episodes. The second trains in
lockstep with single frames, compressed and not, and with whole stacks of four on the wire, and writes results/atari-wire.json; exit
code 1 unless all three end with the same weights, bit for bit.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.determinism import run_learner
from benchmarks.learn import describe, train
from benchmarks.machine import commit, has_bfloat16, machine

# What is changed, and the learner's flags that change it. As it is, an update has 40 new steps and 40 that were replayed. So it has
# with unrolls of 40; with unrolls of 80 it has twice as many of both, for half must be new, and there are half as many updates.
CASES: dict[str, list[str]] = {
    "as it is": [],
    "one-step": ["--correction", "one-step"],
    "epsilon": ["--correction", "epsilon"],
    "no correction": ["--correction", "none"],
    "lag 64": ["--inject-lag", "64"],
    "lag 64, one-step": ["--inject-lag", "64", "--correction", "one-step"],
    "lag 64, epsilon": ["--inject-lag", "64", "--correction", "epsilon"],
    "lag 64, no correction": ["--inject-lag", "64", "--correction", "none"],
    "one actor": ["--actors", "1"],
    "four actors": ["--actors", "4"],
    "eight actors": ["--actors", "8"],
    "unrolls of 40": ["--unroll-length", "40", "--batch-size", "2", "--replay-unrolls", "500"],
    "unrolls of 80": ["--unroll-length", "80", "--batch-size", "2", "--replay-unrolls", "250"],
    "bfloat16": ["--precision", "bfloat16", "--acting-precision", "bfloat16"],
    "no replay": ["--replay-fraction", "0", "--batch-size", "2"],
}
# Environments in Gymnasium's form throughout, for those of ALE's own take no wrappers.
LOCKSTEP = ["--preset", "atari-shallow", "--env", "ALE/Breakout-v5", "--vectorization", "sync", "--deterministic"]
LOCKSTEP += ["--actors", "2", "--envs", "4", "--batch-size", "8", "--max-in-flight", "1", "--total-steps", "4000"]
WIRES: dict[str, list[str]] = {
    "frames once, compressed": [],
    "frames once": ["--no-compress"],
    "whole stacks": [
        *("--no-compress", "--frame-stack", "1"),
        *("--wrappers", '[["FrameStackObservation", {"stack_size": 4, "padding_type": "zero"}]]'),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = [case for case in CASES if case != "bfloat16" or has_bfloat16()]
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=here, help="bfloat16 only where the processor has it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--game", default="Breakout", help="NAME of ALE/NAME-v5")
    parser.add_argument("--steps", type=int, default=500_000, help="agent steps of each run")
    parser.add_argument("--wire", action="store_true", help="compare the wire's forms")
    parser.add_argument("--folder", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    if arguments.wire:
        sys.exit(0 if compare_wires(arguments.folder / "atari-wire.json") else 1)
    output = arguments.folder / "atari-ablations.json"
    ablations: list[dict[str, Any]] = json.loads(output.read_text())["ablations"] if output.exists() else []
    done = {(run["case"], run["seed"], *run["flags"]) for run in ablations}
    # Seed by seed, so that an interrupted series has something of everything.
    for case, seed in ((case, seed) for seed in arguments.seeds for case in arguments.cases):
        # Flags of a case stand last, where they count.
        flags = ["--preset", "atari-cpu", "--env", f"ALE/{arguments.game}-v5", "--total-steps", str(arguments.steps)]
        flags += ["--actors", "2", *CASES[case]]
        if (case, seed, *flags) not in done:
            ablations.append(run_case(case, seed, flags))
            _write(output, {"ablations": ablations})
            print(json.dumps({name: value for name, value in ablations[-1].items() if name != "curve"}), flush=True)


def run_case(case: str, seed: int, flags: list[str]) -> dict[str, Any]:
    """Returns how a run went with one thing changed, and what it takes to repeat it."""
    digest = hashlib.sha256(" ".join(flags).encode()).hexdigest()[:8]
    directory = Path("runs/ablations") / f"{case.replace(', ', '-').replace(' ', '-')}-seed{seed}-{digest}"
    code = train(flags, seed, directory)
    return {"case": case, "seed": seed, "flags": flags, "exit_code": code, **_origin(), **describe(directory)}


def compare_wires(output: Path) -> bool:
    """Returns whether the wire's forms lead to the same weights."""
    runs = [{"wire": wire, "flags": [*LOCKSTEP, *flags], **run_learner([*LOCKSTEP, *flags])} for wire, flags in WIRES.items()]
    _write(output, {"wires": runs, **_origin()})
    for run in runs:
        print(f"{run['wire']}: {run['sha256']}, {run['bytes_received'] / run['env_steps']:,.0f} bytes a step")
    return len({run["sha256"] for run in runs}) == 1


def _origin() -> dict[str, Any]:
    return {"command": f"python -m benchmarks.ablations {' '.join(sys.argv[1:])}", "commit": commit(), "machine": machine()}


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
