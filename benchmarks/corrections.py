"""Off-policy corrections under injected lag, with and without replay (paper, section 5.2.2 and Table 2).

    python -m benchmarks.corrections --steps 1000000 --seeds 0 1

writes results/corrections.json, a run at a time; a series that was interrupted goes on where it was.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

ENVIRONMENT = "MinAtar/Breakout-v1"
OUTPUT = Path("results/corrections.json")
CORRECTIONS = ("vtrace", "one-step", "epsilon", "none")


def train(flags: list[str]) -> dict[str, Any]:
    """Returns the mean return of the last tenth of a run's steps, all training episodes in it, and the lag that was measured."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "learner_server", "--preset", "minatar", "--env", ENVIRONMENT, "--actors", "2", *flags]
        code = subprocess.run([*command, "--run-dir", f"{folder}/run"], stdout=subprocess.DEVNULL, check=False).returncode
        lines = read_metrics(RunDirectory(Path(folder) / "run").metrics)
    last = lines[-1]
    late = [line["mean_return_100"] for line in lines if line["env_steps"] >= 0.9 * last["env_steps"]]
    lags = [line["policy_lag_mean"] for line in lines if line["policy_lag_mean"] is not None]
    return {
        "exit_code": code,
        "env_steps": last["env_steps"],
        "seconds": last["seconds"],
        "score": statistics.fmean(value for value in late if value is not None),
        "policy_lag_mean": statistics.median(lags),
        "skipped_updates": last["skipped_updates"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 8, 32, 128])
    arguments = parser.parse_args()
    result: dict[str, Any] = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {"runs": []}
    result["command"] = f"python -m benchmarks.corrections {' '.join(sys.argv[1:])}"
    result["environment"] = ENVIRONMENT
    for seed in arguments.seeds:
        for lag in arguments.lags:
            for fraction in (0.0, 0.5):
                for correction in CORRECTIONS:
                    which = {"seed": seed, "inject_lag": lag, "replay_fraction": fraction, "correction": correction}
                    if any(which.items() <= run.items() for run in result["runs"]):
                        continue
                    flags = [text for name, value in which.items() for text in (f"--{name.replace('_', '-')}", str(value))]
                    result["runs"].append({**which, **train([*flags, "--total-steps", str(arguments.steps)])})
                    OUTPUT.parent.mkdir(exist_ok=True)
                    OUTPUT.write_text(json.dumps(result, indent=1) + "\n")
                    print(json.dumps(result["runs"][-1]), flush=True)


if __name__ == "__main__":
    main()
