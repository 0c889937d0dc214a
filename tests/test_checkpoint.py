"""Checkpoints: whatever happened to the process or to the disk, the newest whole one is found."""

import hashlib
import itertools
import json
import logging
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from impala.errors import CheckpointError
from run_directory import files
from run_directory.checkpoint import Checkpoint, load_checkpoint, load_newest_checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
FILES = ("parameters.safetensors", "optimiser.safetensors", "random.safetensors", "state.json")


def make_checkpoint(version: int) -> Checkpoint:
    """Returns a checkpoint whose every part says its version."""
    return Checkpoint(
        version=version,
        parameters={"policy.0.weight": torch.full((2, 3), float(version)), "policy.0.bias": torch.zeros(0)},
        optimiser={"0.step": torch.tensor(float(version)), "0.exp_avg": torch.ones(2, 3)},
        random={"cpu": torch.arange(5, dtype=torch.uint8)},
        state={"env_steps": version * 10, "run_id": "run", "actors": {"a": [[1, True]]}, "seconds": 1.5, "mean": None},
    )


def save(directory: Path, *versions: int, keep: int = 9) -> Path:
    """Saves a checkpoint of each version; returns the path of the last."""
    return [save_checkpoint(directory, make_checkpoint(version), keep=keep) for version in versions][-1]


def newest_version(directory: Path) -> int:
    checkpoint = load_newest_checkpoint(directory)
    assert checkpoint is not None
    assert checkpoint.parameters["policy.0.weight"].eq(float(checkpoint.version)).all()
    return checkpoint.version


def kept_versions(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("version-")) for path in directory.iterdir())


# --- In good order


def test_a_checkpoint_comes_back_equal(tmp_path: Path) -> None:
    saved = make_checkpoint(4711)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved, keep=1))
    assert (loaded.version, loaded.state) == (saved.version, saved.state)
    for part in ("parameters", "optimiser", "random"):
        one, other = getattr(loaded, part), getattr(saved, part)
        assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in one.items()} == {
            name: (tensor.dtype, tensor.tolist()) for name, tensor in other.items()
        }


def test_every_field_of_a_checkpoint_is_compared_above() -> None:
    assert {field.name for field in fields(Checkpoint)} == {"version", "state", "parameters", "optimiser", "random"}


def test_the_newest_is_chosen_however_many_digits_it_has(tmp_path: Path) -> None:
    save(tmp_path, 9, 100, 20)
    assert newest_version(tmp_path) == 100


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 10, keep=2)
    assert kept_versions(tmp_path) == [3, 10]


def test_no_folder_and_an_empty_one_hold_no_checkpoint(tmp_path: Path) -> None:
    assert load_newest_checkpoint(tmp_path) is None
    assert load_newest_checkpoint(tmp_path / "checkpoints") is None


def test_saving_the_same_version_twice_leaves_the_first_one_whole(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    before = (path / "manifest.json").stat().st_ino
    assert save(tmp_path, 7) == path
    assert (path / "manifest.json").stat().st_ino == before
    assert newest_version(tmp_path) == 7


@pytest.mark.parametrize("damage", ["empty folder", "short manifest.json", "no parameters.safetensors"])
def test_saving_a_version_whose_folder_is_there_and_broken_replaces_it(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 6)
    DAMAGE[damage](save(tmp_path, 7))
    assert newest_version(tmp_path) == 6
    save(tmp_path, 7)
    assert newest_version(tmp_path) == 7


def test_no_whole_one_is_deleted_before_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: list[list[int]] = []
    rmtree = shutil.rmtree

    def noting_rmtree(path: Path, **keywords: Any) -> None:
        whole.append(sorted(load_checkpoint(each).version for each in tmp_path.glob("version-*")))
        rmtree(path, **keywords)

    save(tmp_path, 1)
    monkeypatch.setattr(shutil, "rmtree", noting_rmtree)
    save(tmp_path, 2, keep=1)
    assert whole == [[1, 2]]


def test_what_is_renamed_was_synced_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noting_fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def noting_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "rename", noting_rename)
    save(tmp_path, 5)
    assert sorted(events[:4]) == sorted(FILES)
    assert events[4:] == ["manifest.json", ".writing-version-000000000005", "rename", tmp_path.name]


# --- Torn and altered ones


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _zero_the_tail(path: Path) -> None:
    """What a power cut may leave of a file whose length was written before its content."""
    data = path.read_bytes()
    kept = len(data) // 2
    path.write_bytes(data[:kept] + bytes(len(data) - kept))


def _lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(1))


def _cut_at(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(share * path.stat().st_size))


def _edit_manifest(edit: Callable[[dict[str, Any], Path], Any]) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        path = checkpoint / "manifest.json"
        manifest = json.loads(path.read_bytes())
        path.write_text(json.dumps(edit(manifest, checkpoint)))

    return damage


def _with_another_folders_file(manifest: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    other = next(path for path in checkpoint.parent.iterdir() if path != checkpoint) / "state.json"
    data = other.read_bytes()
    name = f"../{other.parent.name}/state.json"
    return {**manifest, name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}


def _with_a_matching_state(value: Any) -> Callable[[Path], None]:
    return _with_a_matching("state.json", json.dumps(value).encode())


def _with_a_matching(name: str, data: bytes) -> Callable[[Path], None]:
    """Replaces a file by something that the manifest agrees with."""

    def damage(checkpoint: Path) -> None:
        (checkpoint / name).write_bytes(data)
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        _edit_manifest(lambda manifest, _: {**manifest, name: entry})(checkpoint)

    return damage


def _without_elements(size: int) -> bytes:
    """Returns a safetensors file of a tensor without elements, one of whose sizes is 0 and the others are what none can have."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [0, size, size], "data_offsets": [0, 0]}}).encode()
    return len(header).to_bytes(8, "little") + header


DAMAGE: dict[str, Callable[[Path], None]] = {
    **{f"no {name}": lambda path, name=name: (path / name).unlink() for name in (*FILES, "manifest.json")},  # type: ignore[misc]
    **{f"short {name}": lambda path, name=name: _truncate(path / name) for name in (*FILES, "manifest.json")},  # type: ignore[misc]
    **{f"flipped {name}": lambda path, name=name: _flip_a_byte(path / name) for name in FILES},  # type: ignore[misc]
    **{
        f"{name} cut at {share:.0%}": lambda path, name=name, share=share: _cut_at(share)(path / name)  # type: ignore[misc]
        for name in (*FILES, "manifest.json")
        for share in (0.0, 0.01, 0.5, 0.99)
    },
    **{f"zeros at the end of {name}": lambda path, name=name: _zero_the_tail(path / name) for name in (*FILES, "manifest.json")},  # type: ignore[misc]
    **{f"more at the end of {name}": lambda path, name=name: _lengthen(path / name) for name in FILES},  # type: ignore[misc]
    "a bit of the manifest flipped": lambda path: _flip_a_byte(path / "manifest.json"),
    "empty folder": lambda path: [file.unlink() for file in path.iterdir()] and None,
    "empty manifest": lambda path: (path / "manifest.json").write_bytes(b"") and None,
    "binary manifest": lambda path: (path / "manifest.json").write_bytes(bytes(range(256))) and None,
    "manifest of nothing": _edit_manifest(lambda *_: {}),
    "manifest is a list": _edit_manifest(lambda *_: []),
    "manifest is null": _edit_manifest(lambda *_: None),
    "manifest of numbers": _edit_manifest(lambda manifest, _: dict.fromkeys(manifest, 1)),
    "manifest without sums": _edit_manifest(lambda manifest, _: {name: {"bytes": 1} for name in manifest}),
    "manifest less a file": _edit_manifest(lambda manifest, _: {name: manifest[name] for name in manifest if name != "state.json"}),
    "manifest names a folder": _edit_manifest(lambda manifest, _: {**manifest, "..": {"bytes": 0, "sha256": ""}}),
    "manifest names another folder's file": _edit_manifest(_with_another_folders_file),
    "a file where the folder should be": lambda path: (shutil.rmtree(path), path.write_bytes(b""))[0],
    "state is no object": _with_a_matching_state("state"),
    "state without version": _with_a_matching_state({"env_steps": 1}),
    "state of an infinite version": _with_a_matching("state.json", b'{"version": 1e999}'),
    "state without end": _with_a_matching("state.json", b"[" * 100_000),
    "manifest without end": lambda path: (path / "manifest.json").write_bytes(b"[" * 100_000) and None,
    "a size that no tensor can have": _with_a_matching("optimiser.safetensors", _without_elements(2**40)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_newest_one_is_named_in_the_log_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    save(tmp_path, 1, 2)
    DAMAGE[damage](save(tmp_path, 3))
    with caplog.at_level(logging.ERROR):
        assert newest_version(tmp_path) == 2
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("checkpoint passed over: version-000000000003")


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_is_named(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 3)
    _flip_a_byte(path / name)
    with pytest.raises(CheckpointError, match=rf"^version-000000000003/{name}: \d+ bytes that do not match the manifest$"):
        load_checkpoint(path)


def test_several_broken_ones_are_passed_over(tmp_path: Path) -> None:
    for path in [save(tmp_path, version) for version in (1, 2, 3, 4)][1:]:
        _truncate(path / "parameters.safetensors")
    assert newest_version(tmp_path) == 1


def test_all_broken_is_an_error_and_not_a_new_run(tmp_path: Path) -> None:
    for version in (1, 2):
        _truncate(save(tmp_path, version) / "state.json")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints is whole"):
        load_newest_checkpoint(tmp_path)


# --- What an interrupted write leaves


def test_a_folder_that_was_still_being_written_is_ignored(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2).rename(tmp_path / ".writing-version-000000000002")
    assert newest_version(tmp_path) == 1


def test_what_a_killed_process_left_of_a_write_is_deleted_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".writing-version-000000000002"
    left.mkdir()
    (left / "parameters.safetensors").write_bytes(b"half of it")
    save(tmp_path, 3)
    assert not left.exists()


def _failing_at(call: int) -> Callable[..., None]:
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(28, "No space left on device")

    return fail


@pytest.mark.parametrize("call", [1, 3, 5, 6])
def test_a_disk_that_fails_to_sync_costs_no_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    save(tmp_path, 1, 2)
    monkeypatch.setattr(os, "fsync", _failing_at(call))
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 3, keep=1)
    monkeypatch.undo()
    assert kept_versions(tmp_path) == [1, 2]
    assert newest_version(tmp_path) == 2


@pytest.mark.parametrize("call", [1, 5])
def test_a_disk_that_is_full_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    save(tmp_path, 1)
    fail, write_synced = _failing_at(call), files.write_synced

    def write(path: Path, data: bytes) -> None:
        write_synced(path, data[: len(data) // 2])
        fail()

    monkeypatch.setattr("run_directory.checkpoint.write_synced", write)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["version-000000000001"]


# --- SIGKILL, in a process of its own: `python -m tests.test_checkpoint FUNCTION DIRECTORY`


def _run(function: Callable[[Path], None], directory: Path) -> list[str]:
    """Runs one of the functions below in a fresh process, which may fork safely, and returns the lines that it printed."""
    command = [sys.executable, "-m", "tests.test_checkpoint", function.__name__, str(directory)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert run.returncode == 0, run.stdout
    return run.stdout.splitlines()


def test_a_process_killed_at_any_moment_leaves_a_whole_newest_checkpoint(tmp_path: Path) -> None:
    assert _run(kill_at_random_moments, tmp_path)[-1] == "20 killed"


def test_a_process_killed_before_any_one_change_on_the_disk_leaves_a_whole_newest_checkpoint(tmp_path: Path) -> None:
    *_, last = _run(kill_before_each_change, tmp_path)
    assert int(last.removesuffix(" killed")) > 10


def kill_at_random_moments(directory: Path) -> None:
    """Kills twenty processes that save one checkpoint after the other, each within the time that three saves take."""
    started = time.monotonic()
    save(directory, 1, keep=2)
    duration = time.monotonic() - started
    for _ in range(20):
        version = newest_version(directory)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            while True:
                version += 1
                save(directory, version, keep=2)
                os.write(writing, version.to_bytes(8, "big"))
        os.close(writing)
        time.sleep(random.uniform(0.0, 3.0 * duration))  # noqa: S311 - any moment will do
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reading, "rb") as pipe:
            reported = [version, *struct.unpack(f">{len(data := pipe.read()) // 8}Q", data)]
        # The kill may fall between the rename and the report.
        assert _newest_is_whole(directory) in (reported[-1], reported[-1] + 1)
    print("20 killed")


def kill_before_each_change(directory: Path) -> None:
    """Kills a process before the first change that its save makes to the disk, another before the second, and so on."""
    save(directory, 1, 2, keep=2)
    for change in itertools.count(1):
        version = newest_version(directory)
        child = os.fork()
        if not child:
            _kill_me_before(change)
            save(directory, version + 1, keep=2)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert _newest_is_whole(directory) in (version, version + 1)
        if status == 0:
            print(f"{change - 1} killed")
            return
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def _newest_is_whole(directory: Path) -> int:
    """Returns the newest version, which nothing may have to be passed over to find."""
    newest = max(path for path in directory.iterdir() if path.name.startswith("version-"))
    return load_checkpoint(newest).version


def _kill_me_before(change: int) -> None:
    changes = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
        if (writes or event in {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}) and next(changes) == change:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    {function.__name__: function for function in (kill_at_random_moments, kill_before_each_change)}[sys.argv[1]](Path(sys.argv[2]))


def test_the_checkpoint_just_written_is_kept_even_beside_a_broken_one_of_a_higher_number(tmp_path: Path) -> None:
    (tmp_path / "version-000000000999").mkdir()
    written = save_checkpoint(tmp_path, make_checkpoint(5), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == [written.name]
