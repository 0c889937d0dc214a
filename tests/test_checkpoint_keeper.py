"""When a checkpoint is due, and how old the newest whole one is."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from impala.errors import CheckpointError
from learner_server import checkpoint_keeper
from learner_server.checkpoint_keeper import CheckpointKeeper
from run_directory.checkpoint import load_newest_checkpoint
from tests.test_checkpoint import make_checkpoint, save


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for the module `time`: `clock.now` is what both of its clocks say."""
    clock = SimpleNamespace(now=2e9)
    both = SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now)
    monkeypatch.setattr("learner_server.checkpoint_keeper.time", both)
    return clock


def fail(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def keeper_of(folder: Path, seconds: float = 60.0, version: int | None = None) -> CheckpointKeeper:
    return CheckpointKeeper(folder, seconds=seconds, keep=2, version=version)


def seconds_until_due(keeper: CheckpointKeeper, clock: SimpleNamespace) -> float:
    """Returns how long it is until the next is due, in whole seconds, and leaves the clock there."""
    started = clock.now
    while not keeper.due:
        clock.now += 1.0
    return float(clock.now - started)


def test_the_next_is_due_as_long_after_the_last_as_was_asked_for(tmp_path: Path, clock: SimpleNamespace) -> None:
    keeper = keeper_of(tmp_path)
    assert seconds_until_due(keeper, clock) == 60.0
    keeper.write(make_checkpoint(1))
    assert seconds_until_due(keeper, clock) == 60.0


@pytest.mark.parametrize(("seconds", "retried_after"), [(60.0, 6.0), (3600.0, 10.0)])
def test_one_that_failed_is_due_again_soon(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, seconds: float, retried_after: float
) -> None:
    keeper = keeper_of(tmp_path, seconds)
    monkeypatch.setattr(checkpoint_keeper, "save_checkpoint", fail)
    with pytest.raises(CheckpointError):
        keeper.write(make_checkpoint(1))
    assert seconds_until_due(keeper, clock) == retried_after


def test_the_age_is_since_the_newest_whole_one_and_not_since_a_failure(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = keeper_of(tmp_path)
    assert keeper.age_seconds is None
    keeper.write(make_checkpoint(1))
    clock.now += 5.0
    assert keeper.age_seconds == 5.0
    monkeypatch.setattr(checkpoint_keeper, "save_checkpoint", fail)
    with pytest.raises(CheckpointError):
        keeper.write(make_checkpoint(2))
    assert keeper.age_seconds == 5.0
    monkeypatch.undo()


def test_a_run_that_goes_on_has_the_checkpoint_that_it_goes_on_from(tmp_path: Path, clock: SimpleNamespace) -> None:
    written = save(tmp_path, 7)
    os.utime(written, (clock.now - 100.0, clock.now - 100.0))
    assert keeper_of(tmp_path, version=7).age_seconds == 100.0


@pytest.mark.parametrize(
    ("versions", "said"), [((), "no whole one was ever written"), ((7,), "the newest whole one is {}, written 0 s")]
)
def test_a_failure_says_where_the_newest_whole_one_is(tmp_path: Path, versions: tuple[int, ...], said: str) -> None:
    folder = tmp_path / "checkpoints"
    keeper = keeper_of(folder)
    for version in versions:
        keeper.write(make_checkpoint(version))
    away = folder.rename(tmp_path / "away") if versions else None
    folder.write_bytes(b"in the way")
    with pytest.raises(CheckpointError) as caught:
        keeper.write(make_checkpoint(8))
    assert str(caught.value).startswith(
        f"checkpoint: cannot write to {folder}: File exists; {said.format(folder / 'version-000000000007')}"
    )
    if away is not None:
        assert load_newest_checkpoint(away) is not None
