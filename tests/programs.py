"""Programs under test: started as their users start them, watched, and ended."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from run_directory.checkpoint import load_newest_checkpoint
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

# Long enough never to decide a test on a busy machine; nothing here waits for time to pass.
PATIENCE_SECONDS = 60.0
ENDLESS = ["--total-steps", "1000000000"]


class Programs:
    """Starts programs, each with its output in a file, and ends what is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.patience_seconds = PATIENCE_SECONDS
        self.started: list[subprocess.Popen[bytes]] = []
        # Children of theirs that a failing test would leave behind.
        self.strays: set[int] = set()

    def learner(self, run_dir: Path, *flags: str, preset: str = "cartpole") -> subprocess.Popen[bytes]:
        return self.start(
            "learner_server",
            "--preset",
            preset,
            "--run-dir",
            str(run_dir),
            "--checkpoint-seconds",
            "0.3",
            "--settle-steps",
            "0",
            *flags,
        )

    def actor(self, address: str, *flags: str) -> subprocess.Popen[bytes]:
        return self.start("actor_client", "--learner", address, *flags)

    def start(self, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        return self.launch([sys.executable, "-m", module, *arguments], environment=environment)

    def launch(self, command: list[str], *, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        with self.output(len(self.started)).open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )
        self.started.append(process)
        return process

    def output(self, index: int) -> Path:
        return self.folder / f"output-{index}"

    def text(self, process: subprocess.Popen[bytes]) -> str:
        return self.output(self.started.index(process)).read_text(errors="replace")

    def address(self, learner: subprocess.Popen[bytes]) -> str:
        pattern = re.compile(r"learner listens on (\S+)")
        self.wait_until(lambda: pattern.search(self.text(learner)), learner)
        found = pattern.search(self.text(learner))
        assert found
        return found[1]

    def wait_until(self, condition: Callable[[], Any], *alive: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.patience_seconds
        while not condition():
            for process in alive:
                assert process.poll() is None, f"ended with {process.returncode}:\n{self.text(process)}"
            assert time.monotonic() < deadline, "\n".join(self.text(process) for process in self.started)
            time.sleep(0.02)

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                self.strays.update(descendants(process.pid))
                process.kill()
            process.wait()
        for pid in filter(is_running, self.strays):
            with suppress(ProcessLookupError):  # it has ended since
                os.kill(pid, signal.SIGKILL)


def last(run_dir: Path) -> dict[str, Any]:
    lines = read_metrics(run_dir / "metrics.jsonl")
    return lines[-1] if lines else {"env_steps": 0, "parameter_version": 0}


def accounts_balance(run_dir: Path) -> bool:
    return all(
        line["steps_received"] == line["steps_trained"] + line["steps_dropped"] + line["steps_waiting"]
        for line in read_metrics(run_dir / "metrics.jsonl")
    )


def steps_of_actors(run_dir: Path) -> dict[str, int]:
    checkpoint = load_newest_checkpoint(RunDirectory(run_dir).checkpoints)
    assert checkpoint is not None
    return {name: actor["env_steps"] for name, actor in checkpoint.state["actors"]["actors"].items()}


def has_said(programs: Programs, process: subprocess.Popen[bytes], text: str) -> bool:
    return text in programs.text(process)


def exit_code(process: subprocess.Popen[bytes]) -> int:
    return process.wait(PATIENCE_SECONDS)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended but that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """Returns the children of a process, theirs, and so on."""
    try:
        return [each for child in children(pid) for each in (child, *descendants(child))]
    except OSError:  # it has ended
        return []


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
