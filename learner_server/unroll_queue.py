"""The unroll queue: where the network ends and training begins, and where actors wait when they outrun the learner."""

import asyncio
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from impala.unroll import Unroll, concatenate


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
        dropped: rule to steps: `stale` (too old on arrival), `run_over` (left when the run ended), `restart` (waiting when an
            earlier learner process died).
        waiting: steps in line, in the queue or in the batch that is being trained on, counted where they are.
        queued_trajectories: trajectories in the queue, not in line.
    """

    received: int
    trained: int
    dropped: Mapping[str, int]
    waiting: int
    queued_trajectories: int


@dataclass(eq=False)
class _Ticket:
    """A caller in line: its unroll, and the future that is resolved when the unroll has a place."""

    unroll: Unroll[np.ndarray]
    accepted: asyncio.Future[None]
    loop: asyncio.AbstractEventLoop


class UnrollQueue:
    """A bounded FIFO of unrolls between the gRPC event loop (`put`) and the training thread (`take_batch`).

    Invariants: an unroll has a place or a caller waits for one, never neither and never both; places and line are served in the
    order of arrival; a caller in line costs no thread.

    Args:
        capacity: trajectories that may have a place. An unroll is let in while there are fewer, so a wide one may overshoot.
        max_line: callers that may wait.
        received, trained, dropped: where the accounts of an earlier process of the run ended.
    """

    def __init__(
        self, *, capacity: int, max_line: int, received: int = 0, trained: int = 0, dropped: Mapping[str, int] | None = None
    ) -> None:
        self._capacity = capacity
        self._max_line = max_line
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._places: deque[Unroll[np.ndarray]] = deque()
        self._line: deque[_Ticket] = deque()
        self._trajectories = 0
        self._in_training = 0
        self._received = received
        self._trained = trained
        self._dropped = dict(dropped or {})
        self._closed: QueueClosed | None = None

    async def put(self, unroll: Unroll[np.ndarray]) -> None:
        """Returns when the unroll has a place; while there is none, waits in line: the backpressure. Event loop only.

        Raises:
            QueueClosed: before it had a place; it is accounted for as dropped if the run is over, else as never received.
            LineTooLong: at once.
            CancelledError: the caller was cancelled in line and left it; its unroll counts as never received.
        """
        with self._lock:
            if self._closed:
                raise self._closed
            if self._trajectories < self._capacity and not self._line:
                self._received += unroll.env_steps
                self._give_place(unroll)
                return
            if len(self._line) >= self._max_line:
                raise LineTooLong(f"{self._max_line} unrolls wait for a place already")
            loop = asyncio.get_running_loop()
            ticket = _Ticket(unroll, loop.create_future(), loop)
            self._received += unroll.env_steps
            self._line.append(ticket)
        try:
            await ticket.accepted
        except asyncio.CancelledError:
            self._leave(ticket)
            raise

    def take_batch(self, trajectories: int, timeout_seconds: float) -> Unroll[np.ndarray] | None:
        """Returns the oldest `trajectories` columns, side by side, or None if there are not as many in time. Training thread only.

        An unroll that is wider than what the batch still needs is split; its rest stays at the head. The columns count as waiting
        until `mark_trained`.
        """
        with self._lock:
            if not self._changed.wait_for(lambda: self._trajectories >= trajectories or self._closed, timeout_seconds):
                return None
            if self._trajectories < trajectories:
                return None
            taken = self._take(trajectories)
        return concatenate(taken)

    def take_rest(self, trajectories: int) -> Unroll[np.ndarray] | None:
        """Returns up to `trajectories` columns without waiting, or None when the queue is empty. For draining a closed queue."""
        with self._lock:
            if not self._trajectories:
                return None
            taken = self._take(min(trajectories, self._trajectories))
        return concatenate(taken)

    def mark_trained(self, env_steps: int) -> None:
        """Moves the taken batch's steps from waiting to trained."""
        with self._lock:
            self._in_training -= env_steps
            self._trained += env_steps

    def count_dropped(self, rule: str, env_steps: int) -> None:
        """Accounts for an unroll that was received and dropped without waiting."""
        with self._lock:
            self._received += env_steps
            self._dropped[rule] = self._dropped.get(rule, 0) + env_steps

    def close(self, *, run_over: bool) -> None:
        """Takes no more unrolls and sends everyone in line away.

        Args:
            run_over: also drops what has a place. Otherwise that stays, to be drained, and callers in line, who were never told
                that their unroll was taken, keep it: their steps count as never received.
        """
        with self._lock:
            self._closed = QueueClosed(run_over=run_over)
            for ticket in self._line:
                ticket.loop.call_soon_threadsafe(_fail, ticket.accepted, self._closed)
            line = sum(ticket.unroll.env_steps for ticket in self._line)
            self._line.clear()
            if run_over:
                rest = line + sum(unroll.env_steps for unroll in self._places)
                self._dropped["run_over"] = self._dropped.get("run_over", 0) + rest
                self._places.clear()
                self._trajectories = 0
            else:
                self._received -= line
            self._changed.notify_all()

    def account(self) -> StepAccount:
        """Returns where every step is, as of one instant."""
        with self._lock:
            in_queue = sum(unroll.env_steps for unroll in self._places)
            in_line = sum(ticket.unroll.env_steps for ticket in self._line)
            return StepAccount(
                received=self._received,
                trained=self._trained,
                dropped=dict(self._dropped),
                waiting=in_queue + in_line + self._in_training,
                queued_trajectories=self._trajectories,
            )

    def _give_place(self, unroll: Unroll[np.ndarray]) -> None:
        self._places.append(unroll)
        self._trajectories += unroll.environments
        self._changed.notify()

    def _leave(self, ticket: _Ticket) -> None:
        with self._lock:
            if ticket in self._line:  # else it was given a place in the meantime, or sent away
                self._line.remove(ticket)
                self._received -= ticket.unroll.env_steps

    def _take(self, trajectories: int) -> list[Unroll[np.ndarray]]:
        taken: list[Unroll[np.ndarray]] = []
        missing = trajectories
        while missing:
            unroll = self._places.popleft()
            if unroll.environments > missing:
                self._places.appendleft(unroll.columns(missing, unroll.environments))
                unroll = unroll.columns(0, missing)
            taken.append(unroll)
            missing -= unroll.environments
        self._trajectories -= trajectories
        self._in_training += sum(unroll.env_steps for unroll in taken)
        while self._line and self._trajectories < self._capacity:
            ticket = self._line.popleft()
            self._give_place(ticket.unroll)
            ticket.loop.call_soon_threadsafe(_accept, ticket.accepted)
        return taken


def _accept(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: QueueClosed) -> None:
    if not future.done():
        future.set_exception(error)
