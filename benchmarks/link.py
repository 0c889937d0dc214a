"""A link between two network namespaces, with delay, bandwidth, loss, reordering and black holes, and programs at both its ends.

Needs Linux, the right to make network namespaces, and iproute2. The namespaces and everything started in them end with the program.

The link is two TUN devices and the loop below that carries packets from one to the other, each at its time: kernels of small
virtual machines often come without netem.
"""

import asyncio
import fcntl
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

LEARNER, ACTORS = "10.77.0.1", "10.77.0.2"

_MTU = 1500
# From <linux/if_tun.h>.
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
# A router's: what does not fit is dropped, and TCP slows down.
_BUFFER_SECONDS = 0.2


@dataclass
class Direction:
    """One direction of a link: packets leave one after the other at the link's rate and arrive `delay` seconds later.

    Attributes:
        loss: share of packets that are lost.
        late, late_seconds: share of packets that arrive up to so much later, hence after others that left after them.
        black_hole: nothing arrives, and nobody is told.
    """

    source: int
    target: int
    delay: float
    seconds_per_byte: float
    random: Random = field(default_factory=lambda: Random(0))  # noqa: S311 - faults, not secrets
    loss: float = 0.0
    late: float = 0.0
    late_seconds: float = 0.0
    black_hole: bool = False
    free_at: float = 0.0
    packets: int = 0
    dropped: int = 0

    def carry(self) -> None:
        """Takes one packet from the source and sees to it that it arrives at its time."""
        loop = asyncio.get_running_loop()
        packet = os.read(self.source, 65_536)
        now = loop.time()
        if self.black_hole or self.free_at - now > _BUFFER_SECONDS or self.random.random() < self.loss:
            self.dropped += 1
            return
        self.packets += 1
        self.free_at = max(now, self.free_at) + len(packet) * self.seconds_per_byte
        extra = self.random.random() * self.late_seconds if self.random.random() < self.late else 0.0
        loop.call_at(self.free_at + self.delay + extra, os.write, self.target, packet)


@dataclass
class Link:
    """Both directions of a link, and the namespaces at its ends."""

    learner: str
    actors: str
    to_actors: Direction
    to_learner: Direction

    def break_off(self, *, broken: bool) -> None:
        """Makes the link a black hole, or what it was before."""
        self.to_actors.black_hole = self.to_learner.black_hole = broken

    def set_faults(self, *, loss: float = 0.0, late: float = 0.0, late_seconds: float = 0.0) -> None:
        """Loses and delays that share of the packets from now on, in both directions."""
        for direction in (self.to_actors, self.to_learner):
            direction.loss, direction.late, direction.late_seconds = loss, late, late_seconds

    def traffic(self) -> dict[str, int]:
        """Returns how many packets were carried and dropped so far."""
        return {
            "packets_to_actors": self.to_actors.packets,
            "packets_to_learner": self.to_learner.packets,
            "packets_dropped": self.to_actors.dropped + self.to_learner.dropped,
        }


def ip(*arguments: str) -> None:
    """Runs the command ip."""
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def namespace(name: str, address: str) -> Iterator[int]:
    """Yields the file of a TUN device that is the only way out of a new network namespace, whose own address is given."""
    ip("netns", "add", name)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
        ip("link", "set", name, "netns", name)
        ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
        ip("-n", name, "link", "set", name, "mtu", str(_MTU), "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield device
    finally:
        os.close(device)
        ip("netns", "del", name)


@contextmanager
def linked(round_trip: float, megabits: float, *, megabits_to_actors: float | None = None, seed: int = 0) -> Iterator[Link]:
    """Yields a link between two new namespaces: `round_trip` seconds, and `megabits` a second in each direction, or in one."""
    rates = {"to actors": megabits_to_actors or megabits, "to learner": megabits}
    here, there = f"learner{os.getpid()}", f"actors{os.getpid()}"
    with ExitStack() as open_ones:
        devices = [open_ones.enter_context(namespace(name, address)) for name, address in ((here, LEARNER), (there, ACTORS))]
        to_actors, to_learner = (
            Direction(*pair, round_trip / 2, 8.0 / (rates[name] * 1e6), Random(f"{seed} {name}"))  # noqa: S311
            for pair, name in ((devices, "to actors"), (devices[::-1], "to learner"))
        )
        loop = asyncio.new_event_loop()
        for direction in (to_actors, to_learner):
            loop.add_reader(direction.source, direction.carry)
        thread = threading.Thread(target=loop.run_forever, name="link", daemon=True)
        thread.start()
        try:
            yield Link(here, there, to_actors, to_learner)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


class Processes:
    """Starts programs in network namespaces; whatever still runs at the end is ended."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, where: str, *command: str) -> subprocess.Popen[bytes]:
        """Starts a Python module in a namespace; what it prints goes into `log`."""
        path = self.logs / f"{len(self._started)}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(["ip", "netns", "exec", where, sys.executable, "-u", "-m", *command], stdout=log, stderr=log)
        self._started.append(process)
        return process

    def log(self, process: subprocess.Popen[bytes]) -> str:
        """Returns what a process has printed so far."""
        return (self.logs / f"{self._started.index(process)}.log").read_text(errors="replace")

    def end(self) -> None:
        """Ends them all."""
        for process in self._started:
            process.terminate()
        for process in self._started:
            try:
                process.wait(15.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
