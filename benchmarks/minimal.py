"""The minimal implementation over several seeds: whether, and in how many seconds, it solves CartPole-v1.

    python -m benchmarks.minimal --seeds 0 1 2 3 4

writes results/minimal.json: seconds of the whole program, from its start to its end, and what it says of itself.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

SOLVED = re.compile(r"^solved in ([\d.]+) s, ([\d,]+) steps: 100 new episodes return ([\d.]+)$", re.MULTILINE)


def run(seed: int) -> dict[str, Any]:
    """Returns what became of one seed."""
    began = time.perf_counter()
    command = [sys.executable, "examples/minimal_impala.py", "--seed", str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = round(time.perf_counter() - began, 1)
    told = SOLVED.search(done.stdout)
    outcome = {"steps": int(told[2].replace(",", "")), "return": float(told[3])} if told else {}
    return {"seed": seed, "exit_code": done.returncode, "seconds": seconds, **outcome}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", type=Path, default=Path("results/minimal.json"))
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    runs = []
    for seed in arguments.seeds:
        runs.append(run(seed))
        print(runs[-1], flush=True)
    result = {
        "command": "python -m benchmarks.minimal --seeds " + " ".join(map(str, arguments.seeds)),
        "machine": machine(),
        "load_before": round(load, 1),
        "median_seconds": statistics.median(one["seconds"] for one in runs),
        "solved": sum(one["exit_code"] == 0 for one in runs),
        "runs": runs,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['solved']} of {len(runs)} solved, median {result['median_seconds']} s")


if __name__ == "__main__":
    main()
