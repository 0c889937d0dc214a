"""Runs side by side: what they measured, and which of them differ in nothing but the seed."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from impala.config import EnvironmentConfig
from impala.errors import ConfigError
from run_directory.journal import each_metrics
from run_directory.layout import RunDirectory, leaves

# Of the record of a run's first start, what makes it another experiment: what is computed, by how many, how and how fast. The rest
# says where a run is kept, who may call and what is shown.
_CONDITIONS = (
    "actors", "compile", "compress", "deterministic", "device", "envs", "max_in_flight", "max_on_the_way", "max_policy_lag",
    "precision", "queue_batches", "settle_steps", "stop_at_return", "threads", "vectorization", "when_full",
)  # fmt: skip

_MOST_NAMED_DIFFERENCES = 3
_PREPROCESSING = "AtariPreprocessing"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The mean return of one task in one run, where there is one.

    Attributes:
        steps, seconds, returns: [N], in the order of the run, N at least 1; agent steps of all tasks together.
    """

    steps: np.ndarray
    seconds: np.ndarray
    returns: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run directory, read.

    Attributes:
        conditions: all that makes it the experiment it is, but for the seed, by path.
        tasks: None for a task without a mean return yet.
    """

    path: Path
    seed: int
    environments: tuple[EnvironmentConfig, ...]
    conditions: Mapping[str, Any]
    tasks: tuple[Samples | None, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that are drawn as one: a mean and an interval over them."""

    name: str
    runs: tuple[Run, ...]


def read_run(path: Path) -> Run:
    """Returns what a run directory holds.

    Raises:
        ConfigError: it is none, or has no mean return yet, or a file of it cannot be read; the message names the field.
    """
    directory = RunDirectory(path)
    config, environments = directory.read_config(), directory.agent_config().environments
    if type(config.get("seed")) is not int:
        raise ConfigError(f"seed: expected a number in {directory.config}, came {config.get('seed')!r}")
    record = config.pop("learner", {})
    # Records of before there were several learners do not say how many there were.
    conditions = {**config, **{name: record.get(name) for name in _CONDITIONS}, "learners": record.get("learners", 1)}
    del conditions["seed"]
    return Run(
        path=path,
        seed=config["seed"],
        environments=environments,
        conditions=dict(leaves(conditions)),
        tasks=_read_tasks(directory.metrics, len(environments)),
    )


def _read_tasks(metrics: Path, count: int) -> tuple[Samples | None, ...]:
    field = "mean_return_100" if count == 1 else "mean_return_100_by_task"
    try:
        rows = [_row(line, field, count, metrics) for line in each_metrics(metrics)]
    except OSError as error:
        raise ConfigError(f"metrics: cannot read {metrics}: {error.strerror}") from error
    if not rows:
        raise ConfigError(f"metrics: expected lines in {metrics}, came none; has the run begun?")
    tasks = tuple(_samples(rows, task) for task in range(count))
    if not any(tasks):
        raise ConfigError(f"{field}: expected a number in {metrics}, came none yet; it wants 100 finished episodes")
    return tasks


def _row(line: Mapping[str, Any], field: str, count: int, metrics: Path) -> tuple[float, float, Sequence[float | None]]:
    """Returns a line's steps, seconds, and returns by task."""
    for name in ("env_steps", "seconds", field):
        if name not in line:
            raise ConfigError(f"{name}: expected in each line of {metrics}, came one without")
        if not (name == field or type(line[name]) in (int, float)):
            raise ConfigError(f"{name}: expected a number in each line of {metrics}, came {json.dumps(line[name])[:80]}")
    returns = line[field] if count > 1 else [line[field]]
    if not isinstance(returns, list) or len(returns) != count or any(type(each) not in (int, float, NoneType) for each in returns):
        what = "a number or null" if count == 1 else f"a list of {count} of them"
        raise ConfigError(f"{field}: expected {what} in each line of {metrics}, came {json.dumps(line[field])[:80]}")
    return line["env_steps"], line["seconds"], returns


def _samples(rows: Iterable[tuple[float, float, Sequence[float | None]]], task: int) -> Samples | None:
    known = [(steps, seconds, returns[task]) for steps, seconds, returns in rows if returns[task] is not None]
    if not known:
        return None
    steps, seconds, returns = np.array(known, dtype=np.float64).T
    return Samples(steps=steps, seconds=seconds, returns=returns)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Returns the runs by what they are but for their seeds, in the order they came in, each group named by what sets it apart."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(json.dumps(run.conditions, sort_keys=True), []).append(run)
    groups = list(alike.values())
    return [Group(name=_name(members[0], [each[0] for each in groups]), runs=tuple(members)) for members in groups]


def _name(run: Run, others: Sequence[Run]) -> str:
    if len(others) == 1:
        return ", ".join(environment.environment_id for environment in run.environments)
    names = sorted(set().union(*(other.conditions for other in others)))
    apart = [name for name in names if any(other.conditions.get(name) != run.conditions.get(name) for other in others)]
    if len(apart) > _MOST_NAMED_DIFFERENCES:
        return str(run.path)
    return ", ".join(f"{name.rpartition('.')[2]} {_plain(run.conditions.get(name))}" for name in apart)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def check_comparable(runs: Sequence[Run]) -> None:
    """Raises ConfigError where runs are of different environments, whose returns say nothing about each other.

    That a lost life ends an episode for the learner is no difference: the return is the game's.
    """
    first = runs[0]
    for run in runs:
        there, here = _games(first), _games(run)
        if there != here:
            name = next(name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name))
            came = f"{there.get(name)!r} in {first.path} and {here.get(name)!r} in {run.path}"
            raise ConfigError(f"agent.{name}: expected the same in runs of one picture, came {came}")


def _games(run: Run) -> dict[str, Any]:
    games = {}
    for task, environment in enumerate(run.environments):
        values = {name: value for name, value in environment.to_json().items() if name != "life_loss_terminates"}
        games.update(dict(leaves(values, f"environments[{task}].")))
    return games


def frames_per_step(environment: EnvironmentConfig) -> int | None:
    """Returns how many emulator frames an agent step is, as far as the configuration says; None where it does not.

    Atari games repeat each action, 4 times unless told otherwise (`impala.environments`); of other environments nothing is known.
    """
    if not environment.environment_id.startswith("ALE/"):
        return None
    preprocessing = next((kwargs for name, kwargs in environment.wrappers if name == _PREPROCESSING), None)
    frames = environment.kwargs.get("frameskip", 4) if preprocessing is None else preprocessing.get("frame_skip", 4)
    return frames if type(frames) is int else None
