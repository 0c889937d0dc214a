"""Lockstep: whose answer is held back, for how long, and what the batches in between are made of."""

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from impala.errors import Mismatch
from learner_server.actor_registry import ActorRegistry
from learner_server.lockstep import Lockstep
from learner_server.unroll_queue import UnrollQueue
from protos import impala_pb2 as pb
from tests.samples import make_request, make_unroll
from tests.service import Service, running_service, wait_until

PATIENCE = 30.0  # seconds that a call may take on the busiest machine


async def held(lockstep: Lockstep, *indices: int) -> list[asyncio.Task[None]]:
    """Returns the calls of these actors, each of which has been answered or is held back."""
    calls = [asyncio.create_task(lockstep.hold(index)) for index in indices]
    await settle()
    return calls


async def settle() -> None:
    """Lets everything run that can run without anybody else's doing."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_an_answer_is_held_back_until_the_batch_that_the_unroll_is_in_was_trained_on() -> None:
    async def scenario() -> None:
        lockstep = Lockstep(2)
        for _ in range(3):
            lockstep.note_place(0)
            lockstep.note_place(1)
            calls = await held(lockstep, 0, 1)
            assert [call.done() for call in calls] == [False, False]
            lockstep.note_trained()
            await settle()
            assert [call.done() for call in calls] == [True, True]

    asyncio.run(scenario())


def test_an_unroll_behind_one_of_an_earlier_life_is_held_back_until_its_own_batch() -> None:
    async def scenario() -> None:
        lockstep = Lockstep(2)
        for index in (0, 0, 1):
            lockstep.note_place(index)
        calls = await held(lockstep, 0, 1)
        lockstep.note_trained()
        await settle()
        assert [call.done() for call in calls] == [False, True]
        lockstep.note_trained()
        await asyncio.gather(*calls)

    asyncio.run(scenario())


def test_whoever_has_sent_nothing_since_is_answered_at_once() -> None:
    async def scenario() -> None:
        lockstep = Lockstep(2)
        lockstep.note_place(1)
        calls = await held(lockstep, 0, 1)
        assert [call.done() for call in calls] == [True, False]
        calls[1].cancel()

    asyncio.run(scenario())


def test_when_nothing_more_is_trained_on_nobody_is_held_back() -> None:
    async def scenario() -> None:
        lockstep = Lockstep(1)
        lockstep.note_place(0)
        (before,) = await held(lockstep, 0)
        assert not before.done()
        lockstep.end()
        lockstep.note_place(0)
        (after,) = await held(lockstep, 0)
        assert (before.done(), after.done()) == (True, True)

    asyncio.run(scenario())


def test_a_caller_that_is_gone_is_in_nobodys_way() -> None:
    async def scenario() -> None:
        lockstep = Lockstep(1)
        lockstep.note_place(0)
        first, second = await held(lockstep, 0, 0)
        first.cancel()
        lockstep.note_trained()
        await second
        await settle()
        assert first.cancelled()

    failures: list[object] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        await scenario()

    asyncio.run(watched())
    assert failures == []


# --- over the wire


@pytest.fixture
def lockstep() -> Lockstep:
    return Lockstep(1)


@pytest.fixture
def service(lockstep: Lockstep) -> Iterator[Service]:
    with running_service(lockstep=lockstep) as running:
        yield running


def submit(service: Service, sequence: int = 1) -> "pb.SubmitTrajectoryResponse":
    return service.stub.SubmitTrajectory.future(
        make_request(make_unroll(version=service.store.version), digest=service.digest, sequence=sequence), timeout=PATIENCE
    )


def train(service: Service, lockstep: Lockstep) -> None:
    """Takes a batch of one unroll, and tells of it once its version is out."""
    assert service.queue.take_batch(3, PATIENCE) is not None
    service.queue.mark_trained()
    service.publish()
    lockstep.note_trained()


def test_the_answer_to_an_unroll_comes_after_its_update_and_names_the_version_that_came_of_it(
    service: Service, lockstep: Lockstep
) -> None:
    for sequence in (1, 2, 3):
        answer = submit(service, sequence)
        wait_until(lambda: len(lockstep._held) == 1)
        assert not answer.done()
        train(service, lockstep)
        assert (answer.result().accepted, answer.result().parameter_version) == (True, sequence + 1)


def test_a_retry_is_held_back_like_the_first_try(service: Service, lockstep: Lockstep) -> None:
    first = submit(service)
    wait_until(lambda: len(lockstep._held) == 1)
    first.cancel()
    retry = submit(service)
    wait_until(lambda: len(lockstep._held) == 2)
    assert not retry.done()
    train(service, lockstep)
    answer = retry.result()
    assert (answer.accepted, answer.duplicate, answer.parameter_version) == (True, True, 2)
    assert service.queue.account().queued_trajectories == 0


def test_the_end_of_the_run_lets_an_answer_go_whose_unroll_is_never_trained_on(service: Service, lockstep: Lockstep) -> None:
    answer = submit(service)
    wait_until(lambda: len(lockstep._held) == 1)
    service.queue.close(run_over=True)
    service.server.call(service.servicer.end_run)
    assert answer.result().accepted
    assert submit(service, 2).result().reason == pb.REASON_RUN_OVER


def test_an_actor_that_is_held_back_takes_part_however_long_it_lasts(service: Service, lockstep: Lockstep) -> None:
    answer = submit(service)
    wait_until(lambda: len(lockstep._held) == 1)
    assert [actor.waiting for actor in service.actors.snapshot()] == [1]
    train(service, lockstep)
    answer.result()
    assert [actor.waiting for actor in service.actors.snapshot()] == [0]


def test_an_actors_unrolls_go_into_its_own_lane() -> None:
    lockstep = Lockstep(2)
    with running_service(lockstep=lockstep, lanes=2) as service:
        service.join("second")
        request = make_request(make_unroll(), digest=service.digest, actor_id="second")
        call = service.stub.SubmitTrajectory.future(request, timeout=PATIENCE)
        wait_until(lambda: len(lockstep._held) == 1)
        assert [lane.trajectories for lane in service.queue._lanes] == [0, 3]
        service.server.call(service.servicer.end_run)
        # Kept until here, for gRPC cancels a call that nobody holds.
        call.result()


# --- who has which index


def test_only_the_runs_own_actors_take_part_each_with_the_index_of_its_name() -> None:
    registry = ActorRegistry(2, only=("a", "b", "c"))
    with pytest.raises(Mismatch, match=r"actor_id: expected one of this run's own 3 actors, .* came 'stranger'"):
        registry.join("stranger", 1, "host", 2)
    joined = [registry.join(name, 1, "host", 2) for name in ("c", "a", "b", "c")]
    assert [actor.index for actor in joined] == [2, 0, 1, 2]
    assert [actor.task for actor in joined] == [0, 0, 1, 0]


def test_an_actor_that_a_checkpoint_knows_under_another_index_has_the_index_of_its_name() -> None:
    before = ActorRegistry()
    for name in ("remote", "b", "a"):
        before.join(name, 1, "host", 2)
    registry = ActorRegistry(only=("a", "b"))
    registry.restore(before.to_json())
    assert [registry.join(name, 2, "host", 2).index for name in ("a", "b")] == [0, 1]


# --- what a batch is made of


def put(queue: UnrollQueue, *versions: tuple[int, int]) -> None:
    """Puts unrolls of two columns each, given as (index of the actor, version)."""
    for index, version in versions:
        asyncio.run(queue.put(make_unroll(environments=2, version=version), index))


def versions(queue: UnrollQueue) -> list[int] | None:
    batch = queue.take_batch(6, 0.0)
    return None if batch is None else np.asarray(batch.parameter_version).tolist()


def test_the_columns_of_a_batch_are_in_the_order_of_the_actors_however_they_come() -> None:
    queue = UnrollQueue(capacity=12, max_line=0, lanes=3)
    put(queue, (2, 30), (0, 10), (1, 20))
    assert versions(queue) == [10, 10, 20, 20, 30, 30]
    put(queue, (1, 21), (2, 31))
    assert versions(queue) is None
    put(queue, (0, 11))
    assert versions(queue) == [11, 11, 21, 21, 31, 31]


def test_a_batch_has_one_unroll_of_each_actor_though_one_has_sent_two() -> None:
    queue = UnrollQueue(capacity=12, max_line=0, lanes=3)
    put(queue, (0, 10), (0, 11), (1, 20))
    assert versions(queue) is None
    put(queue, (2, 30))
    assert versions(queue) == [10, 10, 20, 20, 30, 30]


def test_the_steps_of_all_lanes_of_a_task_are_that_tasks() -> None:
    queue = UnrollQueue(capacity=12, max_line=0, trained=[1000, 2000], lanes=4)
    put(queue, *((index, 1) for index in range(4)))
    assert queue.take_batch(8, 0.0) is not None
    queue.mark_trained()
    account = queue.account()
    assert (account.trained_by_task, account.trained) == ([1020, 2020], 3040)
