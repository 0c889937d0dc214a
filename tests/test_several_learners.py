"""Learners started by torchrun, with actors as processes: they train as one, and one that is killed ends them all."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from run_directory.journal import read_metrics
from tests.programs import ENDLESS, Programs, accounts_balance, children, exit_code, last, steps_of_actors
from tests.service import free_port

pytestmark = pytest.mark.system


def learners(programs: Programs, run_dir: Path, *flags: str, ranks: int = 2) -> subprocess.Popen[bytes]:
    """Starts torchrun with so many learners."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(free_port())]
    module = ["-m", "learner_server", "--preset", "cartpole", "--run-dir", str(run_dir), "--checkpoint-seconds", "0.3", *flags]
    return programs.launch([*torchrun, *module])


def pids(programs: Programs, torchrun: subprocess.Popen[bytes]) -> list[int]:
    """Returns the process ids of its learners, in the order of their ranks."""
    found = [pid for pid in children(torchrun.pid) if b"learner_server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    programs.strays.update(found)
    ranks = {int(_environment(pid)["RANK"]): pid for pid in found}
    return [ranks[rank] for rank in sorted(ranks)]


def _environment(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def balanced(run_dir: Path) -> bool:
    return last(run_dir).get("actors_by_rank") == [1, 1]


def test_two_learners_solve_what_one_does_and_end_together(programs: Programs, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    torchrun = learners(programs, run_dir, "--actors", "2", "--seed", "1", "--batch-size", "16", "--envs", "8")
    assert exit_code(torchrun) == 0, programs.text(torchrun)
    lines = read_metrics(run_dir / "metrics.jsonl")
    assert lines[-1]["ended"] == "solved"
    assert lines[-1]["mean_return_100"] >= 475
    assert any(line["actors_by_rank"] == [1, 1] for line in lines)
    assert json.loads((run_dir / "config.json").read_text())["learner"]["learners"] == 2
    assert accounts_balance(run_dir)
    # Those of both ranks' actors, in one checkpoint.
    steps = steps_of_actors(run_dir)
    assert len(steps) == 2
    assert sum(steps.values()) >= lines[-1]["steps_trained"]
    assert min(steps.values()) > 0.2 * max(steps.values())


def test_one_rank_that_loses_its_actor_holds_up_nobody(programs: Programs, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    torchrun = learners(programs, run_dir, *ENDLESS, "--stop-at-return", "1000", "--listen", f"127.0.0.1:{free_port()}")
    programs.wait_until(lambda: len(addresses(programs, torchrun)) == 2, torchrun)
    address = addresses(programs, torchrun)[0]
    actors = [programs.actor(address), programs.actor(address)]
    programs.wait_until(lambda: balanced(run_dir) and last(run_dir)["env_steps"] > 20_000, torchrun, *actors)
    actors[1].send_signal(signal.SIGKILL)
    actors[1].wait()
    steps = last(run_dir)["env_steps"]
    programs.wait_until(lambda: last(run_dir)["env_steps"] > steps + 50_000, torchrun, actors[0])
    # Another comes to where one is missing, once the learners know that it is.
    programs.wait_until(lambda: sum(last(run_dir)["actors_by_rank"]) == 1, torchrun, actors[0])
    actors.append(programs.actor(address))
    programs.wait_until(lambda: balanced(run_dir), torchrun, actors[0], actors[2])
    assert accounts_balance(run_dir)
    # And told to stop, all end in good order.
    torchrun.send_signal(signal.SIGTERM)
    exit_code(torchrun)
    end = last(run_dir)
    assert (end["ended"], end["steps_waiting"]) == ("stopped", 0)


def addresses(programs: Programs, torchrun: subprocess.Popen[bytes]) -> list[str]:
    """Returns where each learner says that it listens, by rank."""
    said = [line.split() for line in programs.text(torchrun).splitlines() if " listens on " in line]
    return [words[-1] for words in sorted(said)]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_group_and_the_run_goes_on_later(programs: Programs, tmp_path: Path, rank: int) -> None:
    run_dir = tmp_path / "run"
    flags = ["--actors", "2", *ENDLESS, "--stop-at-return", "1000"]
    torchrun = learners(programs, run_dir, *flags)
    programs.wait_until(lambda: last(run_dir)["env_steps"] > 30_000, torchrun)
    os.kill(pids(programs, torchrun)[rank], signal.SIGKILL)
    assert exit_code(torchrun) != 0
    killed_at: dict[str, Any] = last(run_dir)
    again = learners(programs, run_dir, *flags)
    programs.wait_until(lambda: last(run_dir)["env_steps"] > killed_at["env_steps"] + 30_000, again)
    lines = read_metrics(run_dir / "metrics.jsonl")
    for name in ("env_steps", "parameter_version", "learner_updates", "steps_received", "episodes"):
        values = [line[name] for line in lines]
        assert values == sorted(values), name
    assert accounts_balance(run_dir)
    assert "resumes from version" in programs.text(again)
