"""What the learner's books must say, in lists and dicts: the model that `test_accounting_model` holds the real parts against.

A column is one number, its mark: no two that were ever collected have the same. The model moves marks from list to list.
"""

import math
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field

from learner_server.resume import VERSIONS_BETWEEN_LINES


@dataclass(frozen=True, eq=False)
class Collected:
    """An unroll that an actor collected once, and may send any number of times: its columns' marks, and each one's steps."""

    actor: str
    incarnation: int
    sequence: int
    version: int
    steps: Mapping[int, int]

    @property
    def name(self) -> tuple[str, int, int]:
        return self.actor, self.incarnation, self.sequence


@dataclass
class Known:
    """What the learner knows of an actor: of its latest incarnation, which sequences were accepted and which refused."""

    incarnation: int
    task: int
    joined: bool = True
    accepted_steps: int = 0
    answers: dict[int, bool] = field(default_factory=dict)


@dataclass
class Counters:
    """What a line of metrics shows, and a checkpoint keeps."""

    received: int
    trained: list[int]
    dropped: Counter[str]
    updates: int = 0
    # When they were written down; what is later is further on.
    moment: int = 0


@dataclass
class Saved:
    """A checkpoint. `learnt`: the marks that its weights were trained on."""

    version: int
    learnt: list[int]
    actors: dict[str, Known]
    counters: Counters


@dataclass
class Lane:
    """A task: unrolls that have a place, as the marks left of each, and those in line."""

    places: list[list[int]] = field(default_factory=list)
    line: list[Collected] = field(default_factory=list)
    # Batch by batch, the oldest first.
    training: list[list[int]] = field(default_factory=list)

    @property
    def columns(self) -> int:
        return sum(map(len, self.places))


class Model:
    """A run over all its learner processes.

    `submit` and what moves the line return, or note in `answers`, with what calls end: "accepted", "duplicate", "stale",
    "stale again", "over", or the name of a status.
    """

    def __init__(self, *, tasks: int, batch: int, capacity: int, max_line: int, max_lag: int, drops_oldest: bool) -> None:
        self.tasks, self.batch, self.max_line, self.max_lag, self.drops_oldest = tasks, batch, max_line, max_lag, drops_oldest
        self.share = math.ceil(capacity / tasks)
        self.steps: dict[int, int] = {}
        self.saved: Saved | None = None
        self.shown: Counters | None = None
        # The version of the last line, and whether that was one of a good end.
        self.shown_version, self.ended = 0, False
        self.moment = 0
        # Of every version that was published, what its weights had learnt.
        self.published: dict[int, list[int]] = {}
        self.counters = Counters(0, [0] * self.tasks, Counter())
        self.start()

    # --- Processes

    def start(self) -> None:
        """A process begins where the run stands: weights and ledgers of the checkpoint, every step where the last one had it."""
        self.lanes = [Lane() for _ in range(self.tasks)]
        self.dealt, self.closed, self.over = 0, "", False
        self.answers: list[tuple[Collected, str]] = []
        written = [counters for counters in (self.saved.counters if self.saved else None, self.shown) if counters is not None]
        self.counters.updates = max(written, key=lambda each: each.moment).updates if written else 0
        self.counters.dropped["restart"] += self.counters.received - sum(self.counters.trained) - self.counters.dropped.total()
        self.learnt = list(self.saved.learnt) if self.saved else []
        self.actors = deepcopy(self.saved.actors) if self.saved else {}
        for known in self.actors.values():
            known.joined = False
        self.version = self.first_version()
        self.publish()

    def first_version(self) -> int:
        saved = self.saved.version if self.saved else 0
        if not self.saved and not self.shown:
            return 1
        if self.ended and saved == self.shown_version:
            return saved
        return max(saved, self.shown_version) + VERSIONS_BETWEEN_LINES

    def publish(self) -> None:
        self.served = self.version
        before = self.published.setdefault(self.version, list(self.learnt))
        assert before == self.learnt, f"version {self.version} names two different weights"

    def show(self, *, ended: bool = False) -> None:
        self.shown, self.shown_version, self.ended = self.written(), self.version, ended

    def renew_version(self) -> None:
        """Before the checkpoint of a good end: weights that were saved already become another version, so as to be saved again."""
        if self.saved and self.saved.version == self.version:
            self.version += 1

    def save(self) -> None:
        """Saves, unless the same version was saved already."""
        if self.saved is None or self.saved.version != self.version:
            self.saved = Saved(self.version, list(self.learnt), deepcopy(self.actors), self.written())

    def written(self) -> Counters:
        self.moment += 1
        counters = deepcopy(self.counters)
        counters.moment = self.moment
        return counters

    # --- Actors

    def join(self, actor: str, incarnation: int, task: int) -> None:
        known = self.actors.get(actor)
        if known is None:
            self.actors[actor] = Known(incarnation, task)
        elif incarnation > known.incarnation:
            self.actors[actor] = Known(incarnation, known.task, accepted_steps=known.accepted_steps)
        else:
            known.joined = True

    def may_join(self, actor: str, incarnation: int) -> bool:
        return actor not in self.actors or incarnation >= self.actors[actor].incarnation

    def submit(self, unroll: Collected) -> str | None:
        """Returns how the call ends, or None if it waits."""
        known = self.actors.get(unroll.actor)
        if known is None or not known.joined or known.incarnation != unroll.incarnation:
            return "FAILED_PRECONDITION"
        if unroll.sequence in known.answers:
            return "duplicate" if known.answers[unroll.sequence] else "stale again"
        if unroll in self.lanes[known.task].line:
            return None
        return "over" if self.over else self.arrive(unroll, known, self.lanes[known.task])

    def arrive(self, unroll: Collected, known: Known, lane: Lane) -> str | None:
        """An unroll comes for the first time that this process knows of."""
        if self.served - unroll.version > self.max_lag:
            self.counters.received += total(unroll)
            self.counters.dropped["stale"] += total(unroll)
            known.answers[unroll.sequence] = False
            return "stale"
        if self.closed:
            return self.closed
        if self.drops_oldest:
            self.drop_oldest(lane, len(unroll.steps))
        elif lane.columns >= self.share or lane.line:
            return self.line_up(lane, unroll)
        self.counters.received += total(unroll)
        self.give_place(lane, unroll)
        return "accepted"

    def drop_oldest(self, lane: Lane, coming: int) -> None:
        while lane.columns >= self.share and lane.columns - len(lane.places[0]) + coming >= self.share:
            self.counters.dropped["overflow"] += sum(self.steps[mark] for mark in lane.places.pop(0))

    def line_up(self, lane: Lane, unroll: Collected) -> str | None:
        if sum(len(each.line) for each in self.lanes) >= self.max_line:
            return "UNAVAILABLE"
        self.counters.received += total(unroll)
        lane.line.append(unroll)
        return None

    def give_place(self, lane: Lane, unroll: Collected) -> None:
        lane.places.append(list(unroll.steps))
        known = self.actors[unroll.actor]
        known.accepted_steps += total(unroll)
        if known.incarnation == unroll.incarnation:
            known.answers[unroll.sequence] = True

    def let_in(self, lane: Lane) -> None:
        while lane.line and lane.columns < self.share:
            unroll = lane.line.pop(0)
            self.give_place(lane, unroll)
            self.answers.append((unroll, "accepted"))

    def in_line(self) -> list[Collected]:
        return [unroll for lane in self.lanes for unroll in lane.line]

    # --- Training

    def take(self) -> list[int] | None:
        """Returns the marks of the next batch, which deals the tasks out like cards, or None if there are too few."""
        deal = Counter(number % self.tasks for number in range(self.dealt, self.dealt + self.batch))
        if any(lane.columns < deal[task] for task, lane in enumerate(self.lanes)):
            return None
        self.dealt += self.batch
        return [mark for task, lane in enumerate(self.lanes) for mark in self.remove(lane, deal[task])]

    def take_rest(self) -> list[int]:
        taken: list[int] = []
        for lane in self.lanes:
            taken += self.remove(lane, min(self.batch - len(taken), lane.columns))
        return taken

    def remove(self, lane: Lane, count: int) -> list[int]:
        taken = [mark for marks in lane.places for mark in marks][:count]
        lane.places = [rest for marks in lane.places if (rest := [mark for mark in marks if mark not in taken])]
        lane.training.append(taken)
        self.let_in(lane)
        return taken

    def train(self, *, skipped: bool) -> None:
        """Training on the batch that was taken first ends; a skipped step counts, but teaches nothing."""
        for task, lane in enumerate(self.lanes):
            marks = lane.training.pop(0)
            self.counters.trained[task] += sum(self.steps[mark] for mark in marks)
            if not skipped:
                self.learnt += marks
        if not skipped:
            self.counters.updates += 1
            self.version += 1
            self.publish()

    def close(self, *, run_over: bool) -> None:
        self.closed = "over" if run_over else "UNAVAILABLE"
        for unroll in self.in_line():
            self.answers.append((unroll, self.closed))
            if run_over:
                self.counters.dropped["run_over"] += total(unroll)
            else:
                self.counters.received -= total(unroll)
        for lane in self.lanes:
            lane.line.clear()
            if run_over:
                self.counters.dropped["run_over"] += sum(self.steps[mark] for marks in lane.places for mark in marks)
                lane.places.clear()

    def drop_taken(self) -> None:
        for lane in self.lanes:
            self.counters.dropped["run_over"] += sum(self.steps[mark] for marks in lane.training for mark in marks)
            lane.training.clear()

    @property
    def waiting(self) -> int:
        here = [mark for lane in self.lanes for marks in (*lane.places, *lane.training) for mark in marks]
        return sum(self.steps[mark] for mark in here) + sum(map(total, self.in_line()))


def total(unroll: Collected) -> int:
    return sum(unroll.steps.values())
