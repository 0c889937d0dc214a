"""Queue, retries, counters and restarts against a model: any sequence of events leaves every unroll where the model says it is.

The parts are the real ones (`tests.played`), on an event loop that the test turns: the servicer is called as gRPC would, training
takes its steps one by one, checkpoints and metrics lie on disk, and a process that is killed is forgotten with all its tasks.

MODEL_SEQUENCES and MODEL_SEED run more of it, or others: `make model-test`.
"""

import asyncio
import logging
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from hypothesis.strategies import booleans, integers, sampled_from

from impala.wire import encode_unroll
from learner_server.config import LearnerConfig
from learner_server.rounds import End
from protos import impala_pb2 as pb
from run_directory.journal import read_last_metrics
from tests.accounting import Collected, Model
from tests.played import LENGTH, Aborted, Context, NoEvents, Process, marks_of
from tests.samples import make_unroll

SEQUENCES = int(os.environ.get("MODEL_SEQUENCES", "200"))
SEED = int(os.environ.get("MODEL_SEED", "1"))
EVENTS = 40  # of a sequence
OUTCOMES = {
    (True, False, pb.REASON_UNSPECIFIED): "accepted",
    (True, True, pb.REASON_UNSPECIFIED): "duplicate",
    (False, False, pb.REASON_STALE): "stale",
    (False, True, pb.REASON_STALE): "stale again",
    (False, False, pb.REASON_RUN_OVER): "over",
}


@dataclass
class Call:
    """A submission under way: its unroll, its task, and how it must have ended by now; None if it waits."""

    unroll: Collected
    task: asyncio.Task[pb.SubmitTrajectoryResponse]
    ends: str | None


class Accounting(RuleBasedStateMachine):
    """Events of a run, each told to the real parts and to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.path = Path(tempfile.mkdtemp(prefix="accounting-"))
        self.collected: list[tuple[Collected, pb.SubmitTrajectoryRequest]] = []
        self.incarnations: Counter[str] = Counter()
        self.sequences: Counter[tuple[str, int]] = Counter()
        self.calls: list[Call] = []
        self.marks = 0

    @initialize(
        tasks=integers(1, 2),
        batch=integers(2, 4),
        queue_batches=integers(1, 2),
        max_line=integers(0, 4),
        max_lag=sampled_from([1, 1_000_000]),
        when_full=sampled_from(["wait", "wait", "drop-oldest"]),
        overlaps=booleans(),
    )
    def begin(
        self, *, tasks: int, batch: int, queue_batches: int, max_line: int, max_lag: int, when_full: Any, overlaps: bool
    ) -> None:
        self.config = LearnerConfig(
            env=("A", "B")[:tasks],
            unroll_length=LENGTH,
            batch_size=batch,
            queue_batches=queue_batches,
            max_policy_lag=max_lag,
            when_full=when_full,
            keep_checkpoints=2,
        )
        self.max_line, self.overlaps = max_line, overlaps
        self.model = Model(
            tasks=tasks,
            batch=batch,
            capacity=queue_batches * batch,
            max_line=max_line,
            max_lag=max_lag,
            drops_oldest=when_full == "drop-oldest",
        )
        self.start_process()
        for actor in "ab":
            self.join(actor, anew=True)

    def start_process(self) -> None:
        self.process = Process(self.config, self.path, max_line=self.max_line, overlaps=self.overlaps)

    def teardown(self) -> None:
        try:
            if hasattr(self, "process"):
                self.end_process()
        finally:
            self.loop.close()
            shutil.rmtree(self.path)

    # --- Actors

    @rule(actor=sampled_from("abc"), anew=booleans())
    def join(self, actor: str, *, anew: bool) -> None:
        """A process of the actor joins: a new one, or the latest again."""
        if anew or not self.incarnations[actor]:
            self.incarnations[actor] += 1
        request = pb.JoinRequest(protocol_version=1, actor_id=actor, incarnation=self.incarnations[actor])
        response = self.loop.run_until_complete(self.process.servicer.Join(request, Context()))
        self.model.join(actor, self.incarnations[actor], response.task)

    @rule(index=integers(0, 10**6))
    def join_of_an_old_process(self, index: int) -> None:
        """A process of an actor joins that may have been replaced, which a learner that was killed since need not know."""
        if not self.collected:
            return
        unroll, _ = self.collected[index % len(self.collected)]
        request = pb.JoinRequest(protocol_version=1, actor_id=unroll.actor, incarnation=unroll.incarnation)
        call = self.process.servicer.Join(request, Context())
        if self.model.may_join(unroll.actor, unroll.incarnation):
            self.model.join(unroll.actor, unroll.incarnation, self.loop.run_until_complete(call).task)
        else:
            with pytest.raises(Aborted, match="FAILED_PRECONDITION"):
                self.loop.run_until_complete(call)

    @rule(actor=sampled_from("ab"), width=integers(1, 3), lag=integers(0, 2), reset=booleans(), gap=sampled_from([0, 0, 0, 1, -1]))
    def submit(self, actor: str, width: int, lag: int, reset: bool, gap: int) -> None:
        """An actor sends an unroll: the next, or, because they overtake each other, the one after that or an earlier one."""
        self.send(*self.collect(actor, width, lag, reset, gap))

    def collect(self, actor: str, width: int, lag: int, reset: bool, gap: int) -> tuple[Collected, pb.SubmitTrajectoryRequest]:
        life = actor, self.incarnations[actor]
        sequence = max(1, self.sequences[life] + 1 + gap)
        for unroll, request in self.collected:
            if unroll.name == (*life, sequence):
                return unroll, request
        self.sequences[life] = max(sequence, self.sequences[life])
        marks = list(range(self.marks + 1, self.marks + 1 + width))
        self.marks += width
        version = max(1, self.model.served - lag)
        rewards = np.zeros((LENGTH, width), np.float32)
        rewards[0] = marks
        unroll = make_unroll(length=LENGTH, environments=width, version=version, rewards=rewards, resets=((1, 0),) if reset else ())
        steps = {mark: unroll.columns(column, column + 1).env_steps for column, mark in enumerate(marks)}
        request = pb.SubmitTrajectoryRequest(
            actor_id=actor, incarnation=life[1], sequence=sequence, spec_digest="digest", unroll=encode_unroll(unroll)
        )
        self.model.steps.update(steps)
        self.collected.append((Collected(*life, sequence, version, steps), request))
        return self.collected[-1]

    @rule(back=integers(0, 8))
    def retry(self, back: int) -> None:
        """An unroll comes again: its answer was lost, or its caller gave up, or it is late from a process that was replaced."""
        if self.collected:
            self.send(*self.collected[-1 - back % len(self.collected)])

    def send(self, unroll: Collected, request: pb.SubmitTrajectoryRequest) -> None:
        task = self.loop.create_task(self.process.servicer.SubmitTrajectory(request, Context()))
        self.calls.append(Call(unroll, task, self.model.submit(unroll)))
        self.turn()

    @rule(index=integers(0, 10**6))
    def cancel(self, index: int) -> None:
        """A caller in line gives up; its unroll keeps its place there."""
        if self.calls:
            call = self.calls[index % len(self.calls)]
            call.task.cancel()
            call.ends = "cancelled"
            self.turn()

    # --- Training

    @precondition(lambda self: not self.process.begun and not self.model.over)
    @rule(killed=sampled_from([False, False, False, True]))
    def begin_training(self, killed: bool) -> None:
        """The loop begins with a checkpoint and a line; a kill may come between the two."""
        self.save()
        if killed:
            self.kill()
        else:
            self.show()
            self.process.begun = True

    @precondition(lambda self: self.process.begun)
    @rule(skipped=sampled_from([False, False, False, True]))
    def train(self, skipped: bool) -> None:
        """A round of the loop: a batch is taken, if there is one, and trained on."""
        if self.process.fetched is None:
            self.process.training._fetch(0.0)
            self.expect_fetched(self.model.take())
        if self.process.fetched is not None:
            self.step(skipped=skipped)

    @precondition(lambda self: self.process.begun)
    @rule()
    def fetch(self) -> None:
        """A batch is taken, and waits for its step."""
        if self.process.fetched is None:
            self.process.training._fetch(0.0)
            self.expect_fetched(self.model.take())

    def step(self, *, skipped: bool, overlaps: bool = True) -> None:
        training = self.process.training
        self.process.learner.skips_next = skipped
        training._train(training._fetched_steps, 1.0)
        following = self.model.take() if self.overlaps and overlaps else None
        self.model.train(skipped=skipped)
        self.expect_fetched(following)

    def expect_fetched(self, marks: list[int] | None) -> None:
        assert self.process.fetched == marks
        self.turn()

    @precondition(lambda self: self.process.begun)
    @rule()
    def show(self) -> None:
        self.process.training._log()
        self.model.show()
        self.look_at_the_last_line()

    def look_at_the_last_line(self) -> None:
        line, counters = read_last_metrics(self.process.directory.metrics), self.model.counters
        assert line is not None
        assert (line["steps_received"], line["trained_by_task"]) == (counters.received, counters.trained)
        assert line["steps_received"] == line["steps_trained"] + line["steps_dropped"] + line["steps_waiting"]
        assert (line["parameter_version"], line["learner_updates"]) == (self.model.version, counters.updates)

    @precondition(lambda self: self.process.begun)
    @rule()
    def save(self) -> None:
        self.process.training.save()
        self.model.save()

    # --- Ends

    @rule()
    def kill(self) -> None:
        """SIGKILL: what is on disk is all that is left."""
        self.end_process()
        self.restart()

    @precondition(lambda self: self.process.begun)
    @rule(width=integers(1, 3))
    def kill_twice(self, width: int) -> None:
        """SIGKILL, and again when the next process has saved what came first, and shown nothing."""
        self.kill()
        self.join("a", anew=False)
        self.submit("a", width, 0, False, 0)
        self.save()
        self.kill()

    @precondition(lambda self: self.process.begun)
    @rule()
    def fail(self) -> None:
        """The run fails for a reason that is none of its weights': they are saved, and no more is said."""
        self.process.training.save_or_raise()
        self.model.save()
        self.kill()

    @precondition(lambda self: self.process.begun)
    @rule(skipped=booleans(), late=booleans())
    def stop(self, skipped: bool, late: bool) -> None:
        """SIGTERM: those in line are sent away, what has a place is trained on, and everything is saved."""
        self.process.queue.close(run_over=False)
        self.model.close(run_over=False)
        self.turn()
        if late:
            self.submit("a", 1, 0, False, 0)
        self.process.learner.skips_next = skipped
        self.process.training.drain()
        while self.model.waiting:
            if not self.model.lanes[0].training:
                self.model.take_rest()
            self.model.train(skipped=skipped)
            skipped = False
        self.process.learner.skips_next = False
        self.finish(End.STOPPED)
        assert self.model.waiting == 0
        self.end_process()
        self.restart()

    @precondition(lambda self: self.process.begun)
    @rule(late=booleans())
    def end_run(self, late: bool) -> None:
        """The run is over: all that waits is dropped, and everybody who calls from now on is told."""
        self.process.queue.close(run_over=True)
        self.model.close(run_over=True)
        if late:
            self.submit("a", 1, 0, False, 0)
        self.process.servicer.end_run()
        self.model.over = True
        self.turn()
        self.model.drop_taken()
        self.finish(End.TOTAL_STEPS)
        self.process.begun = False

    def finish(self, end: End) -> None:
        self.process.training.finish(end)
        self.model.renew_version()
        self.model.show(ended=True)
        self.model.save()
        self.look_at_the_last_line()

    def end_process(self) -> None:
        self.process.writer.close()
        # What is taken apart from here on a killed process has no time for.
        self.process.counters.close()

        async def cancel(tasks: set[asyncio.Task[Any]]) -> None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.loop.run_until_complete(cancel(asyncio.all_tasks(self.loop)))
        assert not asyncio.all_tasks(self.loop)
        assert not any(lane.line for lane in self.process.queue._lanes), "nobody is in line whose call is gone"
        self.calls.clear()

    def restart(self) -> None:
        """Another process of the run begins."""
        self.start_process()
        self.model.start()
        account, counters = self.process.queue.account(), self.model.counters
        assert (account.received, account.trained_by_task) == (counters.received, counters.trained), "no step is forgotten"

    # --- What holds at any moment

    def turn(self) -> None:
        """Lets the event loop do all that it can do, and sees every call end as it must and none before."""

        async def settle() -> None:
            for _ in range(12):
                await asyncio.sleep(0)

        self.loop.run_until_complete(settle())
        ended, self.model.answers = self.model.answers, []
        for unroll, ends in ended:
            for call in self.calls:
                if call.unroll is unroll and call.ends is None:
                    call.ends = ends
        assert [outcome(call.task) for call in self.calls] == [call.ends for call in self.calls]
        self.calls = [call for call in self.calls if call.ends is None]

    @invariant()
    def every_step_is_where_the_model_says(self) -> None:
        account, model = self.process.queue.account(), self.model
        assert account.received == account.trained + sum(account.dropped.values()) + account.waiting
        assert (account.received, account.waiting) == (model.counters.received, model.waiting)
        assert list(account.trained_by_task) == model.counters.trained
        assert Counter(account.dropped) == model.counters.dropped

    @invariant()
    def every_unroll_is_where_the_model_says(self) -> None:
        for real, lane in zip(self.process.queue._lanes, self.model.lanes, strict=True):
            assert [marks_of(unroll) for unroll in real.places] == lane.places
            assert [marks_of(ticket.unroll) for ticket in real.line] == [list(unroll.steps) for unroll in lane.line]
            assert [sum(self.model.steps[mark] for mark in marks) for marks in lane.training] == list(real.in_training)
            assert real.trajectories == lane.columns

    @invariant()
    def the_weights_have_learnt_from_no_column_twice(self) -> None:
        learnt = self.process.learner.learnt
        assert learnt == self.model.learnt
        assert len(learnt) == len(set(learnt))
        assert self.process.learner.version == self.model.version
        assert self.process.store.version == self.model.served

    @invariant()
    def the_ledgers_know_every_answer(self) -> None:
        real = {actor.actor_id: actor for actor in self.process.actors.snapshot()}
        assert real.keys() == self.model.actors.keys()
        for name, known in self.model.actors.items():
            actor = real[name]
            assert (actor.incarnation, actor.task, actor.env_steps) == (known.incarnation, known.task, known.accepted_steps)
            asked = range(1, self.sequences[name, known.incarnation] + 2)
            assert {each: actor.ledger.answer(each) for each in asked} == {each: known.answers.get(each) for each in asked}

    @invariant()
    def nothing_is_left_behind(self) -> None:
        in_line = self.model.in_line()
        assert set(self.process.servicer._entering) == {unroll.name for unroll in in_line}
        assert len(asyncio.all_tasks(self.loop)) == len(self.calls) + len(in_line)
        waiting = {actor.actor_id: actor.waiting for actor in self.process.actors.snapshot() if actor.waiting}
        assert waiting == Counter(unroll.actor for unroll in in_line)


def outcome(task: asyncio.Task[pb.SubmitTrajectoryResponse]) -> str | None:
    """Returns how a call ended; None while it goes on."""
    if not task.done():
        return None
    if task.cancelled():
        return "cancelled"
    if task.exception() is not None:
        return str(task.exception())
    answer = task.result()
    return OUTCOMES[answer.accepted, answer.duplicate, answer.reason]


@pytest.mark.timeout(3600)  # of `make model-test`; by default it takes seconds
def test_after_any_events_every_unroll_is_where_the_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", NoEvents)
    monkeypatch.setattr(logging.getLogger("learner_server.training"), "disabled", True)
    monkeypatch.setattr(logging.getLogger("learner_server.servicer"), "disabled", True)
    monkeypatch.setattr(
        os, "fsync", lambda _: None
    )  # a killed process leaves its pages to the system; thousands of syncs take minutes
    run_state_machine_as_test(
        seed(SEED)(Accounting),
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=EVENTS,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(hypothesis.HealthCheck),
            report_multiple_bugs=False,
        ),
    )
