"""The unroll queue: where the network ends and training begins, and where actors wait when they outrun the learner."""

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from impala.unroll import Unroll, concatenate

T = TypeVar("T")


class QueueClosed(Exception):
    """No more unrolls are taken. `run_over` tells the end of the run from a learner that will be back."""

    def __init__(self, *, run_over: bool) -> None:
        super().__init__("the run is over" if run_over else "the learner is shutting down")
        self.run_over = run_over


class LineTooLong(Exception):
    """More callers wait for a place than the queue lets wait."""


@dataclass(frozen=True, kw_only=True)
class StepAccount:
    """Where every agent step that was ever received is: received == trained + sum(dropped) + waiting, at every moment.

    Attributes:
        received: steps of valid unrolls.
        trained: steps that a learner step consumed.
        dropped: rule to steps: `stale` (too old on arrival), `overflow` (the oldest in a full queue that drops them), `run_over`
            (left when the run ended), `restart` (waiting when an earlier learner process died).
        waiting: steps in line, in the queue or in a batch that was taken to be trained on, counted where they are.
        queued_trajectories: trajectories in the queue, not in line.
        trained_by_task: `trained`, task by task.
    """

    received: int
    trained: int
    dropped: Mapping[str, int]
    waiting: int
    queued_trajectories: int
    trained_by_task: Sequence[int]

    @classmethod
    def total(cls, accounts: Sequence[Mapping[str, Any]]) -> "StepAccount":
        """Returns the account of several queues, each given as the fields of its own."""
        dropped: Counter[str] = Counter()
        for account in accounts:
            dropped.update(account["dropped"])
        amounts = {
            name: sum(account[name] for account in accounts) for name in ("received", "trained", "waiting", "queued_trajectories")
        }
        by_task = [sum(steps) for steps in zip(*(account["trained_by_task"] for account in accounts), strict=True)]
        return cls(dropped=dropped, trained_by_task=by_task, **amounts)


@dataclass(eq=False)
class _Ticket:
    """A caller in line: its unroll, what to call when that has a place, and the future that is resolved then."""

    unroll: Unroll[np.ndarray]
    on_place: Callable[[], None]
    accepted: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


class _Lane:
    """The unrolls of one task: those with a place, and the callers in line for one."""

    def __init__(self, trained: int) -> None:
        self.places: deque[Unroll[np.ndarray]] = deque()
        self.line: deque[_Ticket] = deque()
        self.trajectories = 0
        # Of each batch that was taken and not yet trained on, the oldest first: its steps of this task.
        self.in_training: deque[int] = deque()
        self.trained = trained


class UnrollQueue:
    """A bounded queue of unrolls between the gRPC event loop (`put`) and the training thread (`take_batch`).

    Invariants: an unroll has a place or a caller waits for one, never neither and never both; the unrolls of one task are served in
    the order of arrival, and every task that `serve` names has an equal share of each batch; a caller in line costs no thread.

    Args:
        capacity: trajectories that may have a place, shared evenly by the served tasks. An unroll is let in while there are
            fewer, so a wide one may overshoot.
        max_line: callers that may wait.
        when_full: what becomes of an unroll that comes when there is no place. `wait`: its caller stands in line. `drop-oldest`: it
            is let in at once, and the oldest of its task that have a place leave for it, as many as a full queue can spare: what is
            left still fills it, so that a batch that was there for training is not gone again. Nobody is ever in line then.
        received, dropped: where the accounts of an earlier process of the run ended.
        trained: the same, one number for each task.
        lanes: in lockstep: how many actors there are, each of which then is what `put`, `serve` and `take_batch` call a task; that
            of actor i counts for task i, over and over.
        keep: called, while the queue is locked, with what is counted for good whenever that has changed, before anybody hears of
            it: received, trained on by task, dropped by rule.
        on_taken: called, while the queue is locked, with each unroll that leaves it for a batch, or of which the first columns do.
    """

    def __init__(
        self,
        *,
        capacity: int,
        max_line: int,
        when_full: Literal["wait", "drop-oldest"] = "wait",
        received: int = 0,
        trained: Sequence[int] = (0,),
        dropped: Mapping[str, int] | None = None,
        lanes: int | None = None,
        keep: Callable[[Mapping[str, Any]], None] | None = None,
        on_taken: Callable[[Unroll[np.ndarray]], None] | None = None,
    ) -> None:
        self._keep = keep
        self._on_taken = on_taken
        self._capacity = capacity
        self._max_line = max_line
        self._drops_oldest = when_full == "drop-oldest"
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._tasks = len(trained)
        self._lanes = [_Lane(trained[lane] if lane < self._tasks else 0) for lane in range(lanes or self._tasks)]
        self._served = list(range(len(self._lanes)))
        # Which of the served tasks has the first of those trajectories that do not divide evenly.
        self._turn = 0
        self._received = received
        self._dropped = dict(dropped or {})
        self._closed: QueueClosed | None = None

    async def put(self, unroll: Unroll[np.ndarray], task: int = 0, on_place: Callable[[], None] = lambda: None) -> None:
        """Returns when the unroll has a place; while there is none, waits in line: the backpressure. Event loop only.

        A queue that drops the oldest has a place at any time.

        Args:
            on_place: called at the instant when it gets its place, by whichever thread gives it, so that no account says that
                the queue has it, or training had it, before that.

        Raises:
            QueueClosed: before it had a place; it is accounted for as dropped if the run is over, else as never received.
            LineTooLong: at once.
            CancelledError: the caller was cancelled in line and left it; its unroll counts as never received.
        """
        lane = self._lanes[task]
        with self._counting():
            if self._closed:
                raise self._closed
            if self._drops_oldest:
                self._drop_oldest(lane, unroll.environments)
            if self._drops_oldest or (self._has_room(lane) and not lane.line):
                self._received += unroll.env_steps
                self._give_place(lane, unroll, on_place)
                return
            if sum(len(each.line) for each in self._lanes) >= self._max_line:
                raise LineTooLong(f"{self._max_line} unrolls wait for a place already")
            loop = asyncio.get_running_loop()
            ticket = _Ticket(unroll, on_place, loop.create_future(), loop)
            self._received += unroll.env_steps
            lane.line.append(ticket)
        try:
            await ticket.accepted
        except asyncio.CancelledError:
            self._leave(lane, ticket)
            raise

    def serve(self, tasks: Iterable[int]) -> None:
        """From now on batches wait for these tasks, and for no other: those that have actors. None means all."""
        with self._lock:
            self._served = sorted(tasks) or list(range(len(self._lanes)))
            for lane in self._lanes:
                self._let_in(lane)
            self._changed.notify_all()

    def take_batch(self, trajectories: int, timeout_seconds: float) -> Unroll[np.ndarray] | None:
        """Returns the oldest `trajectories` columns, side by side, or None if there are not as many in time. Training thread only.

        Every served task has its share, and the trajectories that do not divide evenly go to one task after another. An unroll that
        is wider than what its task still needs is split; its rest stays at the head. The columns count as waiting until
        `mark_trained`. Another batch may be taken before that.
        """
        with self._lock:
            if not self._changed.wait_for(lambda: self._holds(trajectories) or self._closed, timeout_seconds):
                return None
            if not self._holds(trajectories):
                return None
            taken = self._take(self._shares(trajectories))
            self._turn += trajectories
        return concatenate(taken)

    def take_rest(self, trajectories: int) -> Unroll[np.ndarray] | None:
        """Returns up to `trajectories` columns without waiting, or None when the queue is empty. For draining a closed queue."""
        with self._lock:
            shares, missing = dict[int, int](), trajectories
            for task, lane in enumerate(self._lanes):
                shares[task] = min(missing, lane.trajectories)
                missing -= shares[task]
            if missing == trajectories:
                return None
            taken = self._take(shares)
        return concatenate(taken)

    def mark_trained(self) -> None:
        """Moves the steps of the batch that was taken first, of those not yet marked, from waiting to trained."""
        with self._counting():
            for lane in self._lanes:
                lane.trained += lane.in_training.popleft()

    def drop_taken(self) -> None:
        """Moves the steps of batches that were taken and not marked from waiting to dropped: the run ended before their turn."""
        with self._counting():
            for lane in self._lanes:
                self._drop("run_over", sum(lane.in_training))
                lane.in_training.clear()

    def count_dropped(self, rule: str, env_steps: int, on_count: Callable[[], None] = lambda: None) -> None:
        """Accounts for an unroll that was received and dropped without waiting; `on_count` is called at that instant."""
        with self._counting():
            on_count()
            self._received += env_steps
            self._drop(rule, env_steps)

    def close(self, *, run_over: bool) -> None:
        """Takes no more unrolls and sends everyone in line away.

        Args:
            run_over: also drops what has a place. Otherwise that stays, to be drained, and callers in line, who were never told
                that their unroll was taken, keep it: their steps count as never received.
        """
        with self._counting():
            self._closed = QueueClosed(run_over=run_over)
            for lane in self._lanes:
                for ticket in lane.line:
                    ticket.loop.call_soon_threadsafe(_fail, ticket.accepted, self._closed)
            line = sum(ticket.unroll.env_steps for lane in self._lanes for ticket in lane.line)
            if run_over:
                rest = line + sum(unroll.env_steps for lane in self._lanes for unroll in lane.places)
                self._drop("run_over", rest)
            else:
                self._received -= line
            for lane in self._lanes:
                lane.line.clear()
                if run_over:
                    lane.places.clear()
                    lane.trajectories = 0
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether no more unrolls are taken."""
        with self._lock:
            return self._closed is not None

    def account(self) -> StepAccount:
        """Returns where every step is, as of one instant."""
        return self.account_with(lambda: None)[0]

    def account_with(self, read: Callable[[], T]) -> tuple[StepAccount, T]:
        """Returns where every step is, and what `read` returns, as of one instant: no unroll gets a place meanwhile."""
        with self._lock:
            return self._account(), read()

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Locks the queue, and keeps what was counted meanwhile."""
        with self._lock:
            yield
            if self._keep is not None:
                by_task = self._trained_by_task()
                self._keep({"steps_received": self._received, "trained_by_task": by_task, "dropped_by_rule": self._dropped})

    def _account(self) -> StepAccount:
        in_queue = sum(unroll.env_steps for lane in self._lanes for unroll in lane.places)
        in_line = sum(ticket.unroll.env_steps for lane in self._lanes for ticket in lane.line)
        return StepAccount(
            received=self._received,
            trained=sum(lane.trained for lane in self._lanes),
            dropped=dict(self._dropped),
            waiting=in_queue + in_line + sum(sum(lane.in_training) for lane in self._lanes),
            queued_trajectories=sum(lane.trajectories for lane in self._lanes),
            trained_by_task=self._trained_by_task(),
        )

    def _trained_by_task(self) -> list[int]:
        return [sum(lane.trained for lane in self._lanes[task :: self._tasks]) for task in range(self._tasks)]

    def _shares(self, trajectories: int) -> dict[int, int]:
        """Returns how many trajectories of each served task the next batch has."""
        each, rest = divmod(trajectories, len(self._served))
        return {task: each + ((position - self._turn) % len(self._served) < rest) for position, task in enumerate(self._served)}

    def _holds(self, trajectories: int) -> bool:
        return all(self._lanes[task].trajectories >= share for task, share in self._shares(trajectories).items())

    def _give_place(self, lane: _Lane, unroll: Unroll[np.ndarray], on_place: Callable[[], None]) -> None:
        on_place()
        lane.places.append(unroll)
        lane.trajectories += unroll.environments
        self._changed.notify()

    def _drop_oldest(self, lane: _Lane, coming: int) -> None:
        while not self._has_room(lane) and lane.trajectories - lane.places[0].environments + coming >= self._share():
            oldest = lane.places.popleft()
            lane.trajectories -= oldest.environments
            self._drop("overflow", oldest.env_steps)

    def _drop(self, rule: str, env_steps: int) -> None:
        self._dropped[rule] = self._dropped.get(rule, 0) + env_steps

    def _leave(self, lane: _Lane, ticket: _Ticket) -> None:
        with self._counting():
            if ticket in lane.line:  # else it was given a place in the meantime, or sent away
                lane.line.remove(ticket)
                self._received -= ticket.unroll.env_steps

    def _take(self, shares: Mapping[int, int]) -> list[Unroll[np.ndarray]]:
        for lane in self._lanes:
            lane.in_training.append(0)
        return [unroll for task, share in shares.items() for unroll in self._take_from(self._lanes[task], share)]

    def _take_from(self, lane: _Lane, trajectories: int) -> list[Unroll[np.ndarray]]:
        taken: list[Unroll[np.ndarray]] = []
        missing = trajectories
        while missing:
            unroll = lane.places.popleft()
            if self._on_taken is not None:
                self._on_taken(unroll)
            if unroll.environments > missing:
                lane.places.appendleft(unroll.columns(missing, unroll.environments))
                unroll = unroll.columns(0, missing)
            taken.append(unroll)
            missing -= unroll.environments
        lane.trajectories -= trajectories
        lane.in_training[-1] = sum(unroll.env_steps for unroll in taken)
        self._let_in(lane)
        return taken

    def _let_in(self, lane: _Lane) -> None:
        while lane.line and self._has_room(lane):
            ticket = lane.line.popleft()
            self._give_place(lane, ticket.unroll, ticket.on_place)
            ticket.loop.call_soon_threadsafe(_accept, ticket.accepted)

    def _has_room(self, lane: _Lane) -> bool:
        return lane.trajectories < self._share()

    def _share(self) -> int:
        """Returns how many trajectories of one task have a place."""
        return -(-self._capacity // len(self._served))


def _accept(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: QueueClosed) -> None:
    if not future.done():
        future.set_exception(error)
