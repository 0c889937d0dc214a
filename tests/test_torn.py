"""The benchmark that kills a process while it writes checkpoints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.torn import is_its_own, make_checkpoint, phase, torn
from tests.test_checkpoint import ROOT, save


@pytest.mark.system
def test_a_writer_killed_ten_times_leaves_a_whole_newest_checkpoint_each_time(tmp_path: Path) -> None:
    output = tmp_path / "torn.json"
    command = [sys.executable, "-m", "benchmarks.torn", "--kills", "10", "--seed", "0", "--mebibytes", "3", "--output", str(output)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    found = json.loads(output.read_text())
    assert (found["whole_found"], found["passed_over"], found["faults"]) == (10, 0, []), run.stdout
    assert sum(found["phases"].values()) == 10
    assert found["killed_while_writing"] > 0


def test_what_a_writer_was_at_is_read_from_what_it_left(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    assert phase(tmp_path, keep=2) == "between two"
    assert phase(tmp_path, keep=1) == "deleting an old one"
    (tmp_path / "version-000000000001" / "manifest.json").unlink()
    assert phase(tmp_path, keep=2) == "deleting an old one"
    (tmp_path / ".writing-version-000000000003").mkdir()
    (tmp_path / ".writing-version-000000000003" / "state.json").write_bytes(b"")
    assert phase(tmp_path, keep=2) == "writing, 1 of 5 files begun"


def test_a_checkpoint_with_a_part_of_another_version_is_seen() -> None:
    assert is_its_own(make_checkpoint(3, 0.1))
    for part in ("parameters", "optimiser", "random"):
        checkpoint = make_checkpoint(3, 0.1)
        next(iter(getattr(checkpoint, part).values()))[-1] = 2
        assert not is_its_own(checkpoint)
    assert torch.equal(
        make_checkpoint(3, 0.1).parameters["weight"], torch.full_like(make_checkpoint(3, 0.1).parameters["weight"], 3)
    )


def test_a_loader_that_finds_an_older_one_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_checkpoint(1, 0.1)

    class Dead:
        """A writer that has reported version 5, and dies."""

        def __init__(self, *_: object, **__: object) -> None: ...

        def wait_for_report(self) -> int:
            return 5

        def kill(self) -> list[int]:
            return []

    monkeypatch.setattr("benchmarks.torn.Writer", Dead)
    monkeypatch.setattr("benchmarks.torn.load_newest_checkpoint", lambda _: whole)
    assert torn(tmp_path, kills=1, seed=0, mebibytes=0.1, keep=2)["faults"] == ["kill 0: 5 was reported, 1 was found"]
