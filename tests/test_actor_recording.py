"""What an actor notes of its unrolls: nothing until the learner's answers ask for it, and then by its own clock."""

from time import perf_counter

import pytest

from actor_client.client import LearnerClient, Redirect
from actor_client.recording import Recording
from impala.unroll_trace import UnrollTrace
from learner_server.recorder import Recorder
from tests.samples import make_unroll
from tests.service import Service, running_service, wait_until


class Sink:
    """Stands where spans go; keeps what it is given."""

    def __init__(self) -> None:
        self.traces: list[UnrollTrace] = []

    def export(self, journey: object) -> None:
        raise AssertionError(journey)


class FollowingRecorder(Recorder):
    """A recorder that is on, and keeps the traces that it is to follow."""

    def __init__(self) -> None:
        self.sink = Sink()
        super().__init__(spans=self.sink)  # type: ignore[arg-type]

    @property
    def wants_steps(self) -> bool:
        return True

    def follow(self, unroll: object, *, trace: UnrollTrace, **fields: object) -> None:
        self.sink.traces.append(trace)


def joined(service: Service, ahead_seconds: float) -> LearnerClient:
    """Returns an actor's client, whose clock is so far ahead of the learner's."""
    client = LearnerClient(service.address, actor_id="a", incarnation=1)
    client.recording = Recording(lambda: perf_counter() + ahead_seconds)
    assignment = client.join(3)
    assert not isinstance(assignment, Redirect)
    client.start(assignment)
    return client


def submit(client: LearnerClient) -> None:
    """Submits one unroll as an actor does."""
    assert client.next_parameters() is not None
    waited = client.recording.clock()
    draft = client.recording.begin(waited)
    if draft is not None:
        draft.collected = client.recording.clock()
    assert client.submit(make_unroll(), [], perf_counter(), draft=draft)


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_nothing_is_noted_while_no_answer_asks_for_it(max_in_flight: int) -> None:
    with running_service(max_in_flight=max_in_flight) as service:
        client = joined(service, 0.0)
        submit(client)
        assert client.recording.begin(0.0) is None
        client.close()


@pytest.mark.parametrize("ahead_seconds", [0.0, 5_000.0, -777.25])
@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_the_difference_of_the_clocks_is_between_the_limits_that_the_calls_set(ahead_seconds: float, max_in_flight: int) -> None:
    recorder = FollowingRecorder()
    with running_service(recorder=recorder, max_in_flight=max_in_flight, capacity=60) as service:
        client = joined(service, ahead_seconds)
        for _ in range(3):
            submit(client)
        # The weights' answer told of the recording before the first was begun.
        wait_until(lambda: len(recorder.sink.traces) == 3)
        client.close()
    for trace in recorder.sink.traces:
        assert trace.limits.least <= -ahead_seconds <= trace.limits.most
        assert trace.waited <= trace.began <= trace.collected <= trace.encoded <= trace.sent


def test_an_unroll_was_sent_when_its_call_was_made_and_not_when_its_message_was() -> None:
    recorder = FollowingRecorder()
    moments = iter(float(number) for number in range(1000))
    with running_service(recorder=recorder, max_in_flight=1) as service:
        client = joined(service, 0.0)
        client.recording.clock = lambda: next(moments)
        submit(client)
        (trace,) = recorder.sink.traces
        assert trace.sent > trace.encoded
        client.close()


def test_single_steps_are_noted_only_where_they_are_asked_for() -> None:
    recording = Recording(lambda: 1.0)
    for steps in (False, True):
        recording.note(sent=0.0, received=5.0, answered=5.0, came=0.5, steps=steps)
        draft = recording.begin(0.0)
        assert draft is not None
        assert (draft.moments is not None) == steps


def test_an_answer_that_says_nothing_of_a_recording_ends_it_and_with_it_what_was_known_of_the_clock() -> None:
    recording = Recording(lambda: 1.0)
    recording.note(sent=0.0, received=5.0, answered=5.0, came=0.5, steps=True)
    draft = recording.begin(0.0)
    assert draft is not None
    recording.end()
    assert recording.begin(0.0) is None
    assert recording.finish(draft) is None
    recording.note(sent=0.0, received=-5.0, answered=-5.0, came=0.5, steps=True)
    trace = recording.finish(draft)
    assert trace is not None
    assert (trace.limits.least, trace.limits.most) == (-5.5, -5.0)


def test_a_learner_whose_clock_is_none_is_not_believed() -> None:
    recording = Recording(lambda: 1.0)
    recording.note(sent=0.0, received=float("nan"), answered=5.0, came=0.5, steps=True)
    assert recording.begin(0.0) is None
