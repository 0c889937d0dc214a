"""Recovery: kills an actor and a learner with SIGKILL in mid-run and sees the run solved all the same.

    python -m benchmarks.recovery --seeds 0 1 2 --output benchmarks/recovery.json

For each seed: a local run one of whose two actors is killed; and a learner with two actors that were started by hand, killed and
started again on its run directory, with the seconds from its listening again to its first new update. Exit code 1 if a run is not
solved or a number goes back.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

NEVER_BACK = ("env_steps", "parameter_version", "learner_updates", "steps_received", "episodes", "seconds")


def learner(run: Path, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-u", "-m", "learner_server", "--preset", "cartpole", "--run-dir", str(run), *flags]
    return subprocess.Popen([*command, "--checkpoint-seconds", "1"], stdout=subprocess.PIPE)


def wait_for_steps(run: Path, steps: int) -> None:
    while not any(line["env_steps"] >= steps for line in read_metrics(RunDirectory(run).metrics)):
        time.sleep(0.05)


def kill_an_actor(seed: int, run: Path) -> dict[str, Any]:
    process = learner(run, "--seed", str(seed), "--actors", "2")
    wait_for_steps(run, 60_000)
    victim = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    os.kill(victim, signal.SIGKILL)
    process.communicate()
    lines = read_metrics(RunDirectory(run).metrics)
    return {"killed": "actor", "seed": seed, "exit_code": process.returncode, "ended": lines[-1].get("ended"), **seen(lines)}


def kill_the_learner(seed: int, run: Path) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ("--seed", str(seed), "--actors", "0", "--listen", address)
    first = learner(run, *flags)
    actors = [subprocess.Popen([sys.executable, "-m", "actor_client", "--learner", address]) for _ in range(2)]
    wait_for_steps(run, 60_000)
    first.kill()
    first.communicate()
    before = len(read_metrics(RunDirectory(run).metrics))
    second = learner(run, *flags)
    assert second.stdout is not None
    while b"learner listens" not in second.stdout.readline():
        pass
    listens = time.monotonic()
    updates = read_metrics(RunDirectory(run).metrics)[before - 1]["learner_updates"]
    while read_metrics(RunDirectory(run).metrics)[-1]["learner_updates"] <= updates:
        time.sleep(0.02)
    recovered = time.monotonic() - listens
    second.communicate()
    lines = read_metrics(RunDirectory(run).metrics)
    return {
        "killed": "learner",
        "seed": seed,
        "exit_code": second.returncode,
        "ended": lines[-1].get("ended"),
        "recovery_seconds": round(recovered, 2),
        "actor_exit_codes": [actor.wait() for actor in actors],
        **seen(lines),
    }


def seen(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what went back, which must be nothing, and the run's end."""
    back = [name for name in NEVER_BACK if [line[name] for line in lines] != sorted(line[name] for line in lines)]
    last = lines[-1]
    return {"went_back": back, "env_steps": last["env_steps"], "steps_lost": last["steps_lost"], "seconds": last["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    runs = []
    for seed in arguments.seeds:
        for experiment in (kill_an_actor, kill_the_learner):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(experiment(seed, Path(folder) / "run"))
            print(runs[-1], flush=True)
    if arguments.output:
        command = f"python -m benchmarks.recovery {' '.join(sys.argv[1:])}"
        arguments.output.write_text(json.dumps({"command": command, "runs": runs}, indent=2) + "\n")
    sys.exit(any(run["ended"] != "solved" or run["went_back"] for run in runs))


if __name__ == "__main__":
    main()
