"""Whether the verdict on what limits a run is right: eight runs, each staged so that one thing limits it.

    python -m benchmarks.verdicts --seeds 0 1 2 3 4 --output benchmarks/verdicts.json

Links are shaped between two network namespaces (see `benchmarks.link`): Linux, root, iproute2. What counts is the verdict in the
last line of metrics of each run; `said` counts those of all lines after the first ten seconds. Exit code 1 if one is wrong. Other
work on the machine is seen by the verdict too, which then says, rightly, that cores are short.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.link import LEARNER, Processes, linked
from benchmarks.slow_cartpole import ENVIRONMENT, MODULE
from learner_server.verdict import Limit
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

# More than anything here could use.
_FREE = 2000.0
_SHARES = {
    "learner": ("wait", "starved"),
    "actor": ("wait", "environment", "inference", "line", "sending", "fetching", "starved"),
}
_SHOWN = [f"{who}_{what}_fraction" for who, shares in _SHARES.items() for what in shares]
_SHOWN += ["ingest_fraction", "policy_lag_mean", "steps_per_second"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run: what limits it, and how that is brought about.

    Attributes:
        into, out: megabits a second to the learner and from it.
        cores: that all programs share; None for all there are.
        sleep: that each step of the environment sleeps, in seconds.
        even: runs first until `sleep` is such that neither side waits for the other, as far as that can be.
    """

    limit: Limit
    flags: str
    actors: int = 1
    into: float = _FREE
    out: float = _FREE
    cores: int | None = None
    sleep: float = 0.0
    even: bool = False

    def command_line(self) -> list[str]:
        """Returns the learner's flags."""
        return self.flags.replace("SLEEP", f"{self.sleep:.6f}").split()


_CARTPOLE = "--preset cartpole --stop-at-return 1e9"
_SLOW = f"--env {ENVIRONMENT} --allow-module {MODULE} --env-kwargs"
_HEAVY = "--hidden-sizes 768 768 --envs 32 --batch-size 32"
STAGES = {
    "slow environment": Stage(
        limit=Limit.ENVIRONMENT, flags=f'{_SLOW} {{"sleep_seconds":SLEEP}} --envs 8 --batch-size 8', sleep=0.01
    ),
    "slow inference": Stage(limit=Limit.INFERENCE, flags="--env CartPole-v1 --envs 1 --batch-size 16 --lstm-size 512"),
    "link in": Stage(limit=Limit.NETWORK_IN, flags=f"{_CARTPOLE} --no-compress", into=5.0),
    "link out": Stage(limit=Limit.NETWORK_OUT, flags=f"{_CARTPOLE} --hidden-sizes 256 256", out=5.0),
    # Nothing is collected ahead, and there is room for one batch: both sides wait for each other, though no call takes long.
    "tiny queue": Stage(limit=Limit.QUEUE, flags=f"{_CARTPOLE} --envs 8 --batch-size 8 --queue-batches 1 --max-in-flight 1"),
    "slow learner": Stage(limit=Limit.LEARNER, flags=f"{_CARTPOLE} {_HEAVY}"),
    "one core": Stage(limit=Limit.PROCESSOR, flags=_CARTPOLE, actors=2, cores=1),
    "balanced": Stage(limit=Limit.BALANCED, flags=f'{_SLOW} {{"sleep_seconds":SLEEP}} {_HEAVY}', sleep=0.005, even=True),
}


def make_even(stage: Stage, seconds: float) -> Stage:
    """Returns the stage with its sleep such that actors take as long for a batch as the learner does."""
    for _ in range(4):
        found = run(stage, 99, seconds)
        batch_seconds = 640 / found["steps_per_second"]
        off = found["actor_wait_fraction"] - found["learner_wait_fraction"]
        if abs(off) < 0.03:
            break
        stage = replace(stage, sleep=max(0.0, stage.sleep + off * batch_seconds / 20))
    return stage


def run(stage: Stage, seed: int, seconds: float) -> dict[str, Any]:
    """Returns the verdicts on one staged run, and the figures of its last ten seconds."""
    with ExitStack() as open_ones:
        folder = Path(open_ones.enter_context(tempfile.TemporaryDirectory()))
        before = os.sched_getaffinity(0)
        if stage.cores is not None:
            os.sched_setaffinity(0, sorted(before)[: stage.cores])
            open_ones.callback(os.sched_setaffinity, 0, before)
        link = open_ones.enter_context(linked(0.0, stage.into, megabits_to_actors=stage.out))
        processes = Processes(folder)
        open_ones.callback(processes.end)
        address, directory = f"{LEARNER}:50051", RunDirectory(folder / "run")
        flags = [*stage.command_line(), "--total-steps", "1000000000", "--seed", str(seed), "--run-dir", str(directory.path)]
        learner = processes.start(link.learner, "learner_server", *flags, "--listen", address, "--insecure")
        actor = ["actor_client", "--learner", address, *(["--allow-module", MODULE] if MODULE in stage.flags else [])]
        actors = [processes.start(link.actors, *actor) for _ in range(stage.actors)]
        while not directory.metrics.exists() or not any(line["learner_updates"] for line in read_metrics(directory.metrics)[-1:]):
            _check_alive(processes, learner, *actors)
            time.sleep(0.1)
        time.sleep(seconds)
        _check_alive(processes, learner, *actors)
        lines = read_metrics(directory.metrics)
    late = [line for line in lines if line["seconds"] > 10.0]
    figures = {name: [line[name] for line in late[-20:] if line[name] is not None] for name in _SHOWN}
    return {
        "limit": late[-1]["limit"],
        "evidence": late[-1]["limit_evidence"],
        "said": dict(Counter(line["limit"] for line in late)),
        **{name: round(sum(values) / len(values), 3) if values else None for name, values in figures.items()},
    }


def _check_alive(processes: Processes, *programs: Any) -> None:
    for program in programs:
        if program.poll() is not None:
            raise RuntimeError(processes.log(program))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--seconds", type=float, default=25.0, help="of each run, after its first update")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = []
    stages = {name: make_even(STAGES[name], 12.0) if STAGES[name].even else STAGES[name] for name in arguments.only}
    for seed in arguments.seeds:
        for name, stage in stages.items():
            found, expected = run(stage, seed, arguments.seconds), stage.limit.value
            runs.append({"stage": name, "seed": seed, "expected": expected, "right": found["limit"] == expected, **found})
            print(json.dumps(runs[-1]), flush=True)
    wrong = [each for each in runs if not each["right"]]
    print(f"{len(runs) - len(wrong)} of {len(runs)} right")
    if arguments.output:
        command = f"python -m benchmarks.verdicts {' '.join(sys.argv[1:])}"
        arguments.output.write_text(json.dumps({"command": command, "runs": runs}, indent=1) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
