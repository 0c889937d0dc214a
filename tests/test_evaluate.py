"""Evaluation: as many episodes as asked for, none favoured; and what its command line says."""

import json
import logging
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
import torch

import actor_client.evaluate
import actor_client.scores
from actor_client.evaluate import EvaluateConfig, Evaluation, evaluate, main, play, policy
from actor_client.scores import confidence_interval, summarise
from impala.config import AgentConfig, EnvironmentConfig, NetworkConfig
from impala.distributions import Categorical
from impala.environments import VectorEnvironment, agent_spec
from impala.errors import CheckpointError, ConfigError
from impala.networks import Network, State, build_network
from run_directory.checkpoint import Checkpoint, save_checkpoint
from run_directory.layout import RunDirectory

FIRST_SEED = 500


class Scripted(gymnasium.Env[np.ndarray, np.int64]):
    """Environment i of a vector has episodes of 1 + i % 7 steps and of return 1000 i + the sum of its actions + a bonus."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - Gymnasium's own form
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None, bonus: float = 0.0) -> None:
        self.render_mode = render_mode
        self._bonus = bonus
        self._index = 0
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self._index = seed - FIRST_SEED  # Gymnasium seeds environment i with the vector's seed + i
        self._step = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._step += 1
        done = self._step == 1 + self._index % 7
        return np.zeros(2, np.float32), float(action) + done * (1000.0 * self._index + self._bonus), done, False, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.full((4, 4, 3), self._step, dtype=np.uint8)


ID, OTHER_ID = "tests/ScriptedEvaluation-v0", "tests/OtherEvaluation-v0"
gymnasium.register(ID, entry_point=Scripted, disable_env_checker=True)
gymnasium.register(OTHER_ID, entry_point=Scripted, disable_env_checker=True, kwargs={"bonus": 0.5})

AGENT = AgentConfig(environments=(EnvironmentConfig(environment_id=ID),), network=NetworkConfig(hidden_sizes=()))
TASKS = AgentConfig(
    environments=(EnvironmentConfig(environment_id=ID), EnvironmentConfig(environment_id=OTHER_ID)),
    network=NetworkConfig(hidden_sizes=(), last_action_reward=True),
)


def make_network(agent: AgentConfig = AGENT, *, preference: float = 0.0) -> Network:
    """Returns a network of logits (0, preference) whatever it sees; where there are tasks, (0, 0) in all but the last."""
    network = build_network(agent.network, agent_spec(agent))
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        # The task is the last entry by name, and one-hot.
        (network.policy_head.bias[1:] if agent is AGENT else network.policy_head.weight[1, -1:]).fill_(preference)
    return network


@torch.inference_mode()
def played(
    episodes: int, *, envs: int = 64, network: Any = None, preference: float = 0.0, greedy: bool = True, seed: int = FIRST_SEED
) -> list[float]:
    environment = VectorEnvironment(AGENT.environments[0], envs)
    try:
        network = network or make_network(preference=preference)
        return play(environment, policy(network, envs, greedy=greedy, seed=seed), episodes, seed)
    finally:
        environment.close()


@pytest.mark.parametrize(("episodes", "envs"), [(1, 1), (5, 64), (64, 64), (65, 64), (150, 64), (7, 2)])
def test_every_environment_plays_a_number_of_episodes_fixed_beforehand(episodes: int, envs: int) -> None:
    """The first to finish would be many times as many of the environments with the shortest episodes."""
    by_environment = Counter(int(value // 1000) for value in played(episodes, envs=envs))
    assert by_environment == Counter(index % envs for index in range(episodes))


def test_returns_are_the_sums_of_an_episodes_rewards() -> None:
    assert sorted(played(10, preference=1.0)) == [1000.0 * index + 1 + index % 7 for index in range(10)]


def test_greedy_play_takes_the_most_probable_action_always() -> None:
    steps = sum(1 + index % 7 for index in range(50))
    assert sum(value % 1000 for value in played(50, preference=0.5)) == steps
    assert sum(value % 1000 for value in played(50, preference=-0.5)) == 0


def test_sampled_play_draws_from_the_policy() -> None:
    """Of 1,996 steps, four standard deviations around the share of softmax(0, 1)."""
    steps = sum(1 + index % 7 for index in range(500))
    ones = sum(value % 1000 for value in played(500, envs=500, preference=1.0, greedy=False))
    assert ones / steps == pytest.approx(np.e / (1 + np.e), abs=0.04)


def test_the_same_seed_plays_the_same_episodes() -> None:
    first, again, other = (played(64, greedy=False, seed=seed) for seed in (FIRST_SEED, FIRST_SEED, FIRST_SEED + 7))
    assert first == again
    assert [value % 1000 for value in first] != [value % 1000 for value in other]


class Patient:
    """A recurrent policy that takes action 1 from the third step of every episode on."""

    distribution = Categorical((2,), single=True)

    def initial_state(self, environments: int) -> State:
        return {"taken": torch.zeros(environments)}

    def act(self, observations: Any, is_first: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        taken = state["taken"] * ~is_first
        return torch.stack([torch.zeros_like(taken), taken - 1.5], -1), {"taken": taken + 1}


def test_the_recurrent_state_is_carried_from_step_to_step_and_left_behind_by_an_episode() -> None:
    lengths = [1 + index % 7 for index in range(14)] * 2
    assert sorted(value % 1000 for value in played(28, envs=14, network=Patient())) == sorted(max(0, n - 2) for n in lengths)


# --- the program


def make_run(path: Path, agent: AgentConfig = AGENT, *, preference: float = 0.0, network: Network | None = None) -> Path:
    """Makes a run directory with one checkpoint, of another network than the run's where one is given."""
    directory = RunDirectory(path)
    directory.claim({"agent": agent.to_json()}).close()
    network = network or make_network(agent, preference=preference)
    parameters = network.state_dict()
    state = {"env_steps": 1234}
    save_checkpoint(
        directory.checkpoints, Checkpoint(version=7, parameters=parameters, optimiser={}, random={}, state=state), keep=1
    )
    return path


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Returns the exit code of impala-evaluate."""
    monkeypatch.setattr(sys, "argv", ["impala-evaluate", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(str(end.code))
    return 0


def make_empty_run(path: Path) -> Path:
    RunDirectory(path).claim({"agent": AGENT.to_json()}).close()
    return path


def make_config(content: str) -> Any:
    def make(path: Path) -> Path:
        path.mkdir()
        (path / "config.json").write_text(content)
        return path

    return make


BAD_RUNS = {
    "nothing there": (lambda path: path, "is not a run directory"),
    "no checkpoint": (make_empty_run, "holds no checkpoint"),
    "not JSON": (make_config("{"), "is not JSON"),
    "not an object": (make_config("[1]"), "expected a JSON object"),
    "no agent": (make_config("{}"), "agent configuration: expected the fields of AgentConfig"),
}


@pytest.mark.parametrize("name", list(BAD_RUNS))
def test_a_bad_run_directory_gets_one_line_and_code_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, text = BAD_RUNS[name]
    path = make(tmp_path / "run")
    with pytest.raises(ConfigError, match=text):
        evaluate(EvaluateConfig(run_dir=path))
    assert run_main(monkeypatch, "--run-dir", str(path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("impala-evaluate: ")
    assert text in line


@pytest.mark.parametrize(("flag", "value"), [("--episodes", "0"), ("--seed", "-1"), ("--envs", "-1"), ("--threads", "0")])
def test_a_number_that_cannot_work_gets_one_line_and_code_2(
    flag: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    assert run_main(monkeypatch, "--run-dir", str(run), flag, value) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"impala-evaluate: {flag.removeprefix('--')}: expected ")
    assert line.endswith(f"came {value}")


def test_a_checkpoint_of_another_network_gets_one_line_and_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", network=build_network(NetworkConfig(hidden_sizes=(3,)), agent_spec(AGENT)))
    with pytest.raises(CheckpointError, match="another network"):
        evaluate(EvaluateConfig(run_dir=run))
    assert run_main(monkeypatch, "--run-dir", str(run)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("impala-evaluate: ")


ORIGIN = {"parameter_version": 7, "env_steps": 1234, "greedy": True}


def test_the_summary_is_printed_as_one_json_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", preference=1.0)
    flags = ["--episodes", "3", "--seed", str(FIRST_SEED), "--greedy", "--json"]
    assert run_main(monkeypatch, "--run-dir", str(run), *flags) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == {"environment": ID, **ORIGIN, **summarise(ID, [1.0, 1002.0, 2003.0], seed=FIRST_SEED)}


def test_the_summary_is_printed_as_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", preference=-50.0)
    assert run_main(monkeypatch, "--run-dir", str(run), "--episodes", "3", "--seed", str(FIRST_SEED), "--no-greedy") == 0
    low, high = confidence_interval([0.0, 1000.0, 2000.0], seed=FIRST_SEED)
    assert capsys.readouterr().out == (
        "tests/ScriptedEvaluation-v0, version 7 (1,234 steps), sampled: mean return 1000.0 over 3 episodes "
        f"(95% confidence {low:.1f} to {high:.1f}, median 1000.0, std 816.5, min 0.0, max 2000.0)\n"
    )


def test_every_task_of_a_run_is_played_as_the_network_was_trained_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network takes action 1 in the second task alone, by the task's number in its observation."""
    run = make_run(tmp_path / "run", TASKS, preference=1.0)
    config = EvaluateConfig(run_dir=run, episodes=3, seed=FIRST_SEED)
    first, second = (
        {"environment": name, **summarise(name, returns, seed=FIRST_SEED)}
        for name, returns in ((ID, [0.0, 1000.0, 2000.0]), (OTHER_ID, [1.5, 1002.5, 2003.5]))
    )
    assert evaluate(config) == {**ORIGIN, "tasks": [first, second]}
    assert evaluate(replace(config, task=OTHER_ID)) == {**ORIGIN, **second}
    assert run_main(monkeypatch, "--run-dir", str(run), "--episodes", "3", "--seed", str(FIRST_SEED)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [(line.partition(",")[0], "mean return" in line) for line in lines] == [(ID, True), (OTHER_ID, True)]


def test_a_task_that_the_run_has_not_is_refused_by_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TASKS)
    with pytest.raises(ConfigError, match=f"task: expected one of {ID}, {OTHER_ID}, came 'CartPole-v1'"):
        evaluate(EvaluateConfig(run_dir=run, task="CartPole-v1"))


@pytest.mark.parametrize(("episodes", "envs", "expected"), [(100, 0, 64), (5, 0, 5), (100, 7, 7), (5, 7, 5), (200, 100, 100)])
def test_environments_side_by_side_are_as_asked_for_but_never_more_than_episodes(episodes: int, envs: int, expected: int) -> None:
    assert EvaluateConfig(run_dir=Path("run"), envs=envs).environments(episodes) == expected


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 100])
def test_threads_share_the_episodes_and_no_two_play_the_same(threads: int, tmp_path: Path) -> None:
    """Returns are told apart by the seeds of their environments."""
    run = make_run(tmp_path / "run", preference=-1.0)
    summary = evaluate(EvaluateConfig(run_dir=run, episodes=7, threads=threads, seed=FIRST_SEED))
    assert summary == {"environment": ID, **ORIGIN, **summarise(ID, [1000.0 * seed for seed in range(7)], seed=FIRST_SEED)}


def test_a_thread_that_fails_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noticed, steps = threading.Event(), 0

    class Told(threading.Event):
        def set(self) -> None:
            super().set()
            noticed.set()

    def step(self: Scripted, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        nonlocal steps
        if self._index == 1:
            raise RuntimeError("this environment broke")
        assert noticed.wait(30), "nobody told the other thread"
        steps += 1
        return np.zeros(2, np.float32), 0.0, steps == 5, False, {}

    monkeypatch.setattr("actor_client.evaluate.Event", Told)
    monkeypatch.setattr(Scripted, "step", step)
    with pytest.raises(RuntimeError, match="this environment broke"):
        evaluate(EvaluateConfig(run_dir=make_run(tmp_path / "run"), episodes=2, threads=2, seed=FIRST_SEED))
    assert steps == 1


def test_only_modules_that_the_command_line_allows_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = replace(AGENT, environments=(EnvironmentConfig(environment_id=f"{__name__}:{ID}"),))
    run = make_run(tmp_path / "run", agent, network=make_network())
    assert run_main(monkeypatch, "--run-dir", str(run), "--episodes", "1") == 2
    assert f"--allow-module {__name__}" in capsys.readouterr().err
    assert run_main(monkeypatch, "--run-dir", str(run), "--episodes", "1", "--allow-module", __name__) == 0


def test_the_vector_form_is_the_one_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    assert run_main(monkeypatch, "--run-dir", str(run), "--episodes", "1", "--vectorization", "native") == 2
    assert "native" in capsys.readouterr().err
    assert run_main(monkeypatch, "--run-dir", str(run), "--episodes", "1", "--vectorization", "sync") == 0


def test_an_evaluation_that_takes_long_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(actor_client.evaluate, "_SAYS_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        played(3, envs=1)
    # Environment 0's episodes have a step each, and then there is its reset.
    assert [record.getMessage() for record in caplog.records] == [
        f"{ended} of 3 episodes; one under way has {steps} steps" for ended, steps in ((0, 1), (1, 0), (1, 1), (2, 0), (2, 1))
    ]


def test_a_game_that_was_made_another_has_no_score_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_client.scores, "human_normalised", lambda *_: 50.0)
    clipped = EnvironmentConfig(environment_id=ID, wrappers=(("TimeLimit", {"max_episode_steps": 9}),))
    scores = [
        evaluate(EvaluateConfig(run_dir=make_run(tmp_path / name, agent), episodes=1))["human_normalised"]
        for name, agent in (("own", AGENT), ("wrapped", replace(AGENT, environments=(clipped,))))
    ]
    assert scores == [50.0, None]


# --- video


@pytest.mark.parametrize(("agent", "folders"), [(AGENT, ["."]), (TASKS, ["task-0", "task-1"])])
def test_one_whole_episode_of_each_task_is_recorded(agent: AgentConfig, folders: list[str], tmp_path: Path) -> None:
    run, folder = make_run(tmp_path / "run", agent), tmp_path / "video"
    evaluate(EvaluateConfig(run_dir=run, episodes=1, seed=FIRST_SEED + 4, video=folder))
    films = sorted(path for path in folder.rglob("*") if path.is_file())
    assert films == [folder / name / f"episode-{FIRST_SEED + 4}.mp4" for name in folders]
    # Of environment 4: five steps.
    assert [imageio_ffmpeg.count_frames_and_secs(str(film))[0] for film in films] == [6] * len(folders)


def test_a_video_without_its_packages_gets_one_line_that_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    # Not after the episodes, which may have taken an hour.
    monkeypatch.setattr(Evaluation, "play", lambda *_: pytest.fail("played before it said so"))
    run = make_run(tmp_path / "run")
    assert run_main(monkeypatch, "--run-dir", str(run), "--episodes", "1", "--video", str(tmp_path / "video")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("impala-evaluate: video: mp4 files cannot be written (")
    assert line.endswith("pip install 'impala-grpc[video]'")
