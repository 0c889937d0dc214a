"""Which of several learners an actor goes to."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from impala.addresses import LOOPBACK_HOSTS

# An actor that was sent to another rank is taken for there for so long, after which that rank's own count has it or it went astray.
_UNDER_WAY_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where a rank is called, and by how many actors.

    Attributes:
        host: empty for the one by which the actor called the rank that sends it there.
        port: with TLS where there is any.
        local_port: of 127.0.0.1, without TLS, for the actors of its own machine.
        machine: tells machines apart.
        actors: that take part there.
    """

    host: str
    port: int
    local_port: int
    machine: int
    actors: int

    def to_json(self) -> Mapping[str, str | int]:
        """Returns it as JSON values."""
        return asdict(self)


class Balance:
    """Spreads actors evenly over ranks. Told by the training thread how many each has, asked by the gRPC event loop.

    Args:
        rank: this learner's.
        clock: seconds.
    """

    def __init__(self, rank: int = 0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rank = rank
        self._clock = clock
        self._lock = threading.Lock()
        self._doors: list[Door] = []
        # Ranks that actors were sent to, and until when they are taken for under way.
        self._sent: list[tuple[int, float]] = []
        self._may_send_one = False

    def update(self, doors: Sequence[Door]) -> None:
        """Takes in where all ranks stand, in their order. The busiest may send one actor away if another rank has two fewer."""
        with self._lock:
            self._doors = list(doors)
            loads = self._loads()
            # One at a time, and the next when that one has had the time to arrive.
            self._may_send_one = not self._sent and loads[self._rank] == max(loads) and max(loads) - min(loads) > 1

    def place(self, called: str, joined_here: int) -> str | None:
        """Returns the HOST:PORT of the rank that an actor which joins should go to; None for here.

        Args:
            called: the HOST:PORT by which it called this learner; empty for one that did not say, and stays.
            joined_here: actors that take part here, the one that joins not counted.
        """
        host, _, port = called.rpartition(":")
        with self._lock:
            if len(self._doors) < 2 or not host:
                return None
            here, loads = self._doors[self._rank], self._loads()
            loads[self._rank] = joined_here
            by_local_port = port == str(here.local_port) and here.local_port != here.port
            local = by_local_port or host in LOOPBACK_HOSTS
            ranks = [rank for rank, door in enumerate(self._doors) if door.machine == here.machine or not local]
            chosen = min(ranks, key=lambda rank: (loads[rank], rank != self._rank, rank))
            if chosen == self._rank:
                return None
            self._sent.append((chosen, self._clock() + _UNDER_WAY_SECONDS))
            there = self._doors[chosen]
        if by_local_port:
            return f"127.0.0.1:{there.local_port}"
        return f"{host if local else there.host or host}:{there.port}"

    def send_one_away(self) -> bool:
        """Returns whether the actor that calls should go to another rank; true once for each that may."""
        with self._lock:
            sends, self._may_send_one = self._may_send_one, False
            if sends:
                # Where it goes it is told when it joins; until then it counts nowhere.
                self._sent.append((-1, self._clock() + _UNDER_WAY_SECONDS))
            return sends

    def _loads(self) -> list[int]:
        now = self._clock()
        self._sent = [(rank, until) for rank, until in self._sent if until > now]
        loads = [door.actors for door in self._doors]
        for rank, _ in self._sent:
            if rank >= 0:
                loads[rank] += 1
        return loads
