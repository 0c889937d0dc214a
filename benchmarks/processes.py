"""Programs that a benchmark starts, and what the kernel says of them."""

import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_LISTENS = re.compile(r"learner listens on (\S+)")
_START_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one process holds: resident memory in KiB and, of that, what is no file's; open file descriptors, threads, CPU time."""

    resident_kib: int
    anonymous_kib: int
    descriptors: int
    threads: int
    cpu_seconds: float

    @classmethod
    def of(cls, pid: int) -> "Reading":
        """Returns what a process holds now.

        Raises:
            OSError: it has ended.
        """
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return cls(
            resident_kib=int(status["VmRSS"].split()[0]),
            anonymous_kib=int(status["RssAnon"].split()[0]),
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208 - names alone
            threads=int(status["Threads"]),
            cpu_seconds=sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
        )

    def to_json(self) -> dict[str, float]:
        """Returns it as JSON values."""
        return asdict(self)


def free_ports(count: int) -> list[int]:
    """Returns ports that nothing on this machine listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def start(module: str, *arguments: str, output: Path) -> subprocess.Popen[bytes]:
    """Starts one of the project's programs, what it prints appended to a file."""
    with output.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", module, *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )


def wait_until_listening(process: subprocess.Popen[bytes], output: Path) -> None:
    """Returns once a learner says that it listens.

    Raises:
        RuntimeError: it ended, or takes too long.
    """
    deadline = time.monotonic() + _START_SECONDS
    while not _LISTENS.search(output.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{output} tells why the learner does not listen")
        time.sleep(0.05)


def end(process: subprocess.Popen[Any], seconds: float = 60.0) -> int:
    """Asks a process to end, and returns its exit code; one that does not is killed."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
