"""A disk that fails: training goes on, says so, loses no line of metrics, and keeps the checkpoint it had."""

import ctypes
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from impala.errors import CheckpointError
from learner_server.disk_failures import WHAT, DiskFailures
from learner_server.resume import find_starting_point
from learner_server.training import End
from run_directory.checkpoint import load_newest_checkpoint
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory
from tests.test_metrics import events_in
from tests.test_training import STEPS, Run, train

FULL = OSError(28, "No space left on device")
# Lines of metrics between which the disk fails, of about 26.
BREAKS, HEALS = 4, 16
WRITTEN = ("checkpoint", "metrics", "tensorboard")


# --- What is counted and said


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for the module `time`: `clock.now` is what it says."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("learner_server.disk_failures.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def fail(failures: DiskFailures, what: str, error: Exception = FULL) -> None:
    with failures.survived(what):
        raise error


def test_what_fails_is_counted_by_what_it_was() -> None:
    failures = DiskFailures()
    fail(failures, "metrics")
    fail(failures, "metrics")
    fail(failures, "checkpoint", CheckpointError("no"))
    assert failures.counts == {**dict.fromkeys(WHAT, 0), "metrics": 2, "checkpoint": 1}


def test_what_no_disk_is_to_blame_for_is_raised() -> None:
    with pytest.raises(ValueError, match="a bug"):
        fail(DiskFailures(), "metrics", ValueError("a bug"))


def test_the_first_failure_is_an_error_in_the_log_and_those_right_after_it_are_not(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    failures = DiskFailures()
    for seconds in (0.0, 1.0, 30.0, 61.0, 62.0):
        clock.now = 1000.0 + seconds
        fail(failures, "metrics")
    fail(failures, "checkpoint")
    assert [(record.levelname, record.message.partition(":")[0]) for record in caplog.records] == [
        ("ERROR", "metrics not written, training goes on (failure 1)"),
        ("ERROR", "metrics not written, training goes on (failure 4)"),
        ("ERROR", "checkpoint not written, training goes on (failure 1)"),
    ]


def test_a_disk_that_is_well_again_is_said_once_and_its_next_failure_at_once(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    failures = DiskFailures()
    for _ in range(3):
        fail(failures, "metrics")
    for _ in range(2):
        with failures.survived("metrics"):
            pass
    clock.now += 1.0
    fail(failures, "metrics")
    assert [record.message.partition(":")[2].strip() for record in caplog.records] == [
        str(FULL),
        "written again, after 3 failures",
        str(FULL),
    ]


# --- Training on a disk that fails


@dataclass
class Disk:
    """A folder, and how the disk under it fails and heals."""

    run: Path
    fail: Callable[[], None]
    heal: Callable[[], None]


_MS_RDONLY, _MS_REMOUNT = 1, 32


def mount(target: Path, options: str, flags: int = 0) -> None:
    """Mounts a tmpfs, or remounts it, where this process may."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(target), b"tmpfs", flags, options.encode()):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount(disk, "size=1m")
    except OSError as error:
        pytest.skip(f"a file system cannot be mounted here ({error}); needs CAP_SYS_ADMIN")
    yield disk
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.umount2(os.fsencode(disk), 2) == 0  # MNT_DETACH


@pytest.fixture
def full(small_disk: Path) -> Disk:
    ballast = small_disk / "ballast"

    def fill() -> None:
        with ballast.open("ab", buffering=0) as file:
            for size in (65536, 4096):
                try:
                    while file.write(b"x" * size):
                        pass
                except OSError:
                    continue

    return Disk(small_disk / "run", fill, ballast.unlink)


@pytest.fixture
def read_only(small_disk: Path) -> Disk:
    return Disk(
        small_disk / "run",
        lambda: mount(small_disk, "", _MS_REMOUNT | _MS_RDONLY),
        lambda: mount(small_disk, "", _MS_REMOUNT),
    )


@pytest.fixture
def out_of_reach(tmp_path: Path) -> Disk:
    """What every machine can do: other things stand where the run's folders were, and its file is /dev/full."""
    run, away = tmp_path / "run", tmp_path / "away"

    def take_away() -> None:
        away.mkdir()
        for path in (run / "checkpoints", run / "tensorboard", run / "metrics.jsonl"):
            path.rename(away / path.name)
        (run / "checkpoints").write_bytes(b"")
        (run / "tensorboard").write_bytes(b"")
        (run / "metrics.jsonl").symlink_to("/dev/full")

    def bring_back() -> None:
        for path in away.iterdir():
            (run / path.name).unlink()
            path.rename(run / path.name)

    return Disk(run, take_away, bring_back)


@pytest.fixture(params=["full", "read_only", "out_of_reach"])
def disk(request: pytest.FixtureRequest) -> Disk:
    """Fails in each of three ways."""
    disk: Disk = request.getfixturevalue(request.param)
    return disk


def train_on(
    disk: Disk, *, heals: bool = True, drawn: Callable[[], None] = lambda: None, figures: list[dict[str, Any]] | None = None
) -> Run:
    """Trains for 25 steps, a line of metrics and a checkpoint after each, on a disk that fails meanwhile."""

    def on_line(line: int) -> None:
        if line == BREAKS:
            disk.fail()
        if line == HEALS and heals:
            drawn()
            disk.heal()

    return train(disk.run, {0: 100}, total_steps=100 * STEPS, checkpoint_seconds=1e-9, on_line=on_line, figures=figures)


def test_training_goes_on_over_a_disk_that_fails_and_every_failure_is_counted(disk: Disk) -> None:
    run = train_on(disk)
    assert run.end is End.TOTAL_STEPS
    assert run.learner.updates == 25
    assert run.figures[BREAKS - 1]["disk_failures"] == dict.fromkeys(WHAT, 0)
    counts = run.figures[-1]["disk_failures"]
    assert counts["console"] == 0
    assert [what for what in WRITTEN if not counts[what]] == []


def test_no_line_of_metrics_is_lost_or_torn_by_a_disk_that_fails(disk: Disk) -> None:
    run = train_on(disk)
    text = (disk.run / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    assert [json.loads(line) for line in text.splitlines()] == run.figures


def test_tensorboard_shows_what_came_before_the_disk_failed_and_after(disk: Disk) -> None:
    run = train_on(disk)
    steps = [step for step, _ in events_in(disk.run / "tensorboard")["seconds"]]
    shown = [line["env_steps"] for line in run.figures]
    assert steps[:BREAKS] == shown[:BREAKS]
    assert steps[-1] == shown[-1]
    assert set(steps) <= set(shown)
    assert len(steps) < len(shown)


def test_the_last_good_checkpoint_stays_while_the_disk_fails_and_grows_old(full: Disk) -> None:
    found: list[int] = []

    def look() -> None:
        checkpoint = load_newest_checkpoint(full.run / "checkpoints")
        assert checkpoint is not None
        found.append(checkpoint.version)

    run = train_on(full, drawn=look)
    versions, ages = ([line[name] for line in run.figures] for name in ("parameter_version", "checkpoint_age_seconds"))
    assert versions[BREAKS - 2] <= found[0] < versions[HEALS - 2]
    failing = ages[versions.index(found[0]) + 2 : HEALS]
    assert len(failing) > 3
    assert failing == sorted(failing)
    assert failing[-1] > failing[0]


def test_checkpoints_are_written_again_once_the_disk_is_well(disk: Disk) -> None:
    run = train_on(disk)
    checkpoint = load_newest_checkpoint(disk.run / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.version == run.figures[-1]["parameter_version"]
    assert [path.name for path in (disk.run / "checkpoints").iterdir() if not path.name.startswith("version-")] == []


def test_the_log_names_each_fault_once_and_says_when_it_is_over(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train_on(disk)
    said = [(record.levelname, record.message.partition(" ")[0].rstrip(":")) for record in caplog.records]
    assert sorted(said) == sorted([("ERROR", what) for what in WRITTEN] + [("WARNING", what) for what in WRITTEN])


def test_a_run_whose_last_checkpoint_cannot_be_written_says_where_the_newest_whole_one_is(disk: Disk) -> None:
    with pytest.raises(CheckpointError, match=r"cannot write to .*; the newest whole one is .*version-\d{12}, written \d+ s ago$"):
        train_on(disk, heals=False)


def test_a_run_killed_while_its_disk_is_full_goes_on_where_it_was(full: Disk) -> None:
    shown: list[dict[str, Any]] = []
    with pytest.raises(CheckpointError):
        train_on(full, heals=False, figures=shown)
    last_written = read_metrics(full.run / "metrics.jsonl")[-1]
    start = find_starting_point(RunDirectory(full.run))
    assert last_written["env_steps"] < shown[-1]["env_steps"]
    assert (start.steps_trained, start.learner_updates) == (shown[-1]["env_steps"], shown[-1]["learner_updates"])
    assert start.version > shown[-1]["parameter_version"]


def test_a_console_that_fails_stops_nobody(tmp_path: Path) -> None:
    def on_line(line: int) -> None:
        raise FULL

    run = train(tmp_path, {0: 12}, total_steps=12 * STEPS, on_line=on_line)
    assert run.end is End.TOTAL_STEPS
    assert [line["disk_failures"]["console"] for line in run.figures] == list(range(len(run.figures)))
