"""Who takes part: the actors of a run, and which of their unrolls have been answered."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from impala.errors import InvalidMessage, Mismatch

# Sequences kept one by one for each actor. An actor has a few submissions open, so a gap that this many later ones have passed
# is one that will never be sent: those that an earlier learner process answered after its last checkpoint.
_MAX_ABOVE = 1024

# An actor that has not called for this long is not counted as taking part, unless it usually takes long between calls, for an
# unroll of a slow environment may take minutes: then after several times the longest pause that it made lately, of which each call
# since takes something off. Never more than ten minutes: one that came back after hours and is gone again holds nobody up.
ACTOR_SILENCE_SECONDS = 10.0
_SILENT_PAUSES = 4.0
_LONGEST_SILENCE_SECONDS = 600.0
_FADING = 0.8

_FORGET_SECONDS = 86_400.0

# Actors that are known at once, whose names anybody with the token may make up; and for how long one that others want the place of
# must have been silent.
_MOST_ACTORS = 16_384
_FORGET_WHEN_FULL_SECONDS = 3600.0


class TooManyActors(Exception):
    """As many actors are known as may be, and all of them have called lately."""


class SequenceLedger:
    """Which sequences of one incarnation have been answered, so that a retry is told apart from a new unroll.

    Answers may come out of order, so it keeps a floor, all at or below which are answered (accepted, but for the newest that were
    refused, kept apart), and those above it one by one.
    """

    def __init__(self, floor: int = 0, above: Mapping[int, bool] | None = None, refused: Iterable[int] = ()) -> None:
        self.floor = floor
        self.above = dict(above or {})
        self.refused = set(refused)

    def answer(self, sequence: int) -> bool | None:
        """Returns whether `sequence` was accepted, or None if it has not been answered."""
        return sequence not in self.refused if sequence <= self.floor else self.above.get(sequence)

    def record(self, sequence: int, *, accepted: bool) -> None:
        """Remembers the answer to `sequence`."""
        if sequence > self.floor:
            self.above[sequence] = accepted
        if len(self.above) > _MAX_ABOVE:
            self.floor = min(self.above) - 1
        while self.floor + 1 in self.above:
            self.floor += 1
            if not self.above.pop(self.floor):
                self.refused.add(self.floor)
        if len(self.refused) > _MAX_ABOVE:
            self.refused.remove(min(self.refused))


@dataclass
class Actor:
    """One actor, as the learner sees it: `last_seen` by `time.monotonic`, and `pause`, its longest silence lately, in seconds."""

    actor_id: str
    index: int
    incarnation: int
    task: int = 0
    host: str = ""
    environments: int = 0
    joins: int = 0
    lives: int = 0
    refused: int = 0
    env_steps: int = 0
    parameter_version: int = 0
    last_seen: float = 0.0
    pause: float = 0.0
    waiting: int = 0
    farewelled: bool = False
    departed: bool = False
    # Of the event loop alone: what `ActorLimits` counts.
    calls_due: float = 0.0
    entering: int = 0
    entering_bytes: int = 0
    ledger: SequenceLedger = field(default_factory=SequenceLedger)

    def silent_after(self, seconds: float) -> float:
        """Returns for how long it has to be silent to be missed: `seconds`, or longer where it usually is."""
        return max(seconds, min(_LONGEST_SILENCE_SECONDS, _SILENT_PAUSES * self.pause))


class ActorRegistry:
    """The actors of a run, by id. Written by the gRPC event loop, read by the training thread.

    Args:
        tasks: over which actors are spread, each new one to a task that has the fewest in all learners.
        most: actors that are known at once.
        rank, ranks: of this learner among those that train as one, so that no two actors of a run have the same index.
        only: the ids of all actors that may take part, where each has its index, and so its seed and its task, by its id.
    """

    def __init__(
        self, tasks: int = 1, *, rank: int = 0, ranks: int = 1, most: int = _MOST_ACTORS, only: Sequence[str] = ()
    ) -> None:
        self._tasks = tasks
        self._most = most
        self._only = tuple(only)
        self._rank, self._ranks = rank, ranks
        self._lock = threading.Lock()
        self._actors: dict[str, Actor] = {}
        self._next_index = rank
        # Actors of each task that take part in other learners of the group, as far as this one was told.
        self._elsewhere = [0] * tasks

    def join(self, actor_id: str, incarnation: int, host: str, environments: int) -> Actor:
        """Returns the actor, new or known, after it joined.

        Raises:
            InvalidMessage: an actor_id that is empty, over 128 characters or not printable.
            Mismatch: an incarnation older than the one that joined last under this id, or an id that has no part in this run.
            TooManyActors: it is new, and there is no room for it.
        """
        check_actor_id(actor_id)
        if self._only and actor_id not in self._only:
            raise Mismatch(
                "actor_id", f"one of this run's own {len(self._only)} actors, which it is in lockstep with", repr(actor_id)
            )
        with self._lock:
            actor = self._actors.get(actor_id)
            if actor is None:
                self._make_room()
                actor = Actor(actor_id, self._next_index, incarnation, task=self._neediest_task())
                self._actors[actor_id] = actor
                self._next_index += self._ranks
            elif incarnation < actor.incarnation:
                # Of a restored one this process has seen none: then it may be a clock that is behind.
                raise _superseded(actor_id, incarnation, actor.incarnation, seen=actor.joins > 0)
            elif incarnation > actor.incarnation:
                actor.incarnation = incarnation
                actor.lives += 1
                actor.ledger = SequenceLedger()
            if self._only:
                actor.index = self._only.index(actor_id)
                actor.task = actor.index % self._tasks
            # For logs and displays, whose lines it must not break.
            actor.host = "".join(letter if letter.isprintable() else "?" for letter in host[:128])
            actor.environments = environments
            actor.joins += 1
            actor.departed = False
            actor.last_seen, actor.pause = time.monotonic(), 0.0
            return actor

    def _make_room(self) -> None:
        if len(self._actors) >= self._most:
            self._forget(_FORGET_WHEN_FULL_SECONDS)
        if len(self._actors) >= self._most:
            raise TooManyActors(f"{self._most} actors are known already: try again later")

    def _forget(self, seconds: float) -> None:
        """Forgets actors that have been silent for so long."""
        since = time.monotonic() - seconds
        self._actors = {name: actor for name, actor in self._actors.items() if actor.last_seen >= since or actor.waiting}

    def send_away(self, actor_id: str) -> None:
        """Notes that an actor, if it is here, was told to go to another learner. What it has under way is still answered."""
        with self._lock:
            if actor_id in self._actors:
                self._actors[actor_id].departed = True

    def taking_part(self, *, but: str = "") -> int:
        """Returns how many actors take part here, one that is named not counted."""
        with self._lock:
            return sum(actor.actor_id != but for actor in self._seen_within(ACTOR_SILENCE_SECONDS))

    def _neediest_task(self) -> int:
        counts = [here + elsewhere for here, elsewhere in zip(self._by_task(), self._elsewhere, strict=True)]
        # Learners that have heard nothing of each other yet begin with different tasks.
        first = self._rank * self._tasks // self._ranks
        return min(range(self._tasks), key=lambda task: (counts[task], (task - first) % self._tasks))

    def _by_task(self) -> list[int]:
        taking_part = [actor.task for actor in self._seen_within(ACTOR_SILENCE_SECONDS)]
        return [taking_part.count(task) for task in range(self._tasks)]

    def by_task(self) -> list[int]:
        """Returns how many actors take part here in each task."""
        with self._lock:
            return self._by_task()

    def note_elsewhere(self, by_task: Sequence[int]) -> None:
        """Takes in how many actors take part in each task in the other learners; none where there are no others."""
        with self._lock:
            self._elsewhere = list(by_task) or [0] * self._tasks

    def tasks_within(self, seconds: float) -> set[int]:
        """Returns the tasks of which an actor is not missed (see `seen_within`), those that were sent away included."""
        with self._lock:
            return {actor.task for actor in self._actors.values() if actor.joins and _is_there(actor, seconds)}

    def find(self, actor_id: str, incarnation: int) -> Actor:
        """Returns an actor that joined this learner process, and notes that it was seen.

        Raises:
            InvalidMessage: as `join`.
            Mismatch: it did not join, or another incarnation of it did since.
        """
        with self._lock:
            actor = self._seen(actor_id)
            if incarnation != actor.incarnation:
                raise _superseded(actor_id, incarnation, actor.incarnation)
            return actor

    def greet(self, actor_id: str) -> Actor:
        """Returns an actor that joined this learner process, whichever incarnation of it calls, and notes that it was seen.

        Raises:
            InvalidMessage: as `join`.
            Mismatch: it did not join this learner process.
        """
        with self._lock:
            return self._seen(actor_id)

    def note_refused(self, actor_id: str) -> None:
        """Counts a refused message of an actor, if it is known."""
        with self._lock:
            if actor_id in self._actors:
                self._actors[actor_id].refused += 1

    def _seen(self, actor_id: str) -> Actor:
        check_actor_id(actor_id)
        actor = self._actors.get(actor_id)
        if actor is None or not actor.joins:
            raise Mismatch("actor_id", "an actor that has joined this learner", repr(actor_id[:140]))
        now = time.monotonic()
        actor.pause = max(now - actor.last_seen, _FADING * actor.pause)
        actor.last_seen = now
        return actor

    def say_farewell(self, actor: Actor) -> None:
        """Notes that an actor was told that the run is over."""
        with self._lock:
            actor.farewelled = True

    def record(
        self, actor: Actor, incarnation: int, sequence: int, *, accepted: bool, env_steps: int, parameter_version: int
    ) -> None:
        """Remembers the answer to one of an actor's unrolls, which an incarnation may have sent that was replaced since."""
        with self._lock:
            if incarnation == actor.incarnation:
                actor.ledger.record(sequence, accepted=accepted)
            if accepted:
                actor.env_steps += env_steps
                actor.parameter_version = parameter_version

    @contextmanager
    def waiting(self, actor: Actor) -> Iterator[None]:
        """While open, one of the actor's unrolls waits for a place in the queue, which is no silence of the actor's."""
        with self._lock:
            actor.waiting += 1
        try:
            yield
        finally:
            with self._lock:
                actor.waiting -= 1
                actor.last_seen = time.monotonic()

    def seen_within(self, seconds: float) -> list[Actor]:
        """Returns copies of the actors that called within the last `seconds`, or `silent_after` them, or wait for an answer."""
        with self._lock:
            return [replace(actor) for actor in self._seen_within(seconds)]

    def _seen_within(self, seconds: float) -> list[Actor]:
        present = [actor for actor in self._actors.values() if actor.joins and not actor.departed]
        return [actor for actor in present if _is_there(actor, seconds)]

    def snapshot(self) -> list[Actor]:
        """Returns copies of all actors, in the order in which they first joined, their ledgers shared."""
        with self._lock:
            return [replace(actor) for actor in self._actors.values()]

    def to_json(self) -> dict[str, Any]:
        """Returns what a restarted learner must know: incarnations, ledgers, and the next index, hence seeds.

        Actors that have been silent for a day are forgotten first: those that come and go under names of their own would fill
        memory and checkpoints without end.
        """
        with self._lock:
            self._forget(_FORGET_SECONDS)
            actors = {
                actor.actor_id: {
                    "index": actor.index,
                    "task": actor.task,
                    "incarnation": actor.incarnation,
                    "env_steps": actor.env_steps,
                    "parameter_version": actor.parameter_version,
                    "floor": actor.ledger.floor,
                    "above": [[sequence, accepted] for sequence, accepted in actor.ledger.above.items()],
                    "refused": sorted(actor.ledger.refused),
                }
                for actor in self._actors.values()
            }
            return {"next_index": self._next_index, "actors": actors}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Takes over what `to_json` returned; the actors have to join again before they submit.

        Of several learners, that of rank 0 alone takes over the steps that were counted: `merge_registries` adds them up.
        """
        with self._lock:
            # The first of this rank's that no rank has given away, however many ranks there were.
            self._next_index = values["next_index"] + (self._rank - values["next_index"]) % self._ranks
            for actor_id, kept in values["actors"].items():
                ledger = SequenceLedger(kept["floor"], dict(kept["above"]), kept.get("refused", ()))
                self._actors[actor_id] = Actor(
                    actor_id,
                    kept["index"],
                    kept["incarnation"],
                    task=kept["task"],
                    env_steps=0 if self._rank else kept["env_steps"],
                    parameter_version=kept.get("parameter_version", 0),
                    last_seen=time.monotonic(),
                    ledger=ledger,
                )


def _is_there(actor: Actor, seconds: float) -> bool:
    return actor.waiting > 0 or time.monotonic() - actor.last_seen <= actor.silent_after(seconds)


def merge_registries(registries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns one registry of several learners', each in the form of `to_json`.

    Of an actor that several know, because it was sent from one to another: its latest life, and the steps that all have counted.
    """
    lives: dict[str, list[dict[str, Any]]] = {}
    for registry in registries:
        for actor_id, actor in registry["actors"].items():
            lives.setdefault(actor_id, []).append(actor)
    actors = {actor_id: _merged(each) for actor_id, each in lives.items()}
    return {"next_index": max(registry["next_index"] for registry in registries), "actors": actors}


def _merged(lives: Sequence[dict[str, Any]]) -> dict[str, Any]:
    latest = max(lives, key=_progress)
    return {**latest, "env_steps": sum(life["env_steps"] for life in lives)}


def _progress(actor: Mapping[str, Any]) -> tuple[int, int]:
    return actor["incarnation"], actor["floor"] + len(actor["above"])


def check_actor_id(actor_id: str) -> None:
    """Raises InvalidMessage for an actor_id that is empty, over 128 characters or not printable."""
    if not 1 <= len(actor_id) <= 128 or not actor_id.isprintable():
        raise InvalidMessage("actor_id", "1 to 128 printable characters", repr(actor_id[:140]))


def _superseded(actor_id: str, came: int, newest: int, *, seen: bool = True) -> Mismatch:
    when = "" if seen else " before this learner was started"
    hint = "" if seen else ": is the clock of this actor's machine behind?"
    return Mismatch("incarnation", f"{newest}, which joined last as {actor_id!r}{when}", f"{came}{hint}")
