"""What it costs to be watched: training with the status page, Prometheus and the progress display, and a page with 500 actors.

    python -m benchmarks.observing --pairs 7 --output benchmarks/observing.json
    python -m benchmarks.observing --crowd 500 --minutes 10 --output benchmarks/observing.json

The first trains the same twice, with all three on and with none of them, one stopped while the other goes on: somebody asks for the
page's figures every second, as a browser does, and for Prometheus's every five, as docker/prometheus/prometheus.yml has it. Exit
code 1 where the median ratio is below 0.98. The second has as many simulated actors, and asks every second for all that the page
asks for. Exit code 1 where its figures take 100 ms or more in the median, or memory grows by 2% after the first two minutes.
"""

import argparse
import gzip
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.processes import Reading, end, free_ports, start, wait_until_listening
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

# Between requests of an open page (status/page/page.js) and of Prometheus (docker/prometheus/prometheus.yml).
_PAGE_SECONDS, _SCRAPE_SECONDS = 1.0, 5.0
_LEAST_RATIO = 0.98
_MOST_SECONDS = 0.1
_MOST_GROWTH = 0.02
_WARM_UP_SECONDS = 120.0
_ENDLESS = ["--total-steps", "1000000000", "--stop-at-return", "1e9"]


def get(url: str) -> tuple[float, bytes]:
    """Asks for a page; returns the seconds until all of it was there, and what it was, compressed."""
    began = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept-Encoding": "gzip"}), timeout=30.0) as answer:  # noqa: S310
        body = answer.read()
    return time.perf_counter() - began, body


def wait_until_answered(url: str, seconds: float = 60.0) -> None:
    """Returns once a page is there: a learner takes calls from actors a moment before."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            get(url)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


class Training:
    """A learner with two local actors on this machine, all of which can be stopped and let go on.

    Args:
        watched: with the status page, Prometheus and, on a terminal, the live display.
    """

    def __init__(self, folder: Path, *, watched: bool) -> None:
        self.run = RunDirectory(folder)
        page, metrics = free_ports(2)
        asked = {f"http://127.0.0.1:{page}/status.json": _PAGE_SECONDS, f"http://127.0.0.1:{metrics}/metrics": _SCRAPE_SECONDS}
        self.asked = asked if watched else {}
        flags = ["--status", f"127.0.0.1:{page}", "--metrics", f"127.0.0.1:{metrics}"] if watched else []
        command = [sys.executable, "-m", "learner_server", "--preset", "cartpole", "--actors", "2", *_ENDLESS, *flags]
        command += ["--run-dir", str(folder)]
        if watched:  # `script` gives it a terminal
            command = ["script", "--quiet", "--return", "--command", " ".join(command), "/dev/null"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
        while not self.lines() or self.lines()[-1]["learner_updates"] < 100:
            if self.process.poll() is not None:
                raise RuntimeError(f"the learner ended with code {self.process.returncode}")
            time.sleep(0.2)

    def lines(self) -> list[dict[str, Any]]:
        """Returns its lines of metrics."""
        return read_metrics(self.run.metrics) if self.run.metrics.exists() else []

    def signal(self, number: int) -> None:
        """Sends a signal to all of its processes."""
        for pid in [*_descendants(self.process.pid)]:
            _send(pid, number)

    def turn(self, seconds: float) -> float:
        """Returns the steps trained a second while it alone goes on for so long."""
        before = len(self.lines())
        self.signal(signal.SIGCONT)
        now = time.monotonic()
        deadline, due = now + seconds, dict.fromkeys(self.asked, now)
        while (now := time.monotonic()) < deadline:
            for url in [url for url, when in due.items() if when <= now]:
                due[url] += self.asked[url]
                get(url)
            time.sleep(max(0.0, min([deadline, *due.values()]) - time.monotonic()))
        self.signal(signal.SIGSTOP)
        # The first line spans the pause.
        first, *_, last = self.lines()[before + 1 :]
        return float((last["env_steps"] - first["env_steps"]) / (last["seconds"] - first["seconds"]))

    def end(self) -> None:
        """Ends all of its processes."""
        pids = _descendants(self.process.pid)
        for number in (signal.SIGCONT, signal.SIGKILL):
            for pid in pids:
                _send(pid, number)
        self.process.wait()


def _descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in children.read_text().split()] if children.exists() else []
    return [pid, *(each for child in found for each in _descendants(child))]


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def speed(pairs: int, seconds: float) -> dict[str, Any]:
    """Returns how fast training is that is watched, as a ratio to training that is not, turn by turn."""
    with ExitStack() as open_ones:
        folder = Path(open_ones.enter_context(tempfile.TemporaryDirectory()))
        both = []
        for watched in (True, False):
            training = Training(folder / f"{watched}", watched=watched)
            open_ones.callback(training.end)
            training.signal(signal.SIGSTOP)
            both.append(training)
        turns = []
        for turn in range(pairs):
            # Who goes first changes, as does what the machine does meanwhile.
            order = both if turn % 2 else both[::-1]
            rates = {training: training.turn(seconds) for training in order}
            turns.append([round(rates[training]) for training in both])
        ratios = [round(watched / alone, 4) for watched, alone in turns]
        return {"steps_per_second": turns, "ratios": ratios, "median": round(statistics.median(ratios), 4)}


def crowd(actors: int, minutes: float) -> dict[str, Any]:
    """Returns how long the page's figures take with many actors, and how the learner's memory grows."""
    with ExitStack() as open_ones:
        folder = Path(open_ones.enter_context(tempfile.TemporaryDirectory()))
        page, service = free_ports(2)
        flags = ["--preset", "cartpole", *_ENDLESS, "--listen", f"127.0.0.1:{service}", "--status", f"127.0.0.1:{page}"]
        learner = start("learner_server", *flags, "--run-dir", str(folder / "run"), output=folder / "learner.log")
        open_ones.callback(end, learner)
        wait_until_listening(learner, folder / "learner.log")
        for name in ("a", "b"):
            flags = ["--learner", f"127.0.0.1:{service}", "--actors", str(actors // 2), "--name", name, "--pause", "5"]
            open_ones.callback(end, start("benchmarks.crowd", *flags, output=folder / f"{name}.log"))
        url, readings = f"http://127.0.0.1:{page}", list[dict[str, Any]]()
        wait_until_answered(url)
        began = time.monotonic()
        while (now := time.monotonic() - began) < 60.0 * minutes:
            took = {path: get(f"{url}/{path}")[0] for path in ("", "status.json", "history.json")}
            readings.append({"seconds": now, "took": took, "kib": Reading.of(learner.pid).resident_kib})
            time.sleep(1.0)
        rows = json.loads(gzip.decompress(get(f"{url}/status.json")[1]))["actors"]
    late = [reading for reading in readings if reading["seconds"] > _WARM_UP_SECONDS]
    first, last = (statistics.median(reading["kib"] for reading in part) for part in (late[:60], late[-60:]))
    seconds = {path or "page": [reading["took"][path] for reading in late] for path in ("", "status.json", "history.json")}
    return {
        "actors": len(rows),
        "states": {state: sum(row["state"] == state for row in rows) for state in {row["state"] for row in rows}},
        "milliseconds": {name: _spread(values) for name, values in seconds.items()},
        "resident_kib": {"after_warm_up": first, "at_the_end": last},
        "growth": round(last / first - 1.0, 5),
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1e3 * value for value in seconds)
    return {
        "median": round(statistics.median(ordered), 1),
        "p99": round(ordered[int(0.99 * len(ordered))], 1),
        "most": round(ordered[-1], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=0, help="turns of each, watched and not")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn")
    parser.add_argument("--crowd", type=int, default=0, help="simulated actors")
    parser.add_argument("--minutes", type=float, default=10.0, help="that they stay")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {}
    if arguments.pairs:
        parts["speed"] = lambda: speed(arguments.pairs, arguments.seconds)
    if arguments.crowd:
        parts["crowd"] = lambda: crowd(arguments.crowd, arguments.minutes)
    results = json.loads(arguments.output.read_text()) if arguments.output and arguments.output.exists() else {}
    for name, part in parts.items():
        command = f"python -m benchmarks.observing {' '.join(sys.argv[1:])}"
        results[name] = {"command": command, "machine": machine(), **part()}
        print(json.dumps({name: results[name]}), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    missed = [
        "speed" in parts and results["speed"]["median"] < _LEAST_RATIO,
        "crowd" in parts and results["crowd"]["milliseconds"]["status.json"]["median"] >= 1e3 * _MOST_SECONDS,
        "crowd" in parts and results["crowd"]["growth"] >= _MOST_GROWTH,
    ]
    sys.exit(any(missed))


if __name__ == "__main__":
    main()
