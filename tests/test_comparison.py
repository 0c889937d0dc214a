"""Runs side by side: what is read of them, which belong together, and what is said of those that cannot be drawn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from impala.config import EnvironmentConfig, LossConfig, OptimiserConfig
from impala.errors import ConfigError
from run_directory.comparison import Run, check_comparable, frames_per_step, group_runs, read_run
from tests.run_directories import ROWS, write_run

TWO = ("CartPole-v1", "Acrobot-v1")


def measured(run: Run) -> list[Any]:
    """Returns, for each task, the rows with a mean return."""
    return [
        None if task is None else list(zip(task.steps.tolist(), task.seconds.tolist(), task.returns.tolist(), strict=True))
        for task in run.tasks
    ]


def test_a_run_is_read_from_its_first_mean_return_on(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", seed=3))
    assert (run.seed, measured(run)) == (3, [[(100.0, 1.0, 10.0), (200.0, 3.0, 30.0)]])


def test_each_task_has_its_own_returns_and_one_may_have_none_yet(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", [(50, 1.0, [None, None]), (100, 2.0, [None, 5.0])], env=TWO))
    assert measured(run) == [None, [(100.0, 2.0, 5.0)]]


def test_runs_that_differ_in_nothing_but_the_seed_and_where_they_are_kept_are_one_group(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / str(seed), seed=seed, run_dir=tmp_path / str(seed), log_seconds=0.5 + 0.1 * seed))
        for seed in (0, 1)
    ]
    (group,) = group_runs(runs)
    assert (group.name, [run.seed for run in group.runs]) == ("CartPole-v1", [0, 1])


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ([{"loss": LossConfig(discount=0.9)}, {"loss": LossConfig(discount=0.99)}], ["discount 0.9", "discount 0.99"]),
        ([{"actors": 1}, {"actors": 2}], ["actors 1", "actors 2"]),
        (
            [{"optimiser": OptimiserConfig(optimiser="rmsprop")}, {"batch_size": 64}],
            ["batch_size 32, optimiser rmsprop", "batch_size 64, optimiser adam"],
        ),
    ],
)
def test_groups_are_named_by_what_sets_them_apart(settings: list[dict[str, Any]], names: list[str], tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / str(place), **each)) for place, each in enumerate(settings)]
    assert [group.name for group in group_runs(runs)] == names


def test_runs_of_several_learners_are_another_group_than_those_of_one(tmp_path: Path) -> None:
    one, two, old = (write_run(tmp_path / name) for name in ("one", "two", "old"))
    for run, learners in ((one, {"learners": 1}), (two, {"learners": 2}), (old, {})):
        config = json.loads((run / "config.json").read_text())
        config["learner"].update(learners)
        (run / "config.json").write_text(json.dumps(config))
    groups = group_runs([read_run(run) for run in (one, two, old)])
    assert [(group.name, [run.path for run in group.runs]) for group in groups] == [
        ("learners 1", [one, old]),
        ("learners 2", [two]),
    ]


def test_groups_that_differ_in_much_are_named_by_a_run(tmp_path: Path) -> None:
    other = {"batch_size": 8, "unroll_length": 5, "replay_fraction": 0.5, "inject_lag": 1}
    runs = [read_run(write_run(tmp_path / "a")), read_run(write_run(tmp_path / "b", **other))]
    assert [group.name for group in group_runs(runs)] == [str(tmp_path / "a"), str(tmp_path / "b")]


def change(name: str, value: Any) -> Callable[[Path], None]:
    """Returns what gives a field of the last line of metrics another value, or takes it away."""

    def apply(run: Path) -> None:
        *lines, last = (run / "metrics.jsonl").read_text().splitlines()
        figures = {key: each for key, each in json.loads(last).items() if key != name}
        figures.update({} if value is None else {name: value})
        (run / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(figures)]))

    return apply


def make_a_folder(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "config.json").unlink(), "run_dir: {run} is not a run directory"),
        (lambda run: (run / "config.json").write_text("{"), "run_dir: {run}/config.json is not JSON"),
        (make_a_folder, "metrics: cannot read {run}/metrics.jsonl: Is a directory"),
        (lambda run: (run / "metrics.jsonl").unlink(), "metrics: expected lines in {run}/metrics.jsonl, came none"),
        (lambda run: (run / "metrics.jsonl").write_text("torn"), "metrics: expected lines in {run}/metrics.jsonl, came none"),
        (
            lambda run: (run / "metrics.jsonl").write_text('{"env_steps": 0, "seconds": 0, "mean_return_100": null}\n'),
            "mean_return_100: expected a number in {run}/metrics.jsonl, came none yet",
        ),
        (change("seconds", None), "seconds: expected in each line of {run}/metrics.jsonl, came one without"),
        (change("env_steps", "many"), 'env_steps: expected a number in each line of {run}/metrics.jsonl, came "many"'),
        (
            change("mean_return_100", [1]),
            "mean_return_100: expected a number or null in each line of {run}/metrics.jsonl, came [1]",
        ),
    ],
)
def test_a_run_that_cannot_be_drawn_is_refused_by_the_field(damage: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    damage(run)
    with pytest.raises(ConfigError) as refused:
        read_run(run)
    assert str(refused.value).startswith(said.format(run=run))


@pytest.mark.parametrize("returns", [[1.0], 1.0, [1.0, "a"]])
def test_returns_of_other_tasks_than_the_runs_are_refused(returns: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [(1, 1.0, [1.0, 2.0])], env=TWO)
    change("mean_return_100_by_task", returns)(run)
    with pytest.raises(ConfigError, match="mean_return_100_by_task: expected a list of 2"):
        read_run(run)


def test_a_configuration_without_its_seed_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "config.json").write_text((run / "config.json").read_text().replace('"seed": 0', '"seed": null'))
    with pytest.raises(ConfigError, match="seed: expected a number"):
        read_run(run)


def test_different_environments_are_not_compared(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, env=(f"{name}-v1",))) for name in ("CartPole", "Acrobot")]
    with pytest.raises(
        ConfigError, match=r"agent.environments\[0\].environment_id: expected the same .* 'CartPole-v1' in .*/CartPole"
    ):
        check_comparable(runs)


def test_a_life_lost_makes_no_other_game(tmp_path: Path) -> None:
    check_comparable([read_run(write_run(tmp_path / str(lost), ROWS, life_loss_terminates=lost)) for lost in (True, False)])


@pytest.mark.parametrize(
    ("environment", "frames"),
    [
        (EnvironmentConfig(environment_id="ALE/Pong-v5"), 4),
        (EnvironmentConfig(environment_id="ALE/Pong-v5", kwargs={"frameskip": 2}), 2),
        (EnvironmentConfig(environment_id="ALE/Pong-v5", kwargs={"frameskip": [2, 5]}), None),
        (EnvironmentConfig(environment_id="ALE/Pong-v5", wrappers=(("AtariPreprocessing", {"frame_skip": 3}),)), 3),
        (EnvironmentConfig(environment_id="CartPole-v1", kwargs={"frameskip": 2}), None),
    ],
)
def test_frames_of_a_step_are_said_where_the_configuration_says_them(environment: EnvironmentConfig, frames: int | None) -> None:
    assert frames_per_step(environment) == frames
