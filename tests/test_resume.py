"""Where a run goes on: nothing that was once shown or published goes back, and every step stays accounted for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from impala.errors import CheckpointError
from learner_server.resume import VERSIONS_BETWEEN_LINES, StartingPoint, find_starting_point
from run_directory.checkpoint import Checkpoint, save_checkpoint
from run_directory.counters import CounterFile
from run_directory.layout import RunDirectory

# What a checkpoint keeps of a run of two tasks that has received 130 steps, trained on 100, dropped 10 and holds 20.
STATE: dict[str, Any] = {
    "run_id": "run",
    "env_steps": 100,
    "learner_updates": 10,
    "skipped_updates": 1,
    "steps_received": 130,
    "dropped_by_rule": {"stale": 10},
    "steps_lost": 0,
    "trained_by_task": [70, 30],
    "episodes_by_task": [5, 2],
    "recent_returns": [[1.0, 2.0], []],
    "seconds": 3.5,
    "actors": {},
}
SHOWN = {name: value for name, value in STATE.items() if name not in ("run_id", "recent_returns", "actors")}
COUNTERS = ("learner_updates", "skipped_updates", "steps_received", "trained_by_task", "seconds")
TASKS = 2


def checkpoint_at(run: RunDirectory, version: int, **state: Any) -> None:
    checkpoint = Checkpoint(
        version=version, parameters={"weight": torch.ones(1)}, optimiser={}, random={}, state={**STATE, **state}
    )
    save_checkpoint(run.checkpoints, checkpoint, keep=3)


def line_at(run: RunDirectory, version: int, **figures: Any) -> None:
    with run.metrics.open("a") as file:
        file.write(json.dumps({**SHOWN, "parameter_version": version, **figures}) + "\n")


def waiting(start: StartingPoint) -> int:
    return start.steps_received - start.steps_trained - sum(start.steps_dropped.values())


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


# --- New


def test_a_new_run_starts_at_version_1_with_nothing_counted(run: RunDirectory) -> None:
    start = find_starting_point(run, 3)
    assert (start.checkpoint, start.version, start.steps_received, start.steps_trained, start.steps_lost) == (None, 1, 0, 0, 0)
    assert (start.learner_updates, start.seconds, start.steps_dropped) == (0, 0.0, {})
    assert (start.trained_by_task, start.episodes) == ([0, 0, 0], [0, 0, 0])
    assert [list(returns) for returns in start.recent_returns] == [[], [], []]


def test_every_new_run_has_an_id_of_its_own(run: RunDirectory) -> None:
    assert find_starting_point(run, TASKS).run_id != find_starting_point(run, TASKS).run_id


# --- Ended in good order


def test_a_clean_end_keeps_version_and_counters_exactly(run: RunDirectory) -> None:
    checkpoint_at(run, 11, steps_received=110)
    line_at(run, 11, steps_received=110, ended="stopped")
    start = find_starting_point(run, TASKS)
    assert (start.version, start.steps_trained, start.steps_received, start.steps_dropped) == (11, 100, 110, {"stale": 10})
    assert (start.learner_updates, start.skipped_updates, start.seconds) == (10, 1, 3.5)
    assert (start.trained_by_task, start.episodes, start.recent_returns) == ([70, 30], [5, 2], [[1.0, 2.0], []])
    assert (start.run_id, start.steps_lost) == ("run", 0)


def test_the_weights_are_those_of_the_checkpoint(run: RunDirectory) -> None:
    checkpoint_at(run, 11)
    checkpoint = find_starting_point(run, TASKS).checkpoint
    assert checkpoint is not None
    assert (checkpoint.version, checkpoint.parameters["weight"].tolist()) == (11, [1.0])


def test_a_clean_end_whose_last_checkpoint_is_lost_is_no_clean_end(run: RunDirectory) -> None:
    checkpoint_at(run, 11)
    line_at(run, 20, env_steps=150, steps_received=180, ended="stopped")
    assert find_starting_point(run, TASKS).version == 20 + VERSIONS_BETWEEN_LINES


def test_a_line_of_an_earlier_clean_end_does_not_count_once_the_run_went_on(run: RunDirectory) -> None:
    line_at(run, 11, ended="stopped")
    checkpoint_at(run, 11)
    line_at(run, 12, env_steps=110, steps_received=140)
    assert find_starting_point(run, TASKS).version == 12 + VERSIONS_BETWEEN_LINES


# --- Killed


@pytest.mark.parametrize("shown_version", [11, 900])
def test_after_a_kill_the_version_is_one_that_was_never_published(run: RunDirectory, shown_version: int) -> None:
    checkpoint_at(run, 11)
    line_at(run, shown_version, env_steps=150, steps_received=180)
    last_possible = shown_version + VERSIONS_BETWEEN_LINES - 1
    assert find_starting_point(run, TASKS).version == last_possible + 1


def test_a_checkpoint_beyond_the_last_line_counts_for_the_version(run: RunDirectory) -> None:
    line_at(run, 11)
    checkpoint_at(run, 500, env_steps=150, steps_received=180)
    assert find_starting_point(run, TASKS).version == 500 + VERSIONS_BETWEEN_LINES


def test_without_any_line_the_checkpoint_counts(run: RunDirectory) -> None:
    checkpoint_at(run, 11)
    start = find_starting_point(run, TASKS)
    assert (start.version, start.steps_trained) == (11 + VERSIONS_BETWEEN_LINES, 100)


def test_a_run_killed_between_its_first_checkpoint_and_its_first_line_goes_on(run: RunDirectory) -> None:
    checkpoint_at(run, 1, env_steps=0, steps_received=0, dropped_by_rule={}, learner_updates=0)
    start = find_starting_point(run, TASKS)
    assert (start.version, start.steps_trained, start.learner_updates) == (1 + VERSIONS_BETWEEN_LINES, 0, 0)


def test_a_torn_last_line_is_passed_over(run: RunDirectory) -> None:
    checkpoint_at(run, 11)
    line_at(run, 20, env_steps=150, steps_received=180)
    with run.metrics.open("a") as file:
        file.write('{"env_steps": 160, "parameter_ver')
    start = find_starting_point(run, TASKS)
    assert (start.version, start.steps_trained) == (20 + VERSIONS_BETWEEN_LINES, 150)


FURTHER = {"learner_updates": 15, "skipped_updates": 2, "steps_received": 200, "trained_by_task": [110, 40], "seconds": 7.0}


def test_metrics_further_on_than_the_checkpoint_decide_the_counters(run: RunDirectory) -> None:
    checkpoint_at(run, 11, episodes_by_task=[6, 2])  # an episode more than in the last line
    line_at(run, 16, env_steps=150, dropped_by_rule={"stale": 12}, episodes_by_task=[5, 9], **FURTHER)
    start = find_starting_point(run, TASKS)
    assert {name: getattr(start, name) for name in COUNTERS} == FURTHER
    assert (start.steps_trained, start.steps_dropped["stale"]) == (150, 12)
    assert start.episodes == [6, 9]


def test_a_checkpoint_further_on_than_the_metrics_decides_the_counters(run: RunDirectory) -> None:
    line_at(run, 11)
    checkpoint_at(run, 16, env_steps=150, dropped_by_rule={"stale": 12}, episodes_by_task=[6, 9], **FURTHER)
    start = find_starting_point(run, TASKS)
    assert {name: getattr(start, name) for name in COUNTERS} == FURTHER
    assert (start.steps_trained, start.steps_dropped["stale"]) == (150, 12)
    assert start.episodes == [6, 9]


def test_a_checkpoint_with_more_received_or_dropped_decides_where_no_more_was_trained(run: RunDirectory) -> None:
    line_at(run, 11)
    checkpoint_at(run, 11, steps_received=150)
    start = find_starting_point(run, TASKS)
    assert (start.steps_trained, start.steps_received) == (100, 150), "the checkpoint's ledgers know of them"
    line_at(run, 11, steps_received=150, dropped_by_rule={"stale": 10, "overflow": 30})
    assert find_starting_point(run, TASKS).steps_dropped == {"stale": 10, "overflow": 30, "restart": 10}


def test_what_was_counted_after_the_last_line_counts(run: RunDirectory) -> None:
    checkpoint_at(run, 11)
    line_at(run, 11)
    counted = {"steps_received": 170, "trained_by_task": [110, 20], "dropped_by_rule": {"stale": 10, "overflow": 5}}
    CounterFile(run.counters).write(counted)
    start = find_starting_point(run, TASKS)
    assert (start.steps_received, start.steps_trained, start.trained_by_task) == (170, 130, [110, 20])
    assert start.steps_dropped == {"stale": 10, "overflow": 5, "restart": 25}
    assert start.steps_lost == 30
    assert start.learner_updates == 10, "as of the last line, which knows"


def test_what_was_counted_before_the_last_line_does_not(run: RunDirectory) -> None:
    CounterFile(run.counters).write({"steps_received": 99, "trained_by_task": [50, 20], "dropped_by_rule": {"stale": 10}})
    checkpoint_at(run, 11)
    line_at(run, 11)
    assert find_starting_point(run, TASKS).steps_received == 130


def test_what_was_counted_of_other_tasks_does_not(run: RunDirectory) -> None:
    checkpoint_at(run, 11)
    CounterFile(run.counters).write({"steps_received": 999, "trained_by_task": [900], "dropped_by_rule": {}})
    assert find_starting_point(run, TASKS).steps_received == 130


def test_callers_that_left_the_line_are_not_received_though_a_line_said_so(run: RunDirectory) -> None:
    checkpoint_at(run, 11)
    line_at(run, 11)
    CounterFile(run.counters).write({"steps_received": 115, "trained_by_task": [60, 40], "dropped_by_rule": {"stale": 10}})
    assert find_starting_point(run, TASKS).steps_received == 115


def test_steps_trained_after_the_checkpoint_are_lost_and_said_to_be(run: RunDirectory) -> None:
    checkpoint_at(run, 11, steps_lost=7)
    line_at(run, 16, env_steps=150, steps_received=180)
    assert find_starting_point(run, TASKS).steps_lost == 7 + 50


def test_no_steps_are_lost_where_the_checkpoint_is_the_newest(run: RunDirectory) -> None:
    line_at(run, 11)
    checkpoint_at(run, 16, env_steps=150, steps_received=180, steps_lost=7)
    assert find_starting_point(run, TASKS).steps_lost == 7


@pytest.mark.parametrize("metrics_further", [True, False])
def test_steps_that_waited_are_dropped_by_the_restart_and_the_account_balances(run: RunDirectory, metrics_further: bool) -> None:
    checkpoint_at(run, 11)
    if metrics_further:
        line_at(run, 16, env_steps=150, steps_received=190, dropped_by_rule={"stale": 10, "restart": 4})
    start = find_starting_point(run, TASKS)
    assert waiting(start) == 0
    assert start.steps_dropped == ({"stale": 10, "restart": 4 + 26} if metrics_further else {"stale": 10, "restart": 20})


def test_where_nothing_waited_nothing_is_dropped(run: RunDirectory) -> None:
    checkpoint_at(run, 11, steps_received=110)
    assert find_starting_point(run, TASKS).steps_dropped == {"stale": 10}


def test_nothing_goes_back_over_a_chain_of_kills(run: RunDirectory) -> None:
    checkpoint_at(run, 1, env_steps=0, steps_received=0, dropped_by_rule={}, learner_updates=0, skipped_updates=0)
    before = find_starting_point(run, TASKS)
    for trained in (40, 10, 70):
        version, steps, received = before.version + 5, before.steps_trained + trained, before.steps_received + trained + 30
        state = {"dropped_by_rule": dict(before.steps_dropped), "steps_lost": before.steps_lost, "learner_updates": version}
        checkpoint_at(run, before.version, **{**state, "env_steps": before.steps_trained, "steps_received": before.steps_received})
        line_at(run, version, env_steps=steps, steps_received=received, **state)
        start = find_starting_point(run, TASKS)
        assert start.version > version
        assert (start.steps_trained, start.steps_received, waiting(start)) == (steps, received, 0)
        assert start.steps_lost == before.steps_lost + trained
        before = start


def test_a_run_whose_checkpoints_are_all_broken_is_not_begun_anew(run: RunDirectory) -> None:
    checkpoint_at(run, 11)
    (run.checkpoints / "version-000000000011" / "state.json").unlink()
    with pytest.raises(CheckpointError):
        find_starting_point(run, TASKS)


def test_a_run_whose_checkpoints_all_failed_begins_anew_without_going_back(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    line = {"parameter_version": 40, "env_steps": 900, "learner_updates": 39, "skipped_updates": 1, "steps_received": 1000}
    by_task = {"trained_by_task": [500, 400], "episodes_by_task": [3, 4]}
    directory.metrics.write_text(json.dumps({**line, **by_task, "dropped_by_rule": {"stale": 60}, "seconds": 3.0}) + "\n")
    start = find_starting_point(directory, TASKS)
    assert start.checkpoint is None
    assert start.version > 40 + VERSIONS_BETWEEN_LINES - 1
    assert (start.steps_trained, start.steps_lost, start.learner_updates) == (900, 900, 39)
    assert (start.trained_by_task, start.episodes) == ([500, 400], [3, 4])
    assert start.steps_received == start.steps_trained + sum(start.steps_dropped.values())
