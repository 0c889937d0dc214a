"""SIGTERM, as a machine that is taken away sends it: nothing is lost, and the next process goes on exactly there."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from learner_server.__main__ import _stop_on_signals
from run_directory.checkpoint import load_checkpoint, save_checkpoint
from run_directory.journal import read_metrics
from tests.programs import ENDLESS, Programs, accounts_balance, exit_code, last, steps_of_actors

# Each starts several programs one after the other, which takes long on a machine that has other things to do.
pytestmark = pytest.mark.timeout(400)

FLAGS = [*ENDLESS, "--stop-at-return", "1000"]
# A tenth of what it steps on is fresh, so the learner is what is waited for.
SLOW = ["--batch-size", "160", "--replay-fraction", "0.9", "--replay-unrolls", "200", "--envs", "16"]
PLACES = 16
# Its checkpoints are of several MB, so that writing them takes a while.
WIDE = ["--hidden-sizes", "512", "512", "--checkpoint-seconds", "0.001"]


@contextmanager
def signals_as_they_were() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rate_at(run_dir: Path, env_steps: int) -> float:
    """Returns what the learning rate is to be after so many steps of the run."""
    config = json.loads((run_dir / "config.json").read_text())
    began_at, total = config["optimiser"]["learning_rate"], config["total_steps"]
    return float(began_at * (1.0 - env_steps / total))


# --- The signals


@pytest.mark.parametrize("in_group", [False, True])
def test_a_second_sigterm_changes_nothing(in_group: bool) -> None:
    with signals_as_they_were():
        stop = _stop_on_signals(in_group=in_group)
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


@pytest.mark.parametrize(("in_group", "ends"), [(False, True), (True, False)])
def test_a_second_ctrl_c_ends_a_learner_by_itself_at_once_but_not_one_of_a_group(in_group: bool, ends: bool) -> None:
    with signals_as_they_were():
        stop = _stop_on_signals(in_group=in_group)
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        assert (signal.getsignal(signal.SIGINT) == signal.SIG_DFL) is ends


# --- Under load


def queue_is_full(run_dir: Path) -> bool:
    line = last(run_dir)
    return bool(line["env_steps"] > 0 and line["queued_trajectories"] >= PLACES and (line["actor_wait_fraction"] or 0.0) > 0.1)


@pytest.mark.system
def test_a_preempted_learner_whose_queue_is_full_loses_nothing_and_its_counters_go_on(programs: Programs, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = ["--actors", "0", *SLOW, *FLAGS, "--total-steps", "10000000"]
    learner = programs.learner(run_dir, *flags)
    address = programs.address(learner)
    actors = [programs.actor(address) for _ in range(2)]
    programs.wait_until(lambda: queue_is_full(run_dir), learner, *actors)
    learner.send_signal(signal.SIGTERM)
    assert exit_code(learner) == 0, programs.text(learner)
    end, lines_before = last(run_dir), len(read_metrics(run_dir / "metrics.jsonl"))
    assert (end["ended"], end["steps_waiting"], end["steps_dropped"], end["steps_lost"]) == ("stopped", 0, 0, 0)
    assert end["steps_received"] == end["steps_trained"] == sum(steps_of_actors(run_dir).values())

    again = programs.learner(run_dir, *flags, "--listen", address)
    programs.wait_until(lambda: last(run_dir)["env_steps"] > end["env_steps"] + 2_000, again, *actors)
    again.send_signal(signal.SIGTERM)
    assert exit_code(again) == 0, programs.text(again)
    lines = read_metrics(run_dir / "metrics.jsonl")
    first, end = lines[lines_before], lines[-1]
    assert (first["parameter_version"], first["env_steps"], first["learner_updates"]) == tuple(
        lines[lines_before - 1][name] for name in ("parameter_version", "env_steps", "learner_updates")
    )
    # What stands in line when the learner stops is sent back, and was never received.
    for name in ("env_steps", "parameter_version", "learner_updates", "episodes", "seconds"):
        values = [line[name] for line in lines]
        assert values == sorted(values), name
    assert accounts_balance(run_dir)
    assert first["steps_received"] >= lines[lines_before - 1]["steps_received"]
    assert (end["ended"], end["dropped_by_rule"].get("restart", 0), end["steps_lost"], end["steps_waiting"]) == ("stopped", 0, 0, 0)
    assert sum(steps_of_actors(run_dir).values()) == end["steps_received"]
    assert end["learner_updates"] - first["learner_updates"] == end["parameter_version"] - first["parameter_version"]
    for before, line in pairwise(lines):
        if line["learner_updates"] > before["learner_updates"]:
            rates = rate_at(run_dir, line["env_steps"]), rate_at(run_dir, before["env_steps"])
            assert rates[0] - 1e-12 <= line["learning_rate"] <= rates[1] + 1e-12


def stop_within_a_save(programs: Programs, learner: subprocess.Popen[bytes], run_dir: Path) -> None:
    """Holds a learner at a moment at which it writes a checkpoint."""

    def held() -> bool:
        if not list((run_dir / "checkpoints").glob(".writing-*")):
            return False
        learner.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, learner.pid, os.WSTOPPED | os.WNOWAIT)
        if list((run_dir / "checkpoints").glob(".writing-*")):
            return True
        learner.send_signal(signal.SIGCONT)
        return False

    programs.wait_until(held, learner)


@pytest.mark.system
def test_a_learner_preempted_while_it_writes_a_checkpoint_finishes_it_and_stops_in_good_order(
    programs: Programs, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    learner = programs.learner(run_dir, "--actors", "1", *WIDE, *FLAGS)
    programs.wait_until(lambda: last(run_dir)["env_steps"] > 0, learner)
    stop_within_a_save(programs, learner, run_dir)
    learner.send_signal(signal.SIGTERM)
    learner.send_signal(signal.SIGCONT)
    learner.send_signal(signal.SIGTERM)
    assert exit_code(learner) == 0, programs.text(learner)
    end = last(run_dir)
    assert (end["ended"], end["steps_waiting"], end["steps_dropped"]) == ("stopped", 0, 0)
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names[-1] == f"version-{end['parameter_version']:012d}"
    assert not any(name.startswith(".writing-") for name in names)


# --- What the next process has


def contents(checkpoint: Path) -> dict[str, Any]:
    """Returns all that a checkpoint says, but for how long the run has lasted and what its weights are called."""
    state = json.loads((checkpoint / "state.json").read_text())
    del state["seconds"], state["version"]
    return {"state": state, **{path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}}


def draw_from_torch(path: Path) -> None:
    """Makes a checkpoint one of a learner that had drawn random numbers, for a learner of its own accord draws none in training."""
    checkpoint = load_checkpoint(path)
    shutil.rmtree(path)
    state = torch.Generator().manual_seed(4711).get_state()
    save_checkpoint(path.parent, replace(checkpoint, random={"cpu": state}), keep=3)


@pytest.mark.system
def test_a_learner_that_goes_on_has_all_that_the_last_one_had_bit_for_bit(programs: Programs, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = [*FLAGS, "--replay-fraction", "0.5", "--replay-unrolls", "100"]
    learner = programs.learner(run_dir, "--actors", "1", *flags)
    programs.wait_until(lambda: last(run_dir).get("learner_updates", 0) > 2, learner)
    learner.send_signal(signal.SIGTERM)
    assert exit_code(learner) == 0, programs.text(learner)
    newest = run_dir / "checkpoints" / f"version-{last(run_dir)['parameter_version']:012d}"
    draw_from_torch(newest)

    lines = len(read_metrics(run_dir / "metrics.jsonl"))
    again = programs.learner(run_dir, "--actors", "0", *flags, "--checkpoint-seconds", "1000")
    programs.wait_until(lambda: len(read_metrics(run_dir / "metrics.jsonl")) > lines, again)
    # It trains on nothing, for it has no actor; its last checkpoint is what it took over, as a version of its own.
    again.send_signal(signal.SIGTERM)
    assert exit_code(again) == 0, programs.text(again)
    after = run_dir / "checkpoints" / f"version-{last(run_dir)['parameter_version']:012d}"
    assert after != newest
    assert contents(after) == contents(newest)
    assert contents(after)["state"]["replay_random_states"] != [None]
