"""--profile: recorded for so many seconds once training has begun, bounded, and written whatever becomes of the run."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from impala.errors import ConfigError
from learner_server.config import LearnerConfig
from learner_server.profile import Profile
from learner_server.run import _recorder
from run_directory.layout import RunDirectory
from tests.journeys import make_batch, make_journey


class Case:
    """A profile of 5 s, by a clock that the test sets."""

    def __init__(self, path: Path) -> None:
        self.now = 100.0
        self.path = path / "trace.json"
        self.profile = Profile(self.path, 5.0, lambda: self.now)

    def begin(self) -> "Case":
        for _ in range(10):
            self.profile.count_step()
        self.profile.tick()
        return self

    def end(self) -> dict[str, Any]:
        self.now += 5.0
        self.profile.tick()
        trace: dict[str, Any] = json.loads(self.path.read_text())
        return trace


@pytest.mark.parametrize("value", [0.0, -1.0, 601.0, float("nan"), float("inf")])
def test_a_profile_takes_more_than_no_time_and_no_more_than_ten_minutes(value: float) -> None:
    with pytest.raises(ConfigError, match=r"^profile: expected more than 0 and at most 600, came "):
        LearnerConfig(env=("A",), profile=value)
    assert LearnerConfig(env=("A",), profile=600.0).profile == 600.0


def test_it_begins_once_training_has_taken_its_first_steps(tmp_path: Path) -> None:
    profile = Case(tmp_path).profile
    for _ in range(9):
        profile.count_step()
        profile.tick()
    assert not profile.recording
    profile.count_step()
    profile.tick()
    assert profile.recording


def test_it_ends_and_is_written_after_its_seconds_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        case = Case(tmp_path).begin()
        case.profile.add_journey(make_journey())
        case.now += 4.9
        case.profile.tick()
        assert case.profile.recording
        assert not case.path.exists()
        case.end()
    assert not case.profile.recording
    assert [record.getMessage() for record in caplog.records] == [
        "profile: records learner and actors for 5 s",
        f"profile: 1 unrolls of 1 actors, 1 of them trained on: {case.path}",
    ]


def test_it_is_written_once(tmp_path: Path) -> None:
    case = Case(tmp_path).begin()
    case.end()
    case.path.unlink()
    case.profile.tick()
    case.profile.close()
    assert not case.path.exists()


def test_what_a_run_has_not_outlived_is_written_when_it_ends(tmp_path: Path) -> None:
    case = Case(tmp_path).begin()
    case.now += 1.0
    case.profile.close()
    assert json.loads(case.path.read_text())["otherData"]["seconds"] == 1.0


def test_a_run_that_ends_before_its_first_steps_says_that_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = Case(tmp_path)
    case.profile.close()
    assert [record.getMessage() for record in caplog.records] == [
        "profile: the run was over before its first 10 steps; there is none"
    ]
    assert not case.path.exists()


def test_a_disk_that_does_not_take_it_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = Case(tmp_path / "nowhere").begin()
    case.profile.close()
    assert "profile: cannot write to" in caplog.text


def test_there_is_room_for_so_many_and_the_others_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_MOST_UNROLLS", 3), ("_MOST_BATCHES", 2), ("_MOST_STEP_MICROS", 12)):
        monkeypatch.setattr(f"learner_server.profile.{name}", value)
    case = Case(tmp_path).begin()
    journeys = [make_journey(sequence=sequence, at=50.0 + sequence) for sequence in range(1, 6)]
    for journey in journeys:
        assert case.profile.wants_steps == (journey.sequence <= 2)
        case.profile.add_journey(journey)
    for _ in range(3):
        case.profile.add_batch(make_batch())
    trace = case.end()
    assert trace["otherData"]["left_out"] == {"unrolls": 2, "learner_steps": 1, "steps_of_unrolls": 1}
    events = [event["name"] for event in trace["traceEvents"] if event["ph"] == "X"]
    assert (events.count("collecting"), events.count("inference"), events.count("learner step")) == (3, 4, 2)


def test_nothing_is_recorded_but_where_it_was_asked_for_and_by_the_learner_that_keeps_the_run(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert _recorder(LearnerConfig(env=("A",)), directory, None) is None
    assert _recorder(LearnerConfig(env=("A",), profile=5.0), None, None) is None
    assert _recorder(LearnerConfig(env=("A",), profile=5.0), directory, None) is not None
