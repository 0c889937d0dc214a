"""What a run measures and writes: means of an interval, rates, `metrics.jsonl` and TensorBoard events."""

import json
import math
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from impala.losses import ImpalaLoss
from impala.unroll import ActorTimes
from learner_server.learner import StepReport
from learner_server.metrics import ActorTimeShares, IntervalStatistics, MetricsWriter, Rate, actor_shares
from run_directory.journal import read_metrics

LOSS_FIELDS = [field.name for field in fields(ImpalaLoss) if field.name not in {"vs", "valid", "log_ratios"}]


def make_report(value: float, **replaced: Any) -> StepReport:
    """Returns a report whose loss fields are value, value + 1, ... in their order."""
    loss = {name: torch.tensor(value + index, requires_grad=name == "total") for index, name in enumerate(LOSS_FIELDS)}
    loss.update(vs=torch.zeros(3, 2), valid=torch.ones(3, 2, dtype=torch.bool), log_ratios=torch.zeros(3, 2))
    loss.update({name: torch.tensor(replaced.pop(name)) for name in list(replaced) if name in loss})
    lags = np.array([0, 4], dtype=np.int64)
    report: dict[str, Any] = {"grad_norm": value, "learning_rate": 0.1, "policy_lags": lags, "skipped": False, "parameters": {}}
    return StepReport(loss=ImpalaLoss(**loss), **{**report, **replaced})


# --- Means over an interval


def test_the_figures_of_an_interval_are_means_over_its_steps() -> None:
    interval = IntervalStatistics()
    interval.add_step(make_report(1.0))
    interval.add_step(make_report(3.0))
    figures = interval.take()
    assert {name: figures[name] for name in LOSS_FIELDS} == {name: 2.0 + index for index, name in enumerate(LOSS_FIELDS)}
    assert figures["grad_norm"] == 2.0


def test_policy_lag_is_over_trajectories_and_not_over_steps() -> None:
    interval = IntervalStatistics()
    interval.add_step(make_report(1.0, policy_lags=np.array([0, 0, 0])))
    interval.add_step(make_report(1.0, policy_lags=np.array([8])))
    figures = interval.take()
    assert (figures["policy_lag_mean"], figures["policy_lag_max"], figures["replayed_lag_mean"]) == (2.0, 8, None)


def test_the_lag_of_replayed_trajectories_is_a_figure_of_its_own() -> None:
    interval = IntervalStatistics()
    # As long as nothing has come before, nothing is replayed.
    interval.add_step(make_report(1.0, policy_lags=np.array([5])), fresh=1)
    interval.add_step(make_report(1.0, policy_lags=np.array([1, 300])), fresh=1)
    interval.add_step(make_report(1.0, policy_lags=np.array([0, 500])), fresh=1)
    figures = interval.take()
    assert (figures["policy_lag_mean"], figures["policy_lag_max"], figures["replayed_lag_mean"]) == (2.0, 5, 400.0)


def test_the_learning_rate_is_the_last_one_used() -> None:
    interval = IntervalStatistics()
    interval.add_step(make_report(1.0, learning_rate=0.2))
    interval.add_step(make_report(1.0, learning_rate=0.1))
    assert interval.take()["learning_rate"] == 0.1


def test_a_figure_that_some_steps_do_not_have_is_the_mean_over_the_others() -> None:
    interval = IntervalStatistics()
    interval.add_step(make_report(1.0, log_rho_abs_lag_0=math.nan))
    interval.add_step(make_report(1.0, log_rho_abs_lag_0=0.5))
    assert interval.take()["log_rho_abs_lag_0"] == 0.5


def test_an_interval_without_steps_has_the_same_figures_without_values() -> None:
    interval = IntervalStatistics()
    empty = interval.take()
    interval.add_step(make_report(1.0))
    assert empty.keys() == interval.take().keys()
    shares = {"learner_wait_fraction", "learner_starved_fraction", "ingest_fraction"}
    assert {name for name, value in empty.items() if value is not None} == shares


def test_taking_the_figures_starts_the_next_interval() -> None:
    interval = IntervalStatistics()
    interval.add_step(make_report(1.0))
    interval.add_wait(1000.0)
    interval.take()
    interval.add_step(make_report(5.0))
    figures = interval.take()
    assert (figures["total"], figures["grad_norm"]) == (5.0, 5.0)
    assert figures["learner_wait_fraction"] == 0.0


@pytest.mark.parametrize(("waits", "fraction"), [((), 0.0), ((1.0, 2.0), 0.75), ((9.0,), 1.0)])
def test_the_wait_is_a_fraction_of_the_interval(monkeypatch: pytest.MonkeyPatch, waits: tuple[float, ...], fraction: float) -> None:
    now = iter([10.0, 14.0, 14.0])
    monkeypatch.setattr("learner_server.metrics.time", SimpleNamespace(monotonic=lambda: next(now)))
    interval = IntervalStatistics()
    for seconds in waits:
        interval.add_wait(seconds)
    assert interval.take()["learner_wait_fraction"] == fraction


def test_what_the_other_thread_worked_and_what_this_one_had_no_core_for_are_shares_of_the_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, worked, starved = iter([10.0, 14.0, 14.0, 16.0, 16.0]), iter([5.0, 7.0, 7.0, 7.5, 7.5]), iter([1.0, 2.0, 2.0, 3.5, 3.5])
    monkeypatch.setattr("learner_server.metrics.time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr("learner_server.metrics.starved_seconds", lambda: next(starved))
    interval = IntervalStatistics(lambda: next(worked))
    shares = [(figures["ingest_fraction"], figures["learner_starved_fraction"]) for figures in (interval.take(), interval.take())]
    assert shares == [(0.5, 0.25), (0.25, 0.75)]


# --- What actors spend their time on


def times(total: float, environment: float, inference: float, waiting: float) -> ActorTimes:
    return ActorTimes(total=total, environment=environment, inference=inference, waiting=waiting)


def test_the_shares_of_actors_time_are_of_all_actors_together() -> None:
    shares = ActorTimeShares()
    shares.add(replace(times(1.0, 0.5, 0.25, 0.125), line=2.0, sending=5.0, fetching=1.0, starved=0.5))
    shares.add(replace(times(3.0, 0.5, 0.75, 1.875), sending=1.0, fetching=2.0, starved=0.5))
    assert actor_shares([shares.take()]) == {
        "actor_environment_fraction": 0.25,
        "actor_inference_fraction": 0.25,
        "actor_wait_fraction": 0.5,
        "actor_line_fraction": 0.5,
        "actor_sending_fraction": 1.5,
        "actor_fetching_fraction": 0.75,
        "actor_starved_fraction": 0.25,
    }
    # The next interval is another.
    shares.add(times(1.0, 1.0, 0.0, 0.0))
    assert actor_shares([shares.take()])["actor_environment_fraction"] == 1.0


def test_the_shares_of_several_learners_are_by_the_time_of_their_actors() -> None:
    first, second = ActorTimeShares(), ActorTimeShares()
    first.add(times(1.0, 1.0, 0.0, 0.0))
    second.add(times(3.0, 0.0, 0.0, 3.0))
    both = actor_shares([first.take(), second.take()])
    assert (both["actor_environment_fraction"], both["actor_inference_fraction"], both["actor_wait_fraction"]) == (0.25, 0.0, 0.75)


def test_without_unrolls_there_are_no_shares() -> None:
    assert set(actor_shares([ActorTimeShares().take()]).values()) == {None}


# --- Rates


def test_a_rate_is_growth_a_second() -> None:
    rate = Rate(window_seconds=10.0)
    assert [rate.update(now, count) for now, count in ((5.0, 100), (6.0, 150), (9.0, 500))] == [0.0, 50.0, 100.0]


def test_a_rate_forgets_what_lies_before_its_window() -> None:
    rate = Rate(window_seconds=3.0)
    for second in range(10):
        rate.update(float(second), 1000 * second)
    assert [rate.update(float(second), 9000) for second in (10, 11, 12, 13)][-1] == 0.0


def test_a_rate_over_intervals_longer_than_its_window_is_over_the_last_interval() -> None:
    rate = Rate(window_seconds=1.0)
    assert [rate.update(now, count) for now, count in ((0.0, 0), (100.0, 1000), (110.0, 2000))] == [0.0, 10.0, 100.0]


def test_a_rate_at_one_moment_is_0() -> None:
    rate = Rate()
    assert [rate.update(1.0, 10), rate.update(1.0, 20)] == [0.0, 0.0]


# --- Files

FIGURES = {"env_steps": 100, "total": 1.5, "mean_return_100": None, "ended": "stopped", "refused": {"internal": 1}}


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[MetricsWriter]:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    yield writer
    writer.close()


def events_in(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns the scalars in TensorBoard's event files, by name, as (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory)).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_every_write_is_a_line_that_can_be_read_at_once(tmp_path: Path, writer: MetricsWriter) -> None:
    for step in (1, 2):
        writer.write({**FIGURES, "env_steps": step})
        assert read_metrics(tmp_path / "metrics.jsonl")[-1] == {**FIGURES, "env_steps": step}
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_null(tmp_path: Path, writer: MetricsWriter, value: float) -> None:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    writer.write({**FIGURES, "grad_norm": value, "mean_return_100_by_task": [1.0, value]})
    figures = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (figures["grad_norm"], figures["mean_return_100_by_task"]) == (None, [1.0, None])


def test_a_later_process_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for step in (1, 2):
        writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
        writer.write({"env_steps": step})
        writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"env_steps": 1}\n{"env_steps": 2}\n'


def test_a_line_that_a_killed_process_tore_takes_no_other_with_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"env_steps": 1}\n{"env_st')
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    writer.write({"env_steps": 3})
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"env_steps": 1}, {"env_steps": 3}]


def test_tensorboard_gets_every_number_by_step(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    writer.write(FIGURES)
    writer.write({**FIGURES, "env_steps": 200, "total": 0.5, "mean_return_100": 20, "grad_norm": math.nan})
    writer.close()
    assert events_in(tmp_path / "tensorboard") == {"total": [(100, 1.5), (200, 0.5)], "mean_return_100": [(200, 20.0)]}


def test_tensorboard_gets_a_curve_for_each_task(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    writer.write({"env_steps": 100, "trained_by_task": [60, 40], "mean_return_100_by_task": [None, 1.5]})
    writer.close()
    assert events_in(tmp_path / "tensorboard") == {
        "trained_by_task/0": [(100, 60.0)],
        "trained_by_task/1": [(100, 40.0)],
        "mean_return_100_by_task/1": [(100, 1.5)],
    }
