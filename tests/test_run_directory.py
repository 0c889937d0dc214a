"""The run directory: files that are whole or absent, one learner at a time, one configuration for ever."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from impala.config import AgentConfig, EnvironmentConfig, NetworkConfig
from impala.errors import ConfigError
from run_directory.files import append_whole, write_atomically, write_json_atomically, write_synced
from run_directory.journal import JournalWriter, each_metrics, read_last_metrics, read_metrics
from run_directory.layout import RunDirectory

AGENT = AgentConfig(
    environments=(EnvironmentConfig(environment_id="CartPole-v1", kwargs={"render_mode": None}),),
    network=NetworkConfig(hidden_sizes=(8,)),
)
CONFIG = {"agent": AGENT.to_json(), "seed": 3, "total_steps": 100}

# Claims the directory that it is told, says so, and holds the claim until its standard input ends.
CLAIMER = """
import sys
from pathlib import Path
from run_directory.layout import RunDirectory
with RunDirectory(Path(sys.argv[1])).claim({}):
    print("claimed", flush=True)
    sys.stdin.read()
"""


def fail(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def refusal(run: RunDirectory, config: dict[str, Any]) -> str:
    """Returns the one line that `claim` refuses with."""
    with pytest.raises(ConfigError) as caught:
        run.claim(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Files


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"first, and longer")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_written_as_one_object_that_people_can_read(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / "file", {"a": [1, None], "b": "ü"})
    text = (tmp_path / "file").read_text()
    assert json.loads(text) == {"a": [1, None], "b": "ü"}
    assert text.endswith("\n")
    assert text.count("\n") > 2


@pytest.mark.parametrize("step", ["write", "sync", "rename"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    if step == "write":
        monkeypatch.setattr("run_directory.files.write_synced", lambda path, data: fail(write_synced(path, data[:1])))
    elif step == "sync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(descriptor: int) -> None:
        events.append(f"{Path(f'/proc/self/fd/{descriptor}').readlink().name} of {os.fstat(descriptor).st_size} bytes")
        fsync(descriptor)

    def noting_replace(path: Path, target: Path) -> Path:
        events.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    write_atomically(tmp_path / "file", b"12345")
    assert events[:2] == [".file.tmp of 5 bytes", "rename"]
    assert [event.partition(" ")[0] for event in events[2:]] == [tmp_path.name]


# --- Claiming a directory


def test_a_claim_makes_the_directory_and_writes_the_configuration(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs" / "one")
    with run.claim(CONFIG, {"actors": 2}):
        assert json.loads(run.config.read_text()) == json.loads(json.dumps({**CONFIG, "learner": {"actors": 2}}))


def test_what_only_the_record_says_may_change(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim(CONFIG, {"actors": 2}).close()
    run.claim(CONFIG, {"actors": 3}).close()


def test_the_same_configuration_is_accepted_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim(CONFIG).close()
    before = run.config.stat().st_ino
    run.claim(CONFIG).close()
    assert run.config.stat().st_ino == before


def test_another_configuration_is_refused_and_the_fields_that_differ_are_named(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim(CONFIG).close()
    said = refusal(run, {**CONFIG, "seed": 4, "batch_size": 8})
    assert said == (
        f"run_dir: {tmp_path} belongs to another configuration: batch_size is None there and 8 here; seed is 3 there and 4 here"
    )


def test_a_field_of_a_part_is_named_by_its_path(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim(CONFIG).close()
    said = refusal(run, {**CONFIG, "agent": replace(AGENT, network=NetworkConfig(hidden_sizes=(9,))).to_json()})
    assert said.endswith(": agent.network.hidden_sizes is [8] there and [9] here")


def test_a_field_that_is_gone_is_named(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim(CONFIG).close()
    assert refusal(run, {"agent": CONFIG["agent"], "seed": 3}).endswith(": total_steps is 100 there and None here")


def test_a_refused_configuration_leaves_the_one_that_was_there(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim(CONFIG).close()
    refusal(run, {**CONFIG, "seed": 4})
    assert json.loads(run.config.read_text())["seed"] == 3


def test_a_refused_claim_leaves_the_directory_to_others(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim(CONFIG).close()
    # The error is kept, as a program that reports it would, and its traceback with every local variable.
    with pytest.raises(ConfigError) as kept:
        run.claim({**CONFIG, "seed": 4})
    run.claim(CONFIG).close()
    assert kept.value


def test_a_second_claim_is_refused_while_the_first_is_held(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with run.claim(CONFIG):
        assert refusal(run, CONFIG) == f"run_dir: {tmp_path} is in use by another learner; give this one its own"
    run.claim(CONFIG).close()


def test_a_claim_by_another_process_holds_until_that_process_dies(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CLAIMER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        assert "is in use by another learner" in refusal(RunDirectory(tmp_path), {})
        other.kill()
        other.wait()
        RunDirectory(tmp_path).claim({}).close()


def test_a_path_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "run"
    assert refusal(RunDirectory(path), CONFIG) == f"run_dir: cannot write to {path}: Not a directory"


def test_a_disk_that_is_full_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail)
    assert refusal(RunDirectory(tmp_path), CONFIG) == f"run_dir: cannot write to {tmp_path}: No space left on device"


@pytest.mark.parametrize("content", [b"", b'{"agent": ', bytes(range(128, 256))], ids=["empty", "torn", "binary"])
def test_a_configuration_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    run = RunDirectory(tmp_path)
    run.config.write_bytes(content)
    assert refusal(run, CONFIG).startswith(f"run_dir: {run.config} is not JSON: ")


def test_a_configuration_that_is_no_object_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.config.write_text("[]")
    assert refusal(run, CONFIG) == f"run_dir: expected a JSON object in {run.config}, came list"


# --- What the run trains


def test_the_agent_configuration_is_read_back(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim(CONFIG).close()
    assert run.agent_config() == AGENT


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^run_dir: .* is not a run directory: cannot read config\.json: No such file"):
        RunDirectory(tmp_path).agent_config()


@pytest.mark.parametrize("content", ["{}", '{"agent": null}', '{"agent": {"environments": ["CartPole-v1"]}}'])
def test_a_configuration_without_an_agent_is_refused(tmp_path: Path, content: str) -> None:
    run = RunDirectory(tmp_path)
    run.config.write_text(content)
    with pytest.raises(ConfigError, match=r"^(agent configuration|environment): expected the fields of (Agent|Environment)Config"):
        run.agent_config()


# --- The journal

LINES = '{"env_steps": 1}\n{"env_steps": 2}\n'


def test_every_line_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(LINES)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"env_steps": 1}, {"env_steps": 2}]


def test_lines_are_read_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(LINES)
    lines = each_metrics(tmp_path / "metrics.jsonl")
    assert next(lines) == {"env_steps": 1}
    # What is written while they are read comes too: they were not all in memory.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"env_steps": 3}\n')
    assert list(lines) == [{"env_steps": 2}, {"env_steps": 3}]


@pytest.mark.parametrize("torn", [b'{"env_steps": 3', b"{", b"3", b'{"name": "\xc3', b"\0\0\0\0", b"\n\n"])
def test_a_torn_last_line_is_passed_over(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LINES.encode() + torn)
    assert read_metrics(path) == [{"env_steps": 1}, {"env_steps": 2}]
    assert read_last_metrics(path) == {"env_steps": 2}


def test_a_torn_line_in_the_middle_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"env_steps": 1}\n{"env_st\n{"env_steps": 3}\n')
    assert read_metrics(path) == [{"env_steps": 1}, {"env_steps": 3}]


def test_a_line_of_brackets_without_end_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"env_steps": 1}\n' + "[" * 50_000 + "\n")
    assert read_metrics(path) == [read_last_metrics(path)] == [{"env_steps": 1}]


def test_a_missing_file_holds_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert read_last_metrics(tmp_path / "metrics.jsonl") is None


def test_a_file_without_a_whole_line_has_no_last_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"env')
    assert read_last_metrics(tmp_path / "metrics.jsonl") is None


def test_the_last_line_of_a_long_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"env_steps": step, "padding": "x" * 100}) + "\n" for step in range(2000)))
    last = read_last_metrics(path)
    assert last is not None
    assert last["env_steps"] == 1999


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"env_steps": 1}\n' + " " * 1_000_000)
    assert read_last_metrics(path) is None


# --- The journal written


def test_lines_go_behind_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES)
    JournalWriter(path).append({"env_steps": 3})
    assert path.read_text() == LINES + '{"env_steps": 3}\n'


def test_a_line_that_the_disk_does_not_take_is_written_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    writer = JournalWriter(path)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space left on device"):
            writer.append({"env_steps": step})
    assert writer.aside == 2
    path.unlink()
    writer.append({"env_steps": 3})
    assert (read_metrics(path), writer.aside) == ([{"env_steps": 1}, {"env_steps": 2}, {"env_steps": 3}], 0)


def test_a_line_that_the_disk_refuses_as_the_file_is_closed_is_kept_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(FileIO):
        def close(self) -> None:
            closed = self.closed
            super().close()
            if not closed:
                raise OSError(errno.EDQUOT, "Disk quota exceeded")

    path = tmp_path / "metrics.jsonl"
    writer = JournalWriter(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, buffering: Refusing(path, mode.replace("b", "")))
        with pytest.raises(OSError, match="quota"):
            writer.append({"env_steps": 1})
    assert writer.aside == 1
    writer.append({"env_steps": 2})
    assert read_metrics(path)[-2:] == [{"env_steps": 1}, {"env_steps": 2}]
    assert writer.aside == 0


def test_the_newest_line_that_a_full_disk_did_not_take_is_found_all_the_same(tmp_path: Path) -> None:
    path, away = tmp_path / "metrics.jsonl", tmp_path / "away"
    writer = JournalWriter(path)
    writer.append({"parameter_version": 1})
    path.rename(away)
    path.symlink_to("/dev/full")
    for version in (2000, 2001):
        with pytest.raises(OSError, match="No space left on device"):
            writer.append({"parameter_version": version, "more": "x" * (3000 - version)})
    away.replace(path)
    assert read_metrics(path) == [{"parameter_version": 1}]
    last = read_last_metrics(path)
    assert last is not None
    assert last["parameter_version"] == 2001


def test_a_line_in_the_reserve_does_not_count_once_later_ones_were_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    writer = JournalWriter(path)
    with pytest.raises(OSError, match="No space left on device"):
        writer.append({"parameter_version": 2})
    path.unlink()
    writer.append({"parameter_version": 3})
    assert read_last_metrics(path) == {"parameter_version": 3}


def test_so_many_lines_are_kept_aside_and_no_more(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "nowhere" / "metrics.jsonl")
    assert not (tmp_path / "nowhere").exists()
    for step in range(1200):
        with pytest.raises(FileNotFoundError):
            writer.append({"env_steps": step})
    (tmp_path / "nowhere").mkdir()
    writer.retry()
    assert [line["env_steps"] for line in read_metrics(tmp_path / "nowhere" / "metrics.jsonl")] == list(range(200, 1200))


class NearlyFull(FileIO):
    """A file on a disk that takes ten bytes more."""

    left = 10

    def write(self, data: Any) -> int:
        if not self.left:
            fail()
        written = super().write(data[: self.left])
        self.left -= written
        return written


def test_what_is_appended_to_a_disk_that_fills_up_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before ")
    with NearlyFull(path, "ab") as file:
        append_whole(file, b"12345")
        with pytest.raises(OSError, match="No space left"):
            append_whole(file, b"1234567")
    assert path.read_bytes() == b"before 12345"


def test_what_a_disk_takes_in_parts_is_written_whole(tmp_path: Path) -> None:
    class InParts(FileIO):
        def write(self, data: Any) -> int:
            return super().write(data[:3])

    with InParts(tmp_path / "file", "ab") as file:
        append_whole(file, b"1234567")
    assert (tmp_path / "file").read_bytes() == b"1234567"
