"""The unroll queue: order, places, the line before them, and where every step is."""

import asyncio
import json
import math
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from impala.unroll import Unroll, concatenate
from learner_server.unroll_queue import LineTooLong, QueueClosed, UnrollQueue
from tests.samples import make_unroll

STEPS = 5  # of one column without resets


def make_queue(*, capacity: int = 3, max_line: int = 100, tasks: int = 1) -> UnrollQueue:
    return UnrollQueue(capacity=capacity, max_line=max_line, trained=[0] * tasks)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    asyncio.run(main())


async def settle() -> None:
    """Lets everything run that can run without anybody else's doing."""
    for _ in range(10):
        await asyncio.sleep(0)


async def line_up(queue: UnrollQueue, *unrolls: Unroll[np.ndarray], task: int = 0) -> list[asyncio.Task[None]]:
    """Returns the callers that put these unrolls of a task, one after the other."""
    callers = []
    for unroll in unrolls:
        callers.append(asyncio.create_task(queue.put(unroll, task)))
        await settle()
    return callers


def narrow(version: int) -> Unroll[np.ndarray]:
    """Returns one column, recognised by its version."""
    return make_unroll(environments=1, version=version, seed=version)


def versions(batch: Unroll[np.ndarray] | None) -> list[int]:
    assert batch is not None
    return [int(version) for version in batch.parameter_version]


def assert_equal(batch: Unroll[np.ndarray] | None, expected: Unroll[np.ndarray]) -> None:
    assert batch is not None
    np.testing.assert_array_equal(batch.observations["observation"], expected.observations["observation"])
    for name in ("is_first", "actions", "rewards", "terminated", "behaviour_log_probs", "parameter_version"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name), err_msg=name)


def test_unrolls_leave_in_the_order_of_arrival() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=9)
        for version in (3, 1, 2, 7):
            await queue.put(narrow(version))
        assert versions(queue.take_batch(2, 0.0)) == [3, 1]
        assert versions(queue.take_batch(2, 0.0)) == [2, 7]

    run(scenario)


def test_put_waits_while_the_queue_is_full() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=2)
        await queue.put(narrow(1))
        await queue.put(narrow(2))
        (caller,) = await line_up(queue, narrow(3))
        assert not caller.done()
        assert queue.account().queued_trajectories == 2
        queue.take_batch(1, 0.0)
        await settle()
        assert caller.done()

    run(scenario)


def test_the_line_is_let_in_in_order_of_arrival() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=1)
        callers = await line_up(queue, *(narrow(version) for version in (1, 2, 3, 4)))
        order = []
        for let_in in range(1, 5):
            assert [caller.done() for caller in callers] == [index < let_in for index in range(4)]
            order += versions(queue.take_batch(1, 0.0))
            await settle()
        assert order == [1, 2, 3, 4]

    run(scenario)


def test_the_line_moves_up_as_far_as_there_is_room() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=3)
        callers = await line_up(queue, *(narrow(version) for version in range(1, 8)))
        queue.take_batch(2, 0.0)
        await settle()
        assert [caller.done() for caller in callers] == [True] * 5 + [False] * 2

    run(scenario)


def test_a_wide_unroll_is_let_in_whole_and_the_next_one_waits() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=3)
        await queue.put(narrow(1))
        wide, late = await line_up(queue, make_unroll(environments=8), narrow(9))
        assert (wide.done(), late.done()) == (True, False)
        assert queue.account().queued_trajectories == 9
        late.cancel()

    run(scenario)


def test_a_wide_unroll_is_split_and_its_rest_stays_at_the_head() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=9)
        wide = make_unroll(environments=5, version=4)
        await queue.put(wide)
        await queue.put(narrow(9))
        assert_equal(queue.take_batch(2, 0.0), wide.columns(0, 2))
        assert_equal(queue.take_batch(2, 0.0), wide.columns(2, 4))
        assert versions(queue.take_batch(2, 0.0)) == [4, 9]

    run(scenario)


@pytest.mark.parametrize("trajectories", [1, 2, 3, 7, 16])
def test_a_batch_has_exactly_the_trajectories_asked_for(trajectories: int) -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=1000)
        unrolls = [make_unroll(environments=width, seed=width, version=width) for width in (1, 5, 2, 8, 3, 3, 1, 7, 2)]
        for unroll in unrolls:
            await queue.put(unroll)
        batches = []
        while (batch := queue.take_batch(trajectories, 0.0)) is not None:
            assert batch.environments == trajectories
            batches.append(batch)
        whole = concatenate(unrolls)
        assert len(batches) == whole.environments // trajectories
        assert_equal(concatenate(batches), whole.columns(0, len(batches) * trajectories))

    run(scenario)


def test_a_batch_is_a_copy_that_may_be_written_to() -> None:
    async def scenario() -> None:
        queue = make_queue()
        unroll = make_unroll()
        await queue.put(unroll)
        batch = queue.take_batch(3, 0.0)
        assert batch is not None
        batch.rewards[:] = 99.0
        assert not (unroll.rewards == 99.0).any()

    run(scenario)


def test_taking_times_out_with_none_and_takes_nothing() -> None:
    async def scenario() -> None:
        queue = make_queue()
        await queue.put(make_unroll(environments=2))
        assert queue.take_batch(3, 0.01) is None
        assert queue.account().queued_trajectories == 2

    run(scenario)


@contextmanager
def waiting_trainer(queue: UnrollQueue, trajectories: int) -> Iterator[list[Unroll[np.ndarray] | None]]:
    """Waits for a batch in a thread; yields, once it waits, the list that gets what it takes."""
    taken: list[Unroll[np.ndarray] | None] = []
    waits = threading.Event()
    wait = queue._changed.wait

    def noted(timeout: float | None = None) -> bool:
        waits.set()  # the queue's lock is held, and let go of by waiting alone
        return wait(timeout)

    queue._changed.wait = noted  # type: ignore[method-assign]
    trainer = threading.Thread(target=lambda: taken.append(queue.take_batch(trajectories, 600.0)), name="trainer", daemon=True)
    trainer.start()
    assert waits.wait(30.0)
    yield taken
    trainer.join(30.0)


def test_taking_waits_for_the_unroll_that_completes_the_batch() -> None:
    queue = make_queue()
    with waiting_trainer(queue, 2) as taken:
        asyncio.run(queue.put(make_unroll(environments=2, version=7)))
    assert versions(taken[0]) == [7, 7]


def test_one_caller_too_many_is_told_at_once_and_counts_nowhere() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=1, max_line=2)
        callers = await line_up(queue, narrow(1), narrow(2), narrow(3))
        before = queue.account()
        with pytest.raises(LineTooLong, match="2 unrolls wait"):
            await queue.put(narrow(4))
        assert queue.account() == before
        assert [caller.done() for caller in callers] == [True, False, False]
        queue.close(run_over=True)
        await asyncio.gather(*callers, return_exceptions=True)

    run(scenario)


@pytest.mark.parametrize("run_over", [True, False])
def test_closing_sends_the_line_and_newcomers_away(run_over: bool) -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=1)
        _, *waiting = await line_up(queue, narrow(1), narrow(2), narrow(3))
        queue.close(run_over=run_over)
        answers = await asyncio.gather(*waiting, queue.put(narrow(4)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [QueueClosed] * 3
        assert {answer.run_over for answer in answers if isinstance(answer, QueueClosed)} == {run_over}

    run(scenario)


def test_the_end_of_the_run_drops_the_line_and_what_has_a_place() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=3)
        callers = await line_up(queue, make_unroll(environments=4), narrow(2))
        queue.take_batch(1, 0.0)
        queue.close(run_over=True)
        await asyncio.gather(*callers, return_exceptions=True)
        account = queue.account()
        assert account.dropped == {"run_over": 4 * STEPS}
        assert (account.received, account.waiting, account.queued_trajectories) == (5 * STEPS, 1 * STEPS, 0)
        assert queue.take_batch(1, 0.0) is None
        assert queue.take_rest(1) is None

    run(scenario)


def test_shutting_down_keeps_what_has_a_place_to_be_drained() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=3)
        callers = await line_up(queue, make_unroll(environments=5, version=7), narrow(8))
        queue.close(run_over=False)
        await asyncio.gather(*callers, return_exceptions=True)
        account = queue.account()
        assert (account.received, account.waiting, account.dropped) == (5 * STEPS, 5 * STEPS, {})
        assert versions(queue.take_rest(3)) == [7, 7, 7]
        assert versions(queue.take_rest(3)) == [7, 7]
        assert queue.take_rest(3) is None

    run(scenario)


def test_closing_wakes_a_waiting_trainer() -> None:
    queue = make_queue()
    with waiting_trainer(queue, 1) as taken:
        queue.close(run_over=True)
    assert taken == [None]


def test_a_taken_batch_counts_as_waiting_until_it_is_trained() -> None:
    async def scenario() -> None:
        queue = make_queue()
        await queue.put(make_unroll(environments=2))
        queue.take_batch(2, 0.0)
        before = queue.account()
        assert (before.waiting, before.trained, before.queued_trajectories) == (2 * STEPS, 0, 0)
        queue.mark_trained()
        after = queue.account()
        assert (after.waiting, after.trained, after.received) == (0, 2 * STEPS, 2 * STEPS)

    run(scenario)


def test_batches_are_marked_in_the_order_in_which_they_were_taken() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=9)
        await queue.put(make_unroll(environments=5))
        for trajectories in (2, 3):
            queue.take_batch(trajectories, 0.0)
        queue.mark_trained()
        assert (queue.account().trained, queue.account().waiting) == (2 * STEPS, 3 * STEPS)
        queue.drop_taken()
        assert (queue.account().trained, queue.account().dropped) == (2 * STEPS, {"run_over": 3 * STEPS})

    run(scenario)


def test_accounts_go_on_where_an_earlier_process_ended() -> None:
    async def scenario() -> None:
        queue = UnrollQueue(capacity=3, max_line=1, received=100, trained=[40, 20], dropped={"stale": 30, "restart": 10})
        await queue.put(narrow(1))
        queue.count_dropped("stale", 5)
        account = queue.account()
        assert (account.received, account.trained, account.waiting, account.trained_by_task) == (110, 60, 5, [40, 20])
        assert account.dropped == {"stale": 35, "restart": 10}

    run(scenario)


def test_a_hundred_callers_in_line_use_no_thread() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=1)
        threads = threading.active_count()
        callers = await line_up(queue, *(narrow(version) for version in range(1, 102)))
        assert sum(not caller.done() for caller in callers) == 100
        assert threading.active_count() <= threads
        for _ in callers:
            assert queue.take_batch(1, 0.0) is not None
        await asyncio.gather(*callers)

    run(scenario)


def test_a_cancelled_caller_leaves_the_line_and_its_unroll_was_never_received() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=1)
        _, cancelled, behind = await line_up(queue, narrow(1), narrow(2), narrow(3))
        cancelled.cancel()
        await settle()
        assert cancelled.cancelled()
        assert (queue.account().received, queue.account().waiting) == (2 * STEPS, 2 * STEPS)
        assert versions(queue.take_batch(1, 0.0)) == [1]
        await behind
        assert versions(queue.take_batch(1, 0.0)) == [3]

    run(scenario)


def test_a_caller_cancelled_after_its_unroll_got_a_place_changes_nothing() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=1)
        _, cancelled = await line_up(queue, narrow(1), narrow(2))
        queue.take_batch(1, 0.0)  # gives the second a place, and has not told it yet
        cancelled.cancel()
        await settle()
        account = queue.account()
        assert (account.received, account.waiting, account.queued_trajectories) == (2 * STEPS, 2 * STEPS, 1)
        assert versions(queue.take_batch(1, 0.0)) == [2]

    run(scenario)


# --- Tasks


def column(task: int, number: int) -> Unroll[np.ndarray]:
    """Returns one column, recognised by its version as a task's `number`th."""
    return narrow(1000 * task + number)


def tasks_of(batch: Unroll[np.ndarray] | None) -> list[int]:
    """Returns of which task each column is."""
    return [version // 1000 for version in versions(batch)]


@pytest.mark.parametrize(("tasks", "served"), [(2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 3]), (5, [0, 1, 2, 3, 4])])
@pytest.mark.parametrize("trajectories", [1, 2, 4, 7, 8])
def test_served_tasks_have_equal_shares_each_in_its_order_of_arrival(tasks: int, served: list[int], trajectories: int) -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=1000, tasks=tasks)
        for task in range(tasks):
            await line_up(queue, *(column(task, number) for number in range(1, 60)), task=task)
        queue.serve(served)
        taken: list[int] = []
        for _ in range(2 * len(served)):
            batch = queue.take_batch(trajectories, 0.0)
            for of_tasks in (tasks_of(batch), [version // 1000 for version in taken + versions(batch)]):
                counts = [of_tasks.count(task) for task in served]
                assert max(counts) - min(counts) <= 1
                assert sum(counts) == len(of_tasks)
            taken += versions(batch)
        # One batch more or less than a round is no matter: after whole rounds all are alike, and each task's came in order.
        for task in served:
            assert [version for version in taken if version // 1000 == task] == [
                1000 * task + number for number in range(1, 2 * trajectories + 1)
            ]

    run(scenario)


def test_a_fast_and_a_slow_task_are_trained_on_alike() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=4, tasks=2)
        callers = await line_up(queue, *(column(0, number) for number in range(1, 41)), task=0)
        for number in range(1, 21):
            assert queue.take_batch(2, 0.0) is None
            await queue.put(column(1, number), 1)
            assert sorted(tasks_of(queue.take_batch(2, 0.0))) == [0, 1]
            queue.mark_trained()
        account = queue.account()
        assert (account.trained_by_task, account.trained) == ([20 * STEPS, 20 * STEPS], 40 * STEPS)
        queue.close(run_over=True)
        await asyncio.gather(*callers, return_exceptions=True)

    run(scenario)


def test_only_served_tasks_are_waited_for() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=6, tasks=3)
        await line_up(queue, column(0, 1), column(0, 2), task=0)
        await queue.put(column(2, 1), 2)
        assert queue.take_batch(2, 0.0) is None
        queue.serve({0, 2})
        assert sorted(versions(queue.take_batch(2, 0.0))) == [1, 2001]
        queue.serve({2, 0, 1})
        assert queue.take_batch(1, 0.0) is None
        queue.serve({0})
        assert versions(queue.take_batch(1, 0.0)) == [2]

    run(scenario)


def test_serving_none_is_serving_all() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=4, tasks=2)
        queue.serve({1})
        queue.serve([])
        await line_up(queue, column(0, 1), column(0, 2), task=0)
        assert queue.take_batch(2, 0.0) is None
        await queue.put(column(1, 1), 1)
        assert sorted(tasks_of(queue.take_batch(2, 0.0))) == [0, 1]

    run(scenario)


def test_a_task_left_alone_gets_the_places_of_all_and_fills_whole_batches() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=6, tasks=3)
        callers = await line_up(queue, *(column(1, number) for number in range(1, 8)), task=1)
        assert [caller.done() for caller in callers] == [True] * 2 + [False] * 5
        assert queue.take_batch(6, 0.0) is None
        queue.serve({1})
        await settle()
        assert [caller.done() for caller in callers] == [True] * 6 + [False]
        assert versions(queue.take_batch(6, 0.0)) == [1001, 1002, 1003, 1004, 1005, 1006]
        await settle()
        assert callers[6].done()

    run(scenario)


def test_serving_fewer_tasks_wakes_a_waiting_trainer() -> None:
    queue = make_queue(capacity=4, tasks=2)
    asyncio.run(queue.put(make_unroll(environments=2, version=7)))
    with waiting_trainer(queue, 2) as taken:
        queue.serve({0})
    assert versions(taken[0]) == [7, 7]


def test_a_task_that_fills_its_places_takes_none_of_anothers() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=4, tasks=2)
        first = await line_up(queue, *(column(0, number) for number in (1, 2, 3)), task=0)
        second = await line_up(queue, *(column(1, number) for number in (1, 2, 3)), task=1)
        assert [caller.done() for caller in first + second] == [True, True, False] * 2
        queue.take_batch(2, 0.0)
        await settle()
        assert all(caller.done() for caller in first + second)

    run(scenario)


def test_the_line_is_as_long_for_all_tasks_together() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=2, max_line=2, tasks=2)
        callers = await line_up(queue, column(0, 1), column(0, 2), task=0) + await line_up(
            queue, column(1, 1), column(1, 2), task=1
        )
        assert [caller.done() for caller in callers] == [True, False] * 2
        for task in (0, 1):
            with pytest.raises(LineTooLong, match="2 unrolls wait"):
                await queue.put(column(task, 9), task)
        queue.close(run_over=True)
        await asyncio.gather(*callers, return_exceptions=True)

    run(scenario)


def test_a_closed_queue_is_drained_of_every_task() -> None:
    async def scenario() -> None:
        queue = make_queue(capacity=9, tasks=3)
        for task, count in enumerate((3, 0, 2)):
            await line_up(queue, *(column(task, number) for number in range(count)), task=task)
        queue.serve({1})
        queue.close(run_over=False)
        rest = []
        while (batch := queue.take_rest(2)) is not None:
            rest.append(batch)
            queue.mark_trained()
        assert [batch.environments for batch in rest] == [2, 2, 1]
        assert sorted(versions(concatenate(rest))) == [0, 1, 2, 2000, 2001]
        assert queue.account().trained_by_task == [3 * STEPS, 0, 2 * STEPS]

    run(scenario)


# --- Any operation


@dataclass
class Lane:
    """A task's columns, each as one number, its steps."""

    places: list[int] = field(default_factory=list)
    line: list[list[int]] = field(default_factory=list)
    # Batch by batch.
    training: list[list[int]] = field(default_factory=list)
    trained: int = 0


@dataclass
class Model:
    """The accounts by another road: columns are moved from list to list, and batches dealt out like cards to the served tasks."""

    capacity: int
    lanes: list[Lane]
    served: list[int]
    dealt: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def put(self, columns: list[int], task: int) -> None:
        self.lanes[task].line.append(columns)
        self.move_up(self.lanes[task])

    def move_up(self, lane: Lane) -> None:
        while lane.line and len(lane.places) < math.ceil(self.capacity / len(self.served)):
            lane.places += lane.line.pop(0)

    def serve(self, tasks: list[int]) -> None:
        self.served = tasks
        for lane in self.lanes:
            self.move_up(lane)

    def can_take(self, trajectories: int) -> bool:
        return all(len(self.lanes[task].places) >= share for task, share in self.deal(trajectories).items())

    def take(self, trajectories: int) -> None:
        self.start_batch()
        for task, share in self.deal(trajectories).items():
            self.remove(self.lanes[task], share)
        self.dealt += trajectories

    def take_rest(self, trajectories: int) -> None:
        self.start_batch()
        for lane in self.lanes:
            share = min(trajectories, len(lane.places))
            self.remove(lane, share)
            trajectories -= share

    def deal(self, trajectories: int) -> Counter[int]:
        return Counter(self.served[number % len(self.served)] for number in range(self.dealt, self.dealt + trajectories))

    def remove(self, lane: Lane, share: int) -> None:
        lane.training[-1] += lane.places[:share]
        del lane.places[:share]
        self.move_up(lane)

    def start_batch(self) -> None:
        for lane in self.lanes:
            lane.training.append([])

    @property
    def in_training(self) -> int:
        return len(self.lanes[0].training)

    def train(self) -> None:
        for lane in self.lanes:
            lane.trained += sum(lane.training.pop(0))

    def drop_taken(self) -> None:
        for lane in self.lanes:
            self.dropped["run_over"] += sum(map(sum, lane.training))
            lane.training.clear()

    def in_line(self, columns: list[int]) -> bool:
        return any(others is columns for lane in self.lanes for others in lane.line)

    def leave(self, columns: list[int]) -> None:
        for lane in self.lanes:
            lane.line = [others for others in lane.line if others is not columns]

    def close(self, *, run_over: bool) -> None:
        for lane in self.lanes:
            if run_over:
                self.dropped["run_over"] += sum(lane.places) + sum(map(sum, lane.line))
                lane.places.clear()
            lane.line.clear()

    @property
    def waiting(self) -> int:
        return sum(sum(lane.places) + sum(map(sum, lane.line)) + sum(map(sum, lane.training)) for lane in self.lanes)


def check(queue: UnrollQueue, model: Model) -> None:
    account = queue.account()
    assert account.received == account.trained + sum(account.dropped.values()) + account.waiting
    assert (account.waiting, account.trained) == (model.waiting, sum(account.trained_by_task))
    assert list(account.trained_by_task) == [lane.trained for lane in model.lanes]
    assert account.queued_trajectories == sum(len(lane.places) for lane in model.lanes)
    assert Counter(account.dropped) == model.dropped


def mark_half_and_drop_the_rest(queue: UnrollQueue, model: Model) -> None:
    for _ in range(model.in_training // 2):
        queue.mark_trained()
        model.train()
        check(queue, model)
    queue.drop_taken()
    model.drop_taken()
    check(queue, model)


@pytest.mark.parametrize("run_over", [True, False])
@pytest.mark.parametrize(("seed", "tasks"), [(0, 1), (1, 1), (2, 2), (3, 3), (4, 5)])
def test_every_step_is_accounted_for_after_any_operation(seed: int, tasks: int, run_over: bool) -> None:
    async def scenario() -> None:
        random = np.random.default_rng(seed)
        queue = make_queue(capacity=6, max_line=10_000, tasks=tasks)
        model = Model(capacity=6, lanes=[Lane() for _ in range(tasks)], served=list(range(tasks)))
        callers: list[tuple[asyncio.Task[None], list[int]]] = []
        for number in range(300):
            operation = random.choice(["put", "take", "train", "drop", "cancel", "serve"], p=[0.4, 0.25, 0.15, 0.05, 0.1, 0.05])
            if operation == "put":
                width, task = int(random.integers(1, 9)), int(random.integers(tasks))
                resets = tuple((int(random.integers(1, 6)), column) for column in range(width) if random.random() < 0.3)
                unroll = make_unroll(environments=width, seed=number, resets=resets)
                columns = [unroll.columns(index, index + 1).env_steps for index in range(width)]
                callers.append((asyncio.create_task(queue.put(unroll, task)), columns))
                await settle()
                model.put(columns, task)
            elif operation == "take":
                trajectories = int(random.integers(1, 8))
                batch = queue.take_batch(trajectories, 0.0)
                assert (batch is not None) == model.can_take(trajectories)
                if batch is not None:
                    model.take(trajectories)
            elif operation == "train":
                if model.in_training:
                    queue.mark_trained()
                    model.train()
            elif operation == "drop":
                queue.count_dropped("stale", number)
                model.dropped["stale"] += number
            elif operation == "serve":
                served = [task for task in range(tasks) if random.random() < 0.7]
                queue.serve(served)
                model.serve(served or list(range(tasks)))
            elif waiting := [(caller, columns) for caller, columns in callers if model.in_line(columns)]:
                caller, columns = waiting[int(random.integers(len(waiting)))]
                caller.cancel()
                await settle()
                model.leave(columns)
            check(queue, model)
        queue.close(run_over=run_over)
        model.close(run_over=run_over)
        check(queue, model)
        await asyncio.gather(*(caller for caller, _ in callers), return_exceptions=True)
        while queue.take_rest(4) is not None:
            model.take_rest(4)
            check(queue, model)
        mark_half_and_drop_the_rest(queue, model)
        assert queue.account().waiting == 0

    run(scenario)


# --- What is told of a place


def test_whoever_gives_a_place_says_so_at_once() -> None:
    queue, told = make_queue(capacity=1), list[str]()

    async def scenario() -> None:
        await queue.put(narrow(1), 0, lambda: told.append("first"))
        assert told == ["first"]
        caller = asyncio.create_task(queue.put(narrow(2), 0, lambda: told.append("second")))
        await settle()
        assert told == ["first"]
        queue.take_batch(1, 0.0)
        # Before the loop has a turn in which the caller could hear of it.
        assert told == ["first", "second"]
        assert not caller.done()
        await caller

    run(scenario)


def test_no_unroll_gets_a_place_between_the_account_and_what_is_read_with_it() -> None:
    queue = make_queue()
    asyncio.run(queue.put(narrow(1)))
    put = threading.Thread(target=lambda: asyncio.run(queue.put(narrow(2))))

    def read() -> bool:
        put.start()
        put.join(0.2)
        return put.is_alive()

    account, waits = queue.account_with(read)
    put.join()
    assert waits
    assert (account.received, queue.account().received) == (STEPS, 2 * STEPS)


def test_what_is_counted_for_good_is_kept_at_every_change_before_anybody_hears_of_it() -> None:
    kept: list[Mapping[str, Any]] = []

    def keep(counted: Mapping[str, Any]) -> None:
        kept.append(json.loads(json.dumps(counted)))

    queue = UnrollQueue(capacity=3, max_line=1, keep=keep)

    def agrees() -> bool:
        account = queue.account()
        mine = {"steps_received": account.received, "trained_by_task": account.trained_by_task, "dropped_by_rule": account.dropped}
        return kept[-1] == mine

    async def scenario() -> None:
        await queue.put(make_unroll())
        assert agrees()
        (waiting,) = await line_up(queue, make_unroll())
        assert agrees()
        with pytest.raises(LineTooLong):
            await queue.put(make_unroll())
        assert agrees()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert agrees()
        queue.count_dropped("stale", 7)
        assert agrees()
        queue.take_batch(3, 0.0)
        queue.mark_trained()
        assert agrees()
        await queue.put(make_unroll())
        queue.take_batch(3, 0.0)
        queue.drop_taken()
        assert agrees()
        await queue.put(make_unroll())
        queue.close(run_over=True)
        assert agrees()

    run(scenario)
    assert len(kept) == 9


def test_what_is_dropped_is_recorded_at_the_instant_when_it_is_counted() -> None:
    queue = make_queue()
    seen: list[bool] = []
    # Nobody can read the account in between.
    queue.count_dropped("stale", 5, lambda: seen.append(queue._lock.locked()))
    assert seen == [True]
    assert queue.account().dropped == {"stale": 5}
