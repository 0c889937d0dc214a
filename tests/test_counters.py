"""Counters that outlive the process that counts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from run_directory.counters import CounterFile, read_counters


def test_what_was_written_last_is_read(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    file = CounterFile(path)
    for received in range(5):
        file.write({"steps_received": received})
        assert read_counters(path) == {"steps_received": received}


def test_a_process_that_is_killed_leaves_what_it_wrote_last(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    program = f"""
from pathlib import Path
from run_directory.counters import CounterFile
file = CounterFile(Path({str(path)!r}))
count = 0
while True:
    count += 1
    file.write({{"count": count}})
    print(count, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(100):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        said = [int(count) for count in process.stdout.read().split()]
    counters = read_counters(path)
    assert counters is not None
    # What it said last, or one more that it had no time to say.
    assert counters["count"] - max(said, default=100) in {0, 1}


def test_nothing_is_read_where_nothing_was_written(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    assert read_counters(path) is None
    CounterFile(path)
    assert read_counters(path) is None


@pytest.mark.parametrize("torn", [0, 4, 16, 20])
def test_a_slot_that_was_torn_leaves_the_one_before(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "counters"
    file = CounterFile(path)
    file.write({"steps_received": 1})
    file.write({"steps_received": 2})
    data = bytearray(path.read_bytes())
    data[torn] ^= 0xFF  # of the first slot, which was written second
    path.write_bytes(data)
    assert read_counters(path) == {"steps_received": 1}


def test_a_new_process_goes_on_from_the_turn_of_the_last(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    for writes in (3, 1, 2):  # each fewer than those before, so that turns that began anew would be older
        file = CounterFile(path)
        for write in range(writes):
            file.write({"writes": writes, "write": write})
        file.close()
        file.write({"writes": 0})  # is not kept any more
        assert read_counters(path) == {"writes": writes, "write": writes - 1}


def test_a_file_cut_short_or_of_something_else_is_none(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    for content in (b"", b"short", b"\x00" * 8192, b"\xff" * 8192, os.urandom(8192)):
        path.write_bytes(content)
        assert read_counters(path) is None


def test_where_it_cannot_be_made_nothing_is_kept_and_nobody_is_stopped(tmp_path: Path) -> None:
    file = CounterFile(tmp_path / "nowhere" / "counters")
    file.write({"steps_received": 1})
    file.close()


def test_a_disk_that_takes_no_more_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "counters"
    file = CounterFile(path)
    file.write({"steps_received": 1})

    def fail(*_: object) -> int:
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", fail)
        file.write({"steps_received": 2})
    assert read_counters(path) == {"steps_received": 1}
    file.write({"steps_received": 3})
    assert read_counters(path) == {"steps_received": 3}
