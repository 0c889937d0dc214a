"""/metrics of a learner: what Prometheus reads there is what metrics.jsonl says, and what was counted by size."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from impala.errors import ConfigError
from learner_server.histograms import LearnerHistograms
from learner_server.prometheus import COUNTERS, GAUGES, LABELLED, RETURN, MetricsPort
from run_directory.journal import read_metrics
from tests.programs import ENDLESS, Programs, last
from tests.service import free_port
from tests.test_training import STEPS, train


def open_port(address: str = "127.0.0.1:0", histograms: LearnerHistograms | None = None) -> MetricsPort:
    return MetricsPort(address, histograms or LearnerHistograms(), checkpoint_seconds=60.0)


@pytest.fixture
def port() -> Iterator[MetricsPort]:
    port = open_port()
    yield port
    port.close()


def scrape_figures(number: int) -> dict[str, float]:
    """Returns what comes of lines of metrics: no histogram, and no setting."""
    settings = {"impala_checkpoint_interval_seconds"}
    histograms = ("_bucket", "_sum", "_count")
    return {
        name: value
        for name, value in scrape(number).items()
        if name not in settings and not name.partition(" ")[0].endswith(histograms)
    }


def scrape(number: int) -> dict[str, float]:
    """Returns the samples by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{number}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value for sample in samples}


def test_every_figure_has_its_name_and_value(port: MetricsPort) -> None:
    figures = {name: 1.5 + index for index, name in enumerate([*COUNTERS, *GAUGES])}
    port.update({**figures, RETURN: [10.0, None, -3.0], "something else": 1})
    expected = {f"impala_{name}_total": figures[name] for name in COUNTERS}
    expected["impala_steps_received_total"] -= figures["steps_waiting"]
    expected |= {f"impala_{name}": figures[name] for name in GAUGES}
    assert scrape_figures(port.port) == {**expected, "impala_mean_return_100 0": 10.0, "impala_mean_return_100 2": -3.0}


def test_failures_of_the_disk_are_told_by_what_could_not_be_written(port: MetricsPort) -> None:
    port.update({"disk_failures": {"checkpoint": 3, "metrics": 0}})
    assert scrape_figures(port.port) == {"impala_disk_failures_total checkpoint": 3.0, "impala_disk_failures_total metrics": 0.0}


def test_figures_that_are_not_known_are_left_out(port: MetricsPort) -> None:
    assert scrape_figures(port.port) == {}
    port.update({"actors": 0, "policy_lag_mean": None, RETURN: [None]})
    assert scrape_figures(port.port) == {"impala_actors": 0.0}


def test_every_name_is_one_that_training_logs(tmp_path: Path) -> None:
    run = train(tmp_path, {0: 4}, total_steps=4 * STEPS)
    assert {*COUNTERS, *GAUGES, *LABELLED, RETURN} <= run.figures[-1].keys()


def test_an_address_that_is_taken_is_refused_by_name(port: MetricsPort) -> None:
    with pytest.raises(ConfigError, match=f"metrics: cannot listen on 127.0.0.1:{port.port}: "):
        open_port(f"127.0.0.1:{port.port}")


def test_a_port_that_was_closed_is_free(port: MetricsPort) -> None:
    first = open_port()
    first.close()
    open_port(f"127.0.0.1:{first.port}").close()


@pytest.mark.system
def test_a_learner_answers_with_what_it_logs(programs: Programs, tmp_path: Path) -> None:
    run_dir, number = tmp_path / "run", free_port()
    flags = ["--actors", "1", *ENDLESS, "--stop-at-return", "1000", "--metrics", f"127.0.0.1:{number}"]
    learner = programs.learner(run_dir, *flags)
    programs.wait_until(lambda: last(run_dir)["env_steps"] > 0, learner)
    steps = scrape(number)["impala_env_steps_total"]
    assert steps in {line["env_steps"] for line in read_metrics(run_dir / "metrics.jsonl")}
