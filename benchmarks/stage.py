"""Where faults are played: a learner at one end of a link, actors at both, and what can be seen of them from outside."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.link import ACTORS, LEARNER, Link, Processes, linked
from benchmarks.scale import resident_bytes
from run_directory.checkpoint import load_newest_checkpoint
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

PORT = 50051
ADDRESS = f"{LEARNER}:{PORT}"
_PATIENCE_SECONDS = 300.0
_FLAGS = [
    *("--preset", "cartpole", "--total-steps", "1000000000", "--stop-at-return", "1e9", "--listen", ADDRESS, "--insecure"),
    *("--checkpoint-seconds", "0.5", "--log-seconds", "0.2"),
]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = _PATIENCE_SECONDS) -> float:
    """Returns the seconds until `condition` holds.

    Raises:
        RuntimeError: it does not in time.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise RuntimeError(f"in {seconds:.0f} s not seen: {what}")
        time.sleep(0.05)
    return time.monotonic() - began


class Stage:
    """A learner, and whoever calls it, over a link or beside it."""

    def __init__(self, link: Link, folder: Path, flags: list[str]) -> None:
        self.link = link
        self.run = folder / "run"
        self.processes = Processes(folder)
        self._flags = [*_FLAGS, *flags, "--run-dir", str(self.run)]
        self.learner: subprocess.Popen[bytes]

    def start_learner(self) -> None:
        """Starts the learner, or starts it again on its run directory; returns when it listens."""
        self.learner = self.processes.start(self.link.learner, "learner_server", *self._flags)
        wait_for(lambda: "listens on" in self.processes.log(self.learner), "a learner that listens")

    def actor(self, where: str, name: str) -> subprocess.Popen[bytes]:
        """Starts a real actor."""
        return self.processes.start(where, "actor_client", "--learner", ADDRESS, "--name", name)

    def crowd(self, where: str, *flags: str) -> subprocess.Popen[bytes]:
        """Starts simulated actors."""
        return self.processes.start(where, "benchmarks.crowd", "--learner", ADDRESS, *flags)

    def events(self, crowd: subprocess.Popen[bytes], event: str, since: float = 0.0, **fields: Any) -> list[dict[str, Any]]:
        """Returns what simulated actors have told of one kind."""
        # The last line may be half written.
        text = self.processes.log(crowd).rpartition("\n")[0].splitlines()
        told = [json.loads(line) for line in text if line.startswith("{") and f'"{event}"' in line]
        return [each for each in told if each["at"] >= since and all(each[name] == value for name, value in fields.items())]

    def last(self) -> dict[str, Any]:
        """Returns the newest line of metrics."""
        lines = read_metrics(RunDirectory(self.run).metrics)
        return lines[-1] if lines else {"learner_updates": 0, "env_steps": 0, "actors": 0}

    def unbalanced(self) -> list[int]:
        """Returns the lines of metrics in which a step is counted twice or not at all."""
        lines = read_metrics(RunDirectory(self.run).metrics)
        rest = [each["steps_received"] - each["steps_trained"] - each["steps_dropped"] - each["steps_waiting"] for each in lines]
        return [index for index, steps in enumerate(rest) if steps]

    def longest_pause(self, since_updates: int) -> float:
        """Returns the longest time without a new update, in seconds, from one update on."""
        lines = [each for each in read_metrics(RunDirectory(self.run).metrics) if each["learner_updates"] >= since_updates]
        longest, at, updates = 0.0, lines[0]["seconds"], lines[0]["learner_updates"]
        for line in lines[1:]:
            longest = max(longest, line["seconds"] - at)
            if line["learner_updates"] > updates:
                at, updates = line["seconds"], line["learner_updates"]
        return round(longest, 2)

    def steps_of(self, name: str) -> int:
        """Returns the agent steps of one actor that the newest checkpoint knows of."""
        checkpoint = load_newest_checkpoint(RunDirectory(self.run).checkpoints)
        actors = {} if checkpoint is None else checkpoint.state["actors"]["actors"]
        return int(actors[name]["env_steps"]) if name in actors else 0

    def rate(self, name: str, seconds: float) -> float:
        """Returns one actor's accepted agent steps a second, over some seconds from now."""
        first, began = self.steps_of(name), time.monotonic()
        time.sleep(seconds)
        return round((self.steps_of(name) - first) / (time.monotonic() - began))

    def connections(self, where: str, peer: str) -> int:
        """Returns the established TCP connections of a namespace with a peer."""
        return len(_ss(where, "-Htn", "state", "established", "dst", peer).splitlines())

    def seen_from_actors(self) -> int:
        """Returns the connections with the learner, as the far end of the link sees them."""
        return self.connections(self.link.actors, LEARNER)

    def seen_from_learner(self) -> int:
        """Returns the connections with the far end of the link, as the learner sees them."""
        return self.connections(self.link.learner, ACTORS)

    def bound_send_buffers(self, most: int) -> None:
        """Has the far end's kernel hold at most so many bytes that a connection has still to send; for connections to come."""
        command = ["ip", "netns", "exec", self.link.actors, "tee", "/proc/sys/net/ipv4/tcp_wmem"]
        subprocess.run(command, input=f"4096 16384 {most}", check=True, stdout=subprocess.DEVNULL, text=True)

    def reset_connections(self) -> None:
        """Resets every connection of the learner, on both its sides."""
        _ss(self.link.learner, "-Kt", "state", "established", "sport", f":{PORT}")

    def descriptors(self) -> int:
        """Returns how many files and sockets the learner has open."""
        return len(os.listdir(f"/proc/{self.learner.pid}/fd"))  # noqa: PTH208

    def mebibytes(self, process: subprocess.Popen[bytes]) -> float:
        """Returns a process's resident memory."""
        return round(resident_bytes(process.pid) / 2**20, 1)

    def kill_learner(self) -> None:
        """Kills it with SIGKILL."""
        self.learner.send_signal(signal.SIGKILL)
        self.learner.wait()


def _ss(where: str, *arguments: str) -> str:
    command = ["ip", "netns", "exec", where, "ss", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@contextmanager
def stage(*flags: str, round_trip: float = 0.0, megabits: float = 100.0, seed: int = 0) -> Iterator[Stage]:
    """Yields a stage whose learner listens; everything on it ends with it."""
    with tempfile.TemporaryDirectory() as folder, linked(round_trip, megabits, seed=seed) as link:
        played = Stage(link, Path(folder), [*flags, "--seed", str(seed)])
        try:
            played.start_learner()
            yield played
        finally:
            played.processes.end()
