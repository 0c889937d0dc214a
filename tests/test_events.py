"""TensorBoard event files: what TensorBoard reads of them is what was written, whatever the disk did meanwhile."""

import os
from pathlib import Path

import pytest

from learner_server import events
from learner_server.events import EventWriter
from tests.test_metrics import events_in


def torn(file: object, data: bytes) -> None:
    """Writes a part, fails, and cannot take it back."""
    assert hasattr(file, "write")
    file.write(data[: len(data) // 2])
    raise OSError(5, "Input/output error")


def test_every_scalar_is_read_back_at_its_step(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "new" / "folder")
    writer.write({"a": 1.5, "b/0": 2}, 10)
    writer.write({"a": -3.0}, 20)
    assert events_in(tmp_path / "new" / "folder") == {"a": [(10, 1.5), (20, -3.0)], "b/0": [(10, 2.0)]}


@pytest.mark.parametrize("before", [0, 2])
def test_a_record_that_was_torn_takes_no_later_one_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    writer = EventWriter(tmp_path)
    for step in range(before):
        writer.write({"a": 1.0}, step)
    monkeypatch.setattr(events, "append_whole", torn)
    with pytest.raises(OSError, match="Input/output error"):
        writer.write({"a": 2.0}, 7)
    monkeypatch.undo()
    writer.write({"a": 3.0}, 9)
    assert events_in(tmp_path) == {"a": [*((step, 1.0) for step in range(before)), (9, 3.0)]}


def test_two_writers_of_a_process_have_files_of_their_own(tmp_path: Path) -> None:
    for step in (1, 2):
        EventWriter(tmp_path).write({"a": float(step)}, step)
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 2
    assert all(name.startswith("events.out.tfevents.") and str(os.getpid()) in name for name in names)
    assert events_in(tmp_path) == {"a": [(1, 1.0), (2, 2.0)]}
