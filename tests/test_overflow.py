"""A queue that drops its oldest unrolls rather than to have anyone wait: who leaves, what is counted, and what stays answered."""

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from impala.unroll import idle_unroll
from impala.wire import decode_assignment
from learner_server.unroll_queue import QueueClosed, StepAccount, UnrollQueue
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc
from tests.programs import ENDLESS, Programs, accounts_balance, last
from tests.samples import make_request, make_unroll
from tests.service import running_service
from tests.test_unroll_queue import narrow, versions

STEPS = 5  # of one column without resets
PATIENCE = 30.0


def make_queue(capacity: int, *, tasks: int = 1) -> UnrollQueue:
    return UnrollQueue(capacity=capacity, max_line=0, when_full="drop-oldest", trained=[0] * tasks)


def put(queue: UnrollQueue, *unrolls: tuple[int, int], task: int = 0) -> None:
    """Puts unrolls of so many columns and such versions, one after the other; nobody waits, for there is no line."""
    for width, version in unrolls:
        asyncio.run(queue.put(make_unroll(environments=width, version=version), task))


def balance(account: StepAccount) -> int:
    return account.received - account.trained - sum(account.dropped.values()) - account.waiting


def rest(queue: UnrollQueue) -> list[int]:
    """Returns the versions of all columns that have a place."""
    return versions(queue.take_rest(1000))


def test_the_oldest_unroll_leaves_for_one_that_comes_to_a_full_queue() -> None:
    queue = make_queue(2)
    put(queue, (1, 1), (1, 2), (1, 3), (1, 4))
    assert queue.account().dropped == {"overflow": 2 * STEPS}
    assert rest(queue) == [3, 4]


def test_nothing_is_dropped_while_there_is_a_place() -> None:
    queue = make_queue(3)
    put(queue, (1, 1), (1, 2), (1, 3))
    assert queue.account().dropped == {}
    assert rest(queue) == [1, 2, 3]


def test_every_step_is_accounted_for_while_unrolls_are_dropped() -> None:
    queue = make_queue(4)
    for version, width in enumerate([1, 3, 2, 5, 1, 1, 8, 2, 1, 4] * 5):
        put(queue, (width, version))
        if version % 3 == 0:
            queue.take_batch(2, 0.0)
        assert balance(queue.account()) == 0
    assert queue.account().dropped["overflow"] > 0


def test_what_training_has_taken_is_never_dropped() -> None:
    queue = make_queue(2)
    put(queue, (1, 1), (1, 2))
    assert versions(queue.take_batch(2, 0.0)) == [1, 2]
    put(queue, (1, 3), (1, 4), (1, 5))
    account = queue.account()
    assert (account.dropped, account.waiting) == ({"overflow": STEPS}, 4 * STEPS)
    queue.mark_trained()
    assert queue.account().trained == 2 * STEPS
    assert rest(queue) == [4, 5]


def test_an_unroll_that_was_taken_in_part_counts_for_what_is_left() -> None:
    queue = make_queue(4)
    # Column 2 has a reset row, so that its steps are told from the others'.
    asyncio.run(queue.put(make_unroll(environments=3, version=1, resets=((2, 2),))))
    put(queue, (3, 2))
    queue.take_batch(2, 0.0)
    put(queue, (3, 3))
    assert queue.account().dropped == {"overflow": STEPS - 1}
    assert balance(queue.account()) == 0
    assert rest(queue) == [2, 2, 2, 3, 3, 3]


def test_several_leave_where_the_queue_is_full_without_them() -> None:
    queue = make_queue(3)
    put(queue, (1, 1), (1, 2), (8, 3), (1, 4))
    assert queue.account().dropped == {"overflow": 2 * STEPS}
    assert rest(queue) == [3] * 8 + [4]


def test_a_batch_that_was_there_for_training_is_not_dropped_to_less_than_one() -> None:
    queue = make_queue(4)
    put(queue, (4, 1), (1, 2))
    assert queue.account().dropped == {}, "without the wide one there would be one column where there were four"
    put(queue, (1, 3), (1, 4))
    assert queue.account().queued_trajectories == 7
    put(queue, (1, 5))
    assert queue.account().dropped == {"overflow": 4 * STEPS}
    assert rest(queue) == [2, 3, 4, 5]


def test_no_more_have_a_place_than_where_actors_wait() -> None:
    capacity, widest = 6, 8
    queue = make_queue(capacity)
    for version, width in enumerate([8, 1, 1, 7, 3, 8, 8, 2, 5, 1, 1, 1, 1, 1, 8, 4] * 4):
        put(queue, (width, version))
        assert queue.account().queued_trajectories < capacity + widest


def test_a_task_drops_its_own_unrolls_and_no_others() -> None:
    queue = make_queue(4, tasks=2)
    put(queue, (1, 1), (1, 2), task=0)
    put(queue, (1, 11), (1, 12), (1, 13), task=1)
    assert queue.account().dropped == {"overflow": STEPS}
    assert rest(queue) == [1, 2, 12, 13]


def test_a_closed_queue_drops_nothing_for_a_newcomer() -> None:
    queue = make_queue(1)
    put(queue, (1, 1))
    queue.close(run_over=False)
    with pytest.raises(QueueClosed):
        put(queue, (1, 2))
    assert queue.account().dropped == {}
    assert rest(queue) == [1]


def test_ten_unrolls_into_a_queue_of_two_are_answered_at_once_and_every_step_is_accounted_for() -> None:
    with running_service(capacity=2, max_line=0, when_full="drop-oldest") as service:
        requests = [make_request(narrow(1), digest=service.digest, sequence=sequence) for sequence in range(1, 11)]
        answers = [service.stub.SubmitTrajectory(request, timeout=PATIENCE) for request in requests]
        assert [(answer.accepted, answer.duplicate) for answer in answers] == [(True, False)] * 10
        account = service.queue.account()
        assert (account.received, account.trained, account.waiting) == (10 * STEPS, 0, 2 * STEPS)
        assert account.dropped == {"overflow": 8 * STEPS}


def test_an_accepted_unroll_that_was_dropped_stays_accepted() -> None:
    with running_service(capacity=1, max_line=0, when_full="drop-oldest") as service:
        requests = [make_request(narrow(1), digest=service.digest, sequence=sequence) for sequence in (1, 2)]
        for request in requests:
            service.stub.SubmitTrajectory(request, timeout=PATIENCE)
        retry: pb.SubmitTrajectoryResponse = service.stub.SubmitTrajectory(requests[0], timeout=PATIENCE)
        assert (retry.accepted, retry.duplicate, retry.reason) == (True, True, pb.REASON_UNSPECIFIED)
        assert service.queue.account().received == 2 * STEPS


@pytest.mark.system
def test_a_learner_is_told_on_its_command_line_to_drop_the_oldest(programs: Programs, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # Batches wait for the second task, whose actor sends nothing, so that the first one's unrolls stay where they are.
    flags = ["--env", "CartPole-v1", "CartPole-v1", "--unroll-length", "5", "--batch-size", "2", "--queue-batches", "1"]
    learner = programs.start("learner_server", "--run-dir", str(run_dir), *flags, "--when-full", "drop-oldest", *ENDLESS)
    with grpc.insecure_channel(programs.address(learner)) as channel:
        stub = pb_grpc.LearnerStub(channel)
        busy, _ = (
            stub.Join(pb.JoinRequest(protocol_version=1, actor_id=name, incarnation=1), timeout=PATIENCE)
            for name in ("busy", "silent")
        )
        idle = idle_unroll(decode_assignment(busy).unroll_spec)
        unroll = replace(idle, is_first=np.zeros_like(idle.is_first), parameter_version=np.ones(1, np.int64))
        for sequence in (1, 2, 3):
            request = make_request(unroll, digest=busy.spec_digest, sequence=sequence, actor_id="busy")
            assert stub.SubmitTrajectory(request, timeout=PATIENCE).accepted
    programs.wait_until(lambda: last(run_dir).get("dropped_by_rule") == {"overflow": 2 * STEPS}, learner)
    assert accounts_balance(run_dir)
