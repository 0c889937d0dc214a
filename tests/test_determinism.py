"""Equal seeds give equal weights, bit for bit: over the wire, again and again, and in a single process."""

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples.single_process import train, weights_digest
from learner_server.__main__ import parse
from run_directory.layout import RunDirectory
from tests.programs import ENDLESS, Programs, children, exit_code, last

# With all that learns, remembers or draws: weights, running statistics, recurrent state, replay.
FLAGS = [
    *("--deterministic", "--actors", "2", "--envs", "4", "--max-in-flight", "1", "--unroll-length", "10"),
    *("--batch-size", "12", "--replay-fraction", "0.33", "--stop-at-return", "None"),
    *("--lstm-size", "16", "--normalise-observations", "--normalise-returns"),
]
STEPS = ["--total-steps", "3200"]  # 40 updates


def newest_weights(run_dir: Path) -> bytes:
    newest = max(RunDirectory(run_dir).checkpoints.glob("version-*"))
    return (newest / "parameters.safetensors").read_bytes()


@contextmanager
def whole_run(folder: Path) -> Iterator[Path]:
    """Yields the directory of a run that has ended, of a learner and two actors."""
    programs = Programs(folder)
    try:
        learner = programs.learner(folder / "run", *FLAGS, *STEPS, "--seed", "7")
        assert exit_code(learner) == 0, programs.text(learner)
        yield folder / "run"
    finally:
        programs.end()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with whole_run(tmp_path_factory.mktemp("lockstep")) as path:
        yield path


@pytest.mark.system
def test_equal_seeds_give_equal_weights_over_the_wire(run_dir: Path, tmp_path: Path) -> None:
    with whole_run(tmp_path) as again:
        assert last(run_dir)["learner_updates"] >= 40
        assert newest_weights(run_dir) == newest_weights(again)


@pytest.mark.system
def test_a_single_process_comes_to_the_same_weights(run_dir: Path) -> None:
    learner = train(parse(["--preset", "cartpole", *FLAGS, *STEPS, "--seed", "7"]))
    assert hashlib.sha256(newest_weights(run_dir)).hexdigest() == weights_digest(learner)
    assert learner.version == last(run_dir)["parameter_version"]


def test_other_seeds_give_other_weights_and_equal_ones_the_same() -> None:
    flags = ["--preset", "cartpole", *FLAGS, "--total-steps", "240"]
    digests = [weights_digest(train(parse([*flags, "--seed", seed]))) for seed in ("7", "7", "8")]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


@pytest.mark.system
def test_lockstep_goes_on_with_an_actor_that_took_the_place_of_a_killed_one_and_ends_when_told_to(tmp_path: Path) -> None:
    programs = Programs(tmp_path)
    try:
        run_dir = tmp_path / "run"
        learner = programs.learner(run_dir, *FLAGS, *ENDLESS)
        programs.wait_until(lambda: last(run_dir)["env_steps"] > 0, learner)
        victim = children(learner.pid)[0]
        os.kill(victim, signal.SIGKILL)
        programs.wait_until(lambda: victim not in children(learner.pid) and len(children(learner.pid)) == 2, learner)
        steps = last(run_dir)["env_steps"]
        programs.wait_until(lambda: last(run_dir)["env_steps"] > steps + 500, learner)
        learner.terminate()
        assert exit_code(learner) == 0, programs.text(learner)
        assert last(run_dir)["ended"] == "stopped"
    finally:
        programs.end()
