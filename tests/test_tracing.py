"""One unroll of a real run followed through its trace: from the environment to the gradient, without a gap."""

import json
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.programs import Programs, exit_code, last

pytestmark = pytest.mark.system

Event = dict[str, Any]
STAGES = [
    "collecting", "encoding", "waiting to be sent", "on the wire", "decoding", "in line for a place", "in the queue", "batching",
    "to the device", "waiting for the step", "forward", "V-trace and losses", "backward", "optimiser", "finishing the step",
]  # fmt: skip


class Recorded:
    """The trace of a run that has ended."""

    def __init__(self, path: Path) -> None:
        trace = json.loads(path.read_text())
        self.events: list[Event] = trace["traceEvents"]
        self.other: dict[str, Any] = trace["otherData"]
        self.slices = [event for event in self.events if event["ph"] == "X"]
        self.process = {event["pid"]: event["args"]["name"] for event in self.events if event["name"] == "process_name"}
        self.unrolls = {
            event["id2"]["local"]: event["args"] for event in self.events if event["ph"] == "b" and event["name"] == "unroll"
        }
        self.trained = {name: args for name, args in self.unrolls.items() if args["age_seconds"] is not None}

    def stages(self, unroll: str) -> list[tuple[str, float, float]]:
        """Returns an unroll's stages with their begin and end in microseconds, up to the gradient."""
        own = [event for event in self.events if event["ph"] in "be" and event["id2"]["local"] == unroll]
        ends = {event["name"]: event["ts"] for event in own if event["ph"] == "e"}
        begins = {event["name"]: event["ts"] for event in own if event["ph"] == "b"}
        return [(name, begin, ends[name]) for name, begin in begins.items() if name not in ("unroll", "publishing")]

    def around(self, event: Event) -> list[Event]:
        """Returns the slices that an event lies in, the outermost first."""
        row = event["pid"], event["tid"]
        found = [
            each
            for each in self.slices
            if (each["pid"], each["tid"]) == row and each["ts"] <= event["ts"] <= each["ts"] + each["dur"]
        ]
        return sorted(found, key=lambda each: -float(each["dur"]))


Run = tuple[Recorded, Programs, subprocess.Popen[bytes], Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run of two actors that is recorded from its first steps to its end, which its steps decide and no clock."""
    programs = Programs(tmp_path_factory.mktemp("traced"))
    path = programs.folder / "run"
    try:
        learner = programs.learner(path, "--actors", "2", "--total-steps", "25000", "--profile", "600")
        exit_code(learner)
        assert (path / "trace.json").exists(), programs.text(learner)
        yield Recorded(path / "trace.json"), programs, learner, path
    finally:
        programs.end()


def test_the_stages_of_every_unroll_leave_no_gap_and_add_up_to_its_age(run: Run) -> None:
    recorded = run[0]
    assert len(recorded.trained) > 10
    for name, args in recorded.trained.items():
        stages = recorded.stages(name)
        assert [stage for stage, _, _ in stages] == STAGES
        assert all(before[2] == after[1] for before, after in pairwise(stages))
        assert all(end >= begin for _, begin, end in stages)
        total = sum(end - begin for _, begin, end in stages)
        assert total == pytest.approx(args["age_seconds"] * 1e6, rel=0.05)
        assert total == pytest.approx(args["age_seconds"] * 1e6, abs=0.1)


def test_the_line_of_one_unroll_leads_from_its_actor_to_the_gradient_that_it_was_in(run: Run) -> None:
    recorded = run[0]
    arrows = [event for event in recorded.events if event["ph"] in "stf"]
    ids = sorted({event["id"] for event in arrows})
    assert len(ids) == len(recorded.trained)
    begin, through, end = (event for event in arrows if event["id"] == ids[len(ids) // 2])
    assert (begin["ph"], through["ph"], end["ph"]) == ("s", "t", "f")
    collecting, decoding = recorded.around(begin)[0], recorded.around(through)[0]
    step, backward = recorded.around(end)[:2]
    assert [each["name"] for each in (collecting, decoding, step, backward)] == [
        "collecting", "decoding", "learner step", "backward",
    ]  # fmt: skip
    actor = recorded.process[collecting["pid"]].removeprefix("actor ")
    (unroll,) = (
        args
        for name, args in recorded.trained.items()
        if name.startswith(f"{actor} ") and name.endswith(f" {collecting['args']['sequence']}")
    )
    assert decoding["args"]["sequence"] == collecting["args"]["sequence"]
    assert unroll["version_that_acted"] == collecting["args"]["version"]
    assert unroll["version_that_came_of_it"] == step["args"]["version"]


def test_both_actors_are_in_it_and_no_clock_is_further_off_than_it_is_said_to_be(run: Run) -> None:
    clocks = run[0].other["clocks"]
    assert sorted(name.split()[0] for name in clocks) == ["local-0", "local-1"]
    for clock in clocks.values():
        # Processes of one machine have one clock, which learner and actors are not told of.
        assert abs(clock["learner_ahead_seconds"]) <= clock["uncertainty_seconds"] + 1e-6
    assert run[0].other["unrolls_that_cannot_have_been"] == 0


def test_an_actor_is_drawn_step_by_step(run: Run) -> None:
    recorded = run[0]
    collected = [event for event in recorded.slices if event["name"] == "collecting"]
    for name in ("inference", "environment"):
        durations = [event["dur"] for event in recorded.slices if event["name"] == name]
        assert len(durations) == 20 * len(collected)
        assert sum(durations) > 0


def test_it_is_told_when_the_profile_begins_and_where_it_is(run: Run) -> None:
    _, programs, learner, path = run
    text = " ".join(programs.text(learner).split())
    assert "profile: records learner and actors for 600 s" in text
    assert "trace.json" in text
    assert last(path)["ended"] == "total_steps"
