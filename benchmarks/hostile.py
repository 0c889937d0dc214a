"""What it costs training when somebody means ill: steps a second beside each attacker, and without.

    python -m benchmarks.hostile --output benchmarks/hostile.json

For each attacker of benchmarks/attackers.py a run of the preset cartpole with local actors and a token, in intervals that take
turns: undisturbed and beside the attacker, which has the lowest priority and a bounded rate, for it is on the same processors. Also
stated: what the learner answered and refused, its memory and its open files. Exit code 1 where training is slower than asked for,
the learner ends, or its memory grows beyond bounds.
"""

import argparse
import json
import multiprocessing
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.attackers import ATTACKERS, Target, attack
from benchmarks.machine import machine
from benchmarks.scale import processor_seconds, resident_bytes
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

_LEAST = 0.9
# Half-received messages, connections and their buffers; a single bomb that went off would take two gibibytes.
_MOST_MORE_MEBIBYTES = 512
_WARM_UP_SECONDS = 5.0
_TOKEN = "a-token-for-the-benchmark"  # noqa: S105 - of this machine alone


def measure(name: str, *, seconds: float, turns: int, flags: list[str]) -> dict[str, Any]:
    """Returns what one attacker did to one run."""
    context = multiprocessing.get_context("spawn")
    seconds *= ATTACKERS[name].longer
    with tempfile.TemporaryDirectory() as folder:
        token, metrics = Path(folder) / "token", RunDirectory(Path(folder) / "run").metrics
        token.write_text(_TOKEN)
        command = [sys.executable, "-m", "learner_server", "--preset", "cartpole", "--actors", "2", "--run-dir", f"{folder}/run"]
        command += ["--token-file", str(token), "--total-steps", "1000000000", "--stop-at-return", "1e9", *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as learner:
            assert learner.stdout is not None
            address = next(match[1] for line in learner.stdout if (match := re.search(r"listens on (\S+)", line)))
            # Whatever else it prints must not fill the pipe.
            with subprocess.Popen(["cat"], stdin=learner.stdout, stdout=subprocess.DEVNULL):
                ours, theirs = context.Pipe()
                attacker = context.Process(target=attack, args=(name, Target(address, _TOKEN), theirs), daemon=True)
                attacker.start()
                try:
                    while not (lines := read_metrics(metrics)) or lines[-1]["seconds"] < _WARM_UP_SECONDS:
                        time.sleep(0.2)
                    intervals = [
                        _interval(ours, metrics, learner.pid, attacker.pid or 0, seconds=seconds, attacks=bool(n % 2))
                        for n in range(2 * turns)
                    ]
                    intervals.append(_interval(ours, metrics, learner.pid, attacker.pid or 0, seconds=seconds, attacks=False))
                    answers = _order(ours, "rest")
                    ours.send("end")
                    attacker.join(10.0)
                finally:
                    attacker.kill()
                    learner.send_signal(signal.SIGTERM)
        last = read_metrics(metrics)[-1]
    without = [interval for interval in intervals if not interval["attacks"]]
    # Each beside the mean of the intervals before and after it.
    ratios = [
        intervals[n]["steps_per_second"] / statistics.fmean(intervals[m]["steps_per_second"] for m in (n - 1, n + 1))
        for n in range(1, 2 * turns, 2)
    ]
    return {
        "attacker": name,
        "does": " ".join((ATTACKERS[name].__doc__ or "").split()),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "undisturbed_steps_per_second": round(statistics.median(each["steps_per_second"] for each in without)),
        "exit_code": learner.returncode,
        "answers": answers,
        "refused": last["refused"],
        "unbalanced": last["steps_received"] != last["steps_trained"] + last["steps_dropped"] + last["steps_waiting"],
        "mebibytes_before": intervals[0]["mebibytes"],
        "mebibytes_most": max(each["mebibytes"] for each in intervals),
        "mebibytes_after": intervals[-1]["mebibytes"],
        "files_before": intervals[0]["files"],
        "files_most": max(each["files"] for each in intervals),
        "files_after": intervals[-1]["files"],
        "intervals": intervals,
    }


def _order(orders: Connection, order: str) -> dict[str, int]:
    orders.send(order)
    if not orders.poll(30.0):
        raise RuntimeError("the attacker does not answer")
    counts: dict[str, int] = orders.recv()
    return counts


def _interval(orders: Connection, metrics: Path, learner: int, attacker: int, *, attacks: bool, seconds: float) -> dict[str, Any]:
    order = "attack" if attacks else "rest"
    _order(orders, order)
    time.sleep(1.0)  # until there are lines of this interval alone
    used, began = (processor_seconds(learner), processor_seconds(attacker)), time.monotonic()
    first, before = read_metrics(metrics)[-1], _order(orders, order)
    time.sleep(seconds)
    last, after, took = read_metrics(metrics)[-1], _order(orders, order), time.monotonic() - began
    # A learner that stands still writes no line.
    return {
        "attacks": attacks,
        "steps_per_second": round((last["env_steps"] - first["env_steps"]) / max(last["seconds"] - first["seconds"], seconds / 2)),
        "answers": {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)},
        "learner_cores": round((processor_seconds(learner) - used[0]) / took, 2),
        "attacker_cores": round((processor_seconds(attacker) - used[1]) / took, 2),
        "mebibytes": round(resident_bytes(learner) / 2**20),
        "files": sum(1 for _ in Path(f"/proc/{learner}/fd").iterdir()),
    }


def _bounded(result: dict[str, Any]) -> bool:
    return result["mebibytes_most"] - result["mebibytes_before"] <= _MOST_MORE_MEBIBYTES and not result["unbalanced"]


def _write(path: Path, results: dict[str, Any]) -> None:
    kept = json.loads(path.read_text())["attackers"] if path.exists() else {}
    record = {
        "command": f"python -m benchmarks.hostile {' '.join(sys.argv[1:])}",
        "machine": machine(),
        "attackers": {**kept, **results},
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attackers", nargs="+", choices=sorted(ATTACKERS), default=list(ATTACKERS))
    parser.add_argument("--seconds", type=float, default=3.0, help="of each interval")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--output", type=Path, help="JSON; attackers that it has and that are not measured now stay in it")
    arguments, flags = parser.parse_known_args()
    results = {}
    for name in arguments.attackers:
        result = results[name] = measure(name, seconds=arguments.seconds, turns=arguments.turns, flags=flags)
        print(json.dumps({key: value for key, value in result.items() if key not in ("intervals", "does")}), flush=True)
        if arguments.output is not None:
            _write(arguments.output, results)
    good = all(each["ratio"] >= _LEAST and each["exit_code"] == 0 and _bounded(each) for each in results.values())
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
