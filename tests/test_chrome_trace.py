"""The trace file: what a viewer needs to draw an unroll's way, its stages and its arrows."""

import json
from collections import Counter
from typing import Any

import pytest

from impala.unroll_trace import ClockLimits
from learner_server.chrome_trace import chrome_trace
from learner_server.journeys import Batch, Journey
from tests.journeys import make_journey, make_trace


def drawn(*journeys: Journey, began: float = 149.0) -> dict[str, Any]:
    batches = [journey.batch for journey in journeys if journey.batch is not None]
    trace: dict[str, Any] = json.loads(
        json.dumps(chrome_trace(journeys, batches, began=began, about={"seconds": 2.0}), allow_nan=False)
    )
    return trace


def named(trace: dict[str, Any], phase: str, name: str) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == phase and event["name"] == name]


def row(trace: dict[str, Any], event: dict[str, Any]) -> tuple[str, str]:
    """Returns the names of the process and the thread that an event is drawn in."""
    pid, tid = event["pid"], event["tid"]
    (process,) = (each["args"]["name"] for each in named(trace, "M", "process_name") if each["pid"] == pid)
    (thread,) = (each["args"]["name"] for each in named(trace, "M", "thread_name") if (each["pid"], each["tid"]) == (pid, tid))
    return process, thread


def test_every_unroll_has_a_row_of_its_stages_under_its_age() -> None:
    trace = drawn(make_journey())
    rows = [event for event in trace["traceEvents"] if event["ph"] in "be"]
    assert {event["id2"]["local"] for event in rows} == {"a 3 1"}
    begins = {event["name"]: event["ts"] for event in rows if event["ph"] == "b"}
    ends = {event["name"]: event["ts"] for event in rows if event["ph"] == "e"}
    whole = begins.pop("unroll"), ends.pop("unroll")
    del begins["publishing"], ends["publishing"]
    assert sum(ends[name] - begins[name] for name in begins) == pytest.approx(whole[1] - whole[0], abs=0.01)
    (unroll,) = named(trace, "b", "unroll")
    assert unroll["args"]["age_seconds"] * 1e6 == pytest.approx(whole[1] - whole[0], abs=0.01)
    assert (unroll["args"]["version_that_acted"], unroll["args"]["version_that_came_of_it"]) == (5, 7)


def test_moments_are_microseconds_since_the_recording_began() -> None:
    # Its clock is 50.0005 s behind, for the fastest messages took 2 ms both ways.
    (collecting,) = named(drawn(make_journey()), "X", "collecting")
    assert (collecting["ts"], collecting["dur"]) == (pytest.approx(1e6 * (100.0 + 50.0 - 149.0)), pytest.approx(10_000))


def test_an_arrow_goes_from_the_actor_by_the_event_loop_to_the_gradient() -> None:
    trace = drawn(make_journey(), make_journey(sequence=2, at=101.0))
    arrows = [event for event in trace["traceEvents"] if event["ph"] in "stf"]
    assert Counter(event["id"] for event in arrows) == {1: 3, 2: 3}
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    touched = []
    for arrow in arrows[:3]:
        at = (arrow["pid"], arrow["tid"])
        within = [
            each for each in slices if (each["pid"], each["tid"]) == at and each["ts"] < arrow["ts"] < each["ts"] + each["dur"]
        ]
        innermost = min(within, key=lambda each: each["dur"])
        touched.append((*row(trace, arrow), innermost["name"]))
    assert touched == [
        ("actor a", "main", "environment"),
        ("learner", "grpc-loop", "decoding"),
        ("learner", "training", "backward"),
    ]


def test_steps_lie_within_their_collecting() -> None:
    trace = drawn(make_journey())
    (collecting,) = named(trace, "X", "collecting")
    parts = [(event["name"], round(event["ts"] - collecting["ts"]), round(event["dur"])) for event in trace["traceEvents"]
             if event["ph"] == "X" and event["name"] in ("inference", "environment")]  # fmt: skip
    assert parts == [("inference", 100, 2000), ("environment", 2100, 3000), ("inference", 5500, 1000), ("environment", 6500, 2500)]


def test_what_an_actor_did_between_two_unrolls_is_drawn_where_both_are_known() -> None:
    journeys = [make_journey(sequence=sequence, at=100.0 + sequence) for sequence in (1, 2, 4)]
    assert [round(event["dur"]) for event in named(drawn(*journeys), "X", "submitting")] == [978_000]
    journeys[1].trace = make_trace(102.0, waited=0.0)
    assert [event["dur"] for event in named(drawn(*journeys), "X", "submitting")] == [0.0]


def test_it_is_said_how_sure_an_actors_clock_is() -> None:
    trace = drawn(make_journey(), make_journey(actor_id="b", trained=False))
    assert trace["otherData"]["seconds"] == 2.0
    assert trace["otherData"]["clocks"]["b 3"] == {
        "learner_ahead_seconds": pytest.approx(50.0),
        "uncertainty_seconds": pytest.approx(0.001),
    }
    labels = [event["args"]["labels"] for event in named(trace, "M", "process_labels")]
    assert labels == ["clock sure to 1.000 ms"] * 2


def test_a_journey_that_has_not_ended_is_drawn_as_far_as_it_got_and_without_an_arrow() -> None:
    trace = drawn(make_journey(trained=False))
    (unroll,) = named(trace, "b", "unroll")
    assert unroll["args"]["age_seconds"] is None
    assert not [event for event in trace["traceEvents"] if event["ph"] in "stf"]


def test_an_unroll_that_began_before_the_recording_cannot_have_been_and_is_left_out() -> None:
    # An actor that makes up its clock, by centuries.
    lying = make_journey(actor_id="b", trace=make_trace(limits=ClockLimits(least=-1e10, most=50.0)))
    trace = drawn(make_journey(), lying)
    assert trace["otherData"]["unrolls_that_cannot_have_been"] == 1
    assert [event["args"]["unroll"] for event in named(trace, "b", "unroll")] == ["a 3 1"]
    assert min(event["ts"] for event in trace["traceEvents"] if "ts" in event) >= 0


def test_a_wait_that_began_before_the_recording_is_drawn_from_there() -> None:
    (waiting,) = named(drawn(make_journey(trace=make_trace(waited=-1e9))), "X", "waiting")
    assert waiting["ts"] == 0


def test_the_parts_of_a_learner_step_lie_within_it_and_what_a_batch_waits_in_no_row() -> None:
    trace = drawn(make_journey())
    (step,) = named(trace, "X", "learner step")
    assert step["args"] == {"version": 7, "unrolls": 1}
    for name in ("forward", "backward", "finishing the step"):
        (part,) = named(trace, "X", name)
        assert step["ts"] <= part["ts"]
        assert part["ts"] + part["dur"] <= step["ts"] + step["dur"] + 0.01
    assert not named(trace, "X", "waiting for the step")


def test_a_batch_that_was_not_trained_on_yet_has_no_step() -> None:
    trace = chrome_trace([], [Batch(taken=150.0, marks=[("batching", 150.1)])], began=149.0, about={})
    assert not named(trace, "X", "learner step")
    assert named(trace, "X", "batching")
