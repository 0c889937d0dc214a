"""The programs as their users run them: processes, signals, exit codes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from benchmarks.witness import read_book
from learner_server.__main__ import main as learner_main
from learner_server.resume import VERSIONS_BETWEEN_LINES, find_starting_point
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc
from run_directory.checkpoint import load_newest_checkpoint
from run_directory.counters import read_counters
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory
from tests.programs import (
    ENDLESS,
    Programs,
    accounts_balance,
    children,
    exit_code,
    has_said,
    is_running,
    last,
    steps_of_actors,
)

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Programs, subprocess.Popen[bytes]]]:
    """A whole local run, two actors and all, that was solved: its directory, and the learner that has ended."""
    programs = Programs(tmp_path_factory.mktemp("finished"))
    learner = programs.learner(programs.folder / "run", "--actors", "2", "--stop-at-return", "60", "--settle-steps", "20000")
    exit_code(learner)
    yield programs.folder / "run", programs, learner
    programs.end()


def test_who_is_started_again_plays_other_episodes(programs: Programs, tmp_path: Path) -> None:
    seeds = list[int]()
    for incarnations in ((1, 2, 3), (4,)):
        learner = programs.learner(tmp_path / "run", "--actors", "0", *ENDLESS)
        with grpc.insecure_channel(programs.address(learner)) as channel:
            join = partial(pb.JoinRequest, protocol_version=1, actor_id="a")
            stub = pb_grpc.LearnerStub(channel)
            seeds += [stub.Join(join(incarnation=incarnation), timeout=60).seed for incarnation in incarnations]
        learner.send_signal(signal.SIGTERM)
        assert exit_code(learner) == 0, programs.text(learner)
    assert len(set(seeds)) == 4


Finished = tuple[Path, Programs, subprocess.Popen[bytes]]


def test_a_local_run_ends_by_itself_with_its_records_in_order(finished: Finished) -> None:
    run_dir, programs, learner = finished
    assert learner.returncode == 0, programs.text(learner)
    lines = read_metrics(run_dir / "metrics.jsonl")
    assert lines[-1]["ended"] == "solved"
    assert lines[-1]["mean_return_100"] >= 60
    assert accounts_balance(run_dir)
    assert json.loads((run_dir / "config.json").read_text())["agent"]["environments"][0]["environment_id"] == "CartPole-v1"
    assert list((run_dir / "tensorboard").iterdir())
    assert (run_dir / "curve.png").read_bytes().startswith(b"\x89PNG")
    checkpoint = load_newest_checkpoint(run_dir / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.version == lines[-1]["parameter_version"]


def test_a_run_that_reached_its_target_settles_before_it_ends(finished: Finished) -> None:
    lines = read_metrics(finished[0] / "metrics.jsonl")
    assert lines[-1]["mean_return_100"] >= 60
    rates = [line["learning_rate"] for line in lines if line["learning_rate"] is not None]
    began_at = json.loads((finished[0] / "config.json").read_text())["optimiser"]["learning_rate"]
    assert rates[-1] < 0.1 * began_at


def test_a_run_directory_of_another_configuration_is_refused_by_name(finished: Finished) -> None:
    run_dir, programs, _ = finished
    other = programs.learner(run_dir, "--discount", "0.5")
    assert exit_code(other) == 2
    assert "belongs to another configuration: loss.discount is 0.99 there and 0.5 here" in programs.text(other)


def test_evaluation_plays_the_newest_checkpoint_of_a_run(finished: Finished) -> None:
    run_dir, programs, _ = finished
    evaluation = programs.start("actor_client.evaluate", "--run-dir", str(run_dir), "--episodes", "3", "--json")
    assert exit_code(evaluation) == 0, programs.text(evaluation)
    summary = json.loads(programs.text(evaluation))
    assert summary["episodes"] == 3
    assert summary["parameter_version"] == last(run_dir)["parameter_version"]


def test_a_run_that_falls_short_of_its_target_does_not_exit_0(programs: Programs, tmp_path: Path) -> None:
    learner = programs.learner(tmp_path / "run", "--actors", "1", "--total-steps", "5000")
    assert exit_code(learner) == 1, programs.text(learner)
    assert last(tmp_path / "run")["ended"] == "total_steps"


def test_a_run_whose_last_checkpoint_cannot_be_written_does_not_exit_0(programs: Programs, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "checkpoints").write_text("a file where a folder should be")
    learner = programs.learner(run_dir, "--actors", "1", "--stop-at-return", "15")
    assert exit_code(learner) == 1, programs.text(learner)
    said = " ".join(programs.text(learner).split())
    assert "checkpoint: cannot write to" in said
    assert "no whole one was ever written" in said
    assert last(run_dir)["disk_failures"]["checkpoint"] > 0
    assert last(run_dir)["checkpoint_age_seconds"] is None
    assert last(run_dir)["ended"] == "solved"


def test_a_run_that_only_skips_updates_is_ended_and_does_not_exit_0(programs: Programs, tmp_path: Path) -> None:
    learner = programs.learner(tmp_path / "run", "--actors", "1", *ENDLESS, "--learning-rate", "1e30")
    assert exit_code(learner) == 1, programs.text(learner)
    assert "100 updates in a row were not finite" in programs.text(learner)


def test_local_actors_reach_a_learner_that_listens_on_another_address(programs: Programs, tmp_path: Path) -> None:
    flags = ["--listen", "127.0.0.2:0", "--insecure", "--actors", "1", "--stop-at-return", "15"]
    learner = programs.learner(tmp_path / "run", *flags)
    assert exit_code(learner) == 0, programs.text(learner)


def test_an_actor_started_by_hand_joins_a_running_learner_and_its_steps_count(programs: Programs, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    learner = programs.learner(run_dir, "--actors", "1", *ENDLESS, "--stop-at-return", "1000")
    address = programs.address(learner)
    programs.wait_until(lambda: last(run_dir)["env_steps"] > 0, learner)
    by_hand = programs.actor(address)
    programs.wait_until(lambda: sum(steps > 0 for steps in steps_of_actors(run_dir).values()) == 2, learner, by_hand)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_actor_is_replaced_and_training_goes_on(programs: Programs, tmp_path: Path, number: signal.Signals) -> None:
    run_dir = tmp_path / "run"
    learner = programs.learner(run_dir, "--actors", "2", *ENDLESS, "--stop-at-return", "1000")
    programs.wait_until(lambda: last(run_dir)["env_steps"] > 0, learner)
    before = set(children(learner.pid))
    victim = min(before)
    os.kill(victim, number)
    programs.wait_until(lambda: set(children(learner.pid)) - before, learner)
    steps = last(run_dir)["env_steps"]
    programs.wait_until(lambda: last(run_dir)["env_steps"] > steps + 10_000, learner)
    assert accounts_balance(run_dir)


def test_local_actors_end_with_a_learner_that_is_killed(programs: Programs, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    learner = programs.learner(run_dir, "--actors", "2", *ENDLESS, "--stop-at-return", "1000")
    programs.wait_until(lambda: last(run_dir)["env_steps"] > 0, learner)
    actors = children(learner.pid)
    assert len(actors) == 2
    programs.strays.update(actors)
    learner.kill()
    programs.wait_until(lambda: not any(is_running(pid) for pid in actors))


def test_after_a_killed_learner_actors_return_and_nothing_goes_back(programs: Programs, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = ["--actors", "0", *ENDLESS, "--stop-at-return", "1000"]
    learner = programs.learner(run_dir, *flags)
    address = programs.address(learner)
    actors = [programs.actor(address), programs.actor(address)]
    programs.wait_until(lambda: last(run_dir)["env_steps"] > 20_000, learner, *actors)
    learner.kill()
    learner.wait()
    killed_at, steps = len(read_metrics(run_dir / "metrics.jsonl")), last(run_dir)["env_steps"]
    again = programs.learner(run_dir, *flags, "--listen", address)
    programs.wait_until(lambda: last(run_dir)["env_steps"] > steps + 40_000, again, *actors)
    lines = read_metrics(run_dir / "metrics.jsonl")
    assert len(lines) > killed_at
    for name in ("env_steps", "parameter_version", "learner_updates", "steps_received", "episodes", "seconds"):
        values = [line[name] for line in lines]
        assert values == sorted(values), name
    assert lines[killed_at]["parameter_version"] >= lines[killed_at - 1]["parameter_version"] + VERSIONS_BETWEEN_LINES
    assert accounts_balance(run_dir)


def test_a_killed_learner_knows_of_all_that_it_had_acknowledged(programs: Programs, tmp_path: Path) -> None:
    run_dir, book = tmp_path / "run", tmp_path / "book"
    learner = programs.learner(run_dir, "--actors", "0", *ENDLESS, "--stop-at-return", "1000", "--log-seconds", "1")
    actor = programs.start("benchmarks.witness", str(book), "--learner", programs.address(learner))
    programs.wait_until(lambda: last(run_dir)["env_steps"] > 20_000, learner, actor)
    learner.kill()
    learner.wait()
    actor.kill()
    actor.wait()
    counted = read_counters(run_dir / "counters")
    assert counted is not None
    assert sum(read_book(book).values()) <= counted["steps_received"]
    start = find_starting_point(RunDirectory(run_dir))
    assert start.steps_received == counted["steps_received"]
    assert start.steps_received == start.steps_trained + sum(start.steps_dropped.values())


def test_a_run_that_is_over_ends_its_actors_with_code_0(programs: Programs, tmp_path: Path) -> None:
    learner = programs.learner(tmp_path / "run", "--actors", "0", "--stop-at-return", "100")
    actors = []
    for _ in range(2):
        actor = programs.actor(programs.address(learner))
        programs.wait_until(partial(has_said, programs, actor, "joined run"), actor)
        # Held, for the first alone could end the run before a slow machine has started the second.
        actor.send_signal(signal.SIGSTOP)
        actors.append(actor)
    for actor in actors:
        actor.send_signal(signal.SIGCONT)
    assert exit_code(learner) == 0, programs.text(learner)
    assert [exit_code(actor) for actor in actors] == [0, 0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_learner_told_to_stop_drains_checkpoints_and_goes_on_later_where_it_was(
    programs: Programs, tmp_path: Path, number: signal.Signals
) -> None:
    run_dir = tmp_path / "run"
    flags = ["--actors", "1", *ENDLESS, "--stop-at-return", "1000"]
    learner = programs.learner(run_dir, *flags)
    programs.wait_until(lambda: last(run_dir)["env_steps"] > 10_000, learner)
    learner.send_signal(number)
    assert exit_code(learner) == 0, programs.text(learner)
    end = last(run_dir)
    assert (end["ended"], end["steps_waiting"], end["steps_dropped"]) == ("stopped", 0, 0)
    if number == signal.SIGINT:
        return
    again = programs.learner(run_dir, *flags)
    programs.wait_until(lambda: last(run_dir)["env_steps"] > end["env_steps"], again)
    first = next(line for line in read_metrics(run_dir / "metrics.jsonl") if line["seconds"] > end["seconds"])
    assert end["parameter_version"] <= first["parameter_version"] < end["parameter_version"] + VERSIONS_BETWEEN_LINES
    assert first["steps_lost"] == 0


def test_an_actor_told_to_stop_exits_0(programs: Programs, tmp_path: Path) -> None:
    learner = programs.learner(tmp_path / "run", "--actors", "0", *ENDLESS, "--stop-at-return", "1000")
    actor = programs.actor(programs.address(learner))
    programs.wait_until(lambda: last(tmp_path / "run")["env_steps"] > 0, learner, actor)
    actor.send_signal(signal.SIGTERM)
    assert exit_code(actor) == 0, programs.text(actor)


def test_an_actor_that_waits_for_a_learner_exits_0_when_told_to_stop(programs: Programs) -> None:
    actor = programs.actor("127.0.0.1:1")
    programs.wait_until(lambda: "no answer from 127.0.0.1:1" in programs.text(actor), actor)
    actor.send_signal(signal.SIGTERM)
    assert exit_code(actor) == 0, programs.text(actor)


@pytest.mark.parametrize(
    ("module", "flags", "said"),
    [
        ("learner_server", ["--env", "NoSuchThing-v0"], "environment: cannot make 'NoSuchThing-v0'"),
        ("actor_client", ["--learner", "nowhere"], "learner: expected HOST:PORT, came 'nowhere'"),
        ("actor_client.evaluate", ["--run-dir", "/dev/null/run"], "run_dir: /dev/null/run is not a run directory"),
    ],
)
def test_a_wrong_command_line_gets_one_line_and_code_2(programs: Programs, module: str, flags: list[str], said: str) -> None:
    program = programs.start(module, *flags)
    assert exit_code(program) == 2
    text = programs.text(program)
    assert said in text
    assert len(text.strip().splitlines()) == 1, text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--env", "CartPole-v1", "--env-kwargs", '{"x": 1}'], "environment: cannot make 'CartPole-v1'"),
        (["--env", "my_module:Mine-v0"], "this machine allows it with --allow-module my_module"),
        (["--env", "CartPole-v1", "--c-bar", "2"], "rho_bar: expected at least c_bar (2.0"),
        (["--env", "CartPole-v1", "--listen", "0.0.0.0:0"], "listen: 0.0.0.0:0 can be reached from other machines"),
        (["--env", "CartPole-v1", "--run-dir", "/dev/null/run"], "run_dir: cannot write to /dev/null/run"),
        (["--env", "CartPole-v1", "--token-file", "/dev/null"], "token_file: expected /dev/null to hold one word"),
        (["--preset", "nothing"], "preset: expected one of"),
    ],
)
def test_every_wrong_setting_of_a_learner_gets_one_line_and_code_2(
    flags: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["impala-learner", *flags])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        learner_main()
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert said in text
    assert len(text.strip().splitlines()) == 1


def test_a_machine_set_up_for_actors_alone_is_told_what_a_learner_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("learner_server.__main__._EXTRA", ("rich", "no_such_package"))
    monkeypatch.setattr(sys, "argv", ["impala-learner", "--env", "CartPole-v1"])
    with pytest.raises(SystemExit) as ended:
        learner_main()
    assert ended.value.code == 2
    expected = "impala-learner: not installed here: no_such_package; pip install 'impala-grpc[learner]'\n"
    assert capsys.readouterr().err == expected
