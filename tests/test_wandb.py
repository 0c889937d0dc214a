"""Weights & Biases gets what TensorBoard gets; without its package, its key or its network a learner says so, and trains."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from impala.errors import ConfigError
from learner_server import wandb_run
from learner_server.disk_failures import DiskFailures
from learner_server.metrics import MetricsWriter
from learner_server.wandb_run import WandbRun, WandbWriter, check_wandb
from tests.test_metrics import FIGURES, events_in


class FakeError(Exception):
    """As the package raises them: of no kind that anybody knows."""


class UsageError(FakeError):
    """No key, and nobody to ask for one."""


class FakePackage(ModuleType):
    """What a learner calls of the package, and what it was called with."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.UsageError = UsageError
        self.begun: dict[str, Any] = {}
        self.lines: list[dict[str, Any]] = []
        self.axes: list[Any] = []
        self.ended = threading.Event()
        self.url = "https://far.example/run"
        self.dir = "there"

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def login(self, *, verify: bool) -> bool:
        assert not verify, "it asks the network"
        return True

    def init(self, **arguments: Any) -> "FakePackage":
        self.begun = arguments
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes.append((name, step_metric))

    def log(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def finish(self) -> None:
        self.ended.set()


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> FakePackage:
    package = FakePackage()
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


@pytest.fixture
def run(tmp_path: Path) -> WandbRun:
    return WandbRun(project="cartpoles", run_id="3ade4d26a856", folder=tmp_path / "run", config={"seed": 3})


@pytest.fixture
def writer(run: WandbRun) -> Iterator[WandbWriter]:
    writer = WandbWriter(run, DiskFailures())
    yield writer
    writer.close()


def failing(*outcomes: bool, error: type[Exception] = FakeError) -> Callable[..., None]:
    """Returns what fails where an outcome says so, call by call, and after the last does not."""
    left = list(outcomes)

    def call(*_: Any, **__: Any) -> None:
        if left and left.pop(0):
            raise error("no\nnetwork.")

    return call


def test_wandb_gets_the_names_that_tensorboard_gets_by_env_steps(package: FakePackage, run: WandbRun, tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", wandb=run)
    writer.write({**FIGURES, "mean_return_100_by_task": [1.0, None]})
    writer.write({**FIGURES, "env_steps": 200, "total": 0.5})
    writer.close()
    assert package.lines == [
        {"total": 1.5, "mean_return_100_by_task/0": 1.0, "env_steps": 100},
        {"total": 0.5, "env_steps": 200},
    ]
    assert package.lines[0].keys() - {"env_steps"} == events_in(tmp_path / "tensorboard").keys()
    assert package.axes == [("env_steps", None), ("*", "env_steps")]
    assert package.ended.is_set()


def test_a_resumed_run_goes_on_under_its_id_and_name(package: FakePackage, writer: WandbWriter, run: WandbRun) -> None:
    writer.write({}, 0)
    writer.close()
    settings = package.begun.pop("settings")
    assert package.begun == {
        "project": "cartpoles",
        "id": "3ade4d26a856",
        "name": "run",
        "dir": str(run.folder),
        "config": {"seed": 3},
        "resume": "allow",
    }
    assert settings == {"console": "off", "silent": True, "init_timeout": 20.0, "finish_timeout": 20.0}


def test_without_the_flag_the_package_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # whose import then fails
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    writer.write(FIGURES)
    writer.close()
    assert writer.failures.counts["wandb"] == 0


def test_a_machine_without_the_package_is_told_which_extra_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"^wandb: not installed here: .*; pip install 'impala-grpc\[wandb\]'$"):
        check_wandb()


def test_without_a_key_a_learner_does_not_begin(package: FakePackage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "login", failing(True, error=UsageError))
    with pytest.raises(ConfigError, match=r"^wandb: no network\. Or set WANDB_MODE=offline"):
        check_wandb()


def test_a_network_that_fails_keeps_no_learner_from_beginning(
    package: FakePackage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(package, "login", failing(True))
    check_wandb()
    assert caplog.messages == ["wandb: not logged in: no network."]


def test_a_line_that_cannot_be_sent_is_counted_and_said_and_the_next_one_is_sent(
    package: FakePackage, writer: WandbWriter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(package, "log", failing(True, False))
    with caplog.at_level(logging.WARNING):
        writer.write({}, 1)
        writer.write({}, 2)
        writer.close()
    assert writer._failures.counts["wandb"] == 1
    assert caplog.messages == [
        "wandb not written, training goes on (failure 1): FakeError: no network.",
        "wandb: written again, after 1 failures",
    ]


@pytest.mark.parametrize("what", ["init", "define_metric"])
def test_a_run_that_cannot_begin_is_said_once_and_training_goes_without(
    what: str, package: FakePackage, writer: WandbWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, what, failing(True))
    for step in range(3):
        writer.write({}, step)
    writer.close()
    assert (writer._failures.counts["wandb"], package.lines) == (1, [])


def _write_many(writer: WandbWriter) -> None:
    for step in range(5):  # one with the thread, three that wait, and one too many
        writer.write({}, step)


def test_a_network_that_stands_still_holds_nobody_up(
    package: FakePackage, run: WandbRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = threading.Event()
    monkeypatch.setattr(package, "log", lambda _: stuck.wait())
    monkeypatch.setattr(wandb_run, "_END_SECONDS", 0.0)
    monkeypatch.setattr(wandb_run, "_MOST_WAITING", 3)
    writer = WandbWriter(run, DiskFailures())
    with pytest.raises(OSError, match="3 lines wait to be sent"):
        _write_many(writer)
    writer.close()
    assert caplog.messages[-1] == "wandb: not everything was sent within 0 s of the end; metrics.jsonl has it"
    stuck.set()
    writer._lines.put(None)
    writer._thread.join()


def test_a_writer_that_never_wrote_ends_without_a_run(package: FakePackage, run: WandbRun) -> None:
    WandbWriter(run, DiskFailures()).close()
    assert package.begun == {}


def test_where_the_run_is_shown_is_said(package: FakePackage, writer: WandbWriter, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        writer.write({}, 0)
        writer.close()
    assert caplog.messages == ["wandb: https://far.example/run"]


def test_a_learner_that_cannot_have_it_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from learner_server.config import LearnerConfig
    from learner_server.run import run_learner

    monkeypatch.setitem(sys.modules, "wandb", None)
    config = LearnerConfig(env=("CartPole-v1",), wandb="cartpoles", run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match="wandb: not installed"):
        run_learner(config, SimpleNamespace(), threading.Event())  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
