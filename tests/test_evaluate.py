"""Evaluation: as many episodes as asked for, none favoured; and what its command line says."""

import json
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from actor_client.evaluate import EvaluateConfig, choose_actions, evaluate, main, play, summarise
from impala.config import AgentConfig, NetworkConfig
from impala.errors import CheckpointError, ConfigError
from impala.networks import Network, build_network
from impala.specs import EntrySpec, EnvironmentSpec
from run_directory.checkpoint import Checkpoint, save_checkpoint
from run_directory.layout import RunDirectory

FIRST_SEED = 500


class Scripted(gymnasium.Env[np.ndarray, np.int64]):
    """Environment i of a vector has episodes of 1 + i % 7 steps and of return 1000 i + the sum of its actions."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - Gymnasium's own form
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
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
        return np.zeros(2, np.float32), float(action) + (1000.0 * self._index if done else 0.0), done, False, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.full((4, 4, 3), self._step, dtype=np.uint8)


gymnasium.register("tests/ScriptedEvaluation-v0", entry_point=Scripted, disable_env_checker=True)

AGENT = AgentConfig(environment_id="tests/ScriptedEvaluation-v0", network=NetworkConfig(hidden_sizes=()))


def make_network(*, preference: float = 0.0) -> Network:
    """Returns a network of logits (0, preference) whatever it sees."""
    spec = EnvironmentSpec(observations={"observation": EntrySpec(shape=(2,), dtype=np.dtype(np.float32))}, num_actions=2)
    network = build_network(AGENT.network, spec)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        network.state_dict()["policy.0.bias"][1] = preference
    return network


def played(episodes: int, *, preference: float = 0.0, greedy: bool = True, seed: int = FIRST_SEED) -> list[float]:
    return play(make_network(preference=preference), AGENT, episodes=episodes, greedy=greedy, seed=seed)


@pytest.mark.parametrize("episodes", [1, 5, 63, 64, 65, 150])
def test_exactly_as_many_episodes_are_played_as_asked_for(episodes: int) -> None:
    assert len(played(episodes)) == episodes


def test_every_environment_plays_a_number_of_episodes_fixed_beforehand() -> None:
    """The first 150 to finish would be four times as many of the environments with the shortest episodes."""
    by_environment = Counter(int(value // 1000) for value in played(150))
    assert by_environment == {index: 3 if index < 150 - 2 * 64 else 2 for index in range(64)}


def test_returns_are_the_sums_of_an_episodes_rewards() -> None:
    assert sorted(played(10, preference=1.0)) == [1000.0 * index + 1 + index % 7 for index in range(10)]


def test_greedy_play_takes_the_most_probable_action_always() -> None:
    steps = sum(1 + index % 7 for index in range(50))
    assert sum(value % 1000 for value in played(50, preference=0.5, greedy=True)) == steps
    assert sum(value % 1000 for value in played(50, preference=-0.5, greedy=True)) == 0


def test_sampled_play_takes_each_action_as_often_as_the_policy_says() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0]).expand(30_000, 3)
    actions = choose_actions(logits, greedy=False, generator=torch.Generator().manual_seed(0))
    shares = np.bincount(actions, minlength=3) / 30_000
    np.testing.assert_allclose(shares, logits[0].softmax(-1).numpy(), atol=0.01)


def test_sampled_play_explores_where_greedy_play_does_not() -> None:
    ones = sum(value % 1000 for value in played(60, preference=0.1, greedy=False))
    assert 0 < ones < sum(1 + index % 7 for index in range(60))


def test_the_same_seed_plays_the_same_episodes() -> None:
    first, again, other = (played(64, greedy=False, seed=seed) for seed in (FIRST_SEED, FIRST_SEED, FIRST_SEED + 7))
    assert first == again
    assert [value % 1000 for value in first] != [value % 1000 for value in other]


def test_a_summary_is_of_all_returns() -> None:
    assert summarise([1.0, 2.0, 3.0, 10.0]) == {
        "episodes": 4,
        "mean": 4.0,
        "median": 2.5,
        "std": pytest.approx(12.5**0.5),
        "min": 1.0,
        "max": 10.0,
    }


# --- the program


def make_run(path: Path, *, preference: float = 0.0, hidden_sizes: tuple[int, ...] = ()) -> Path:
    """Makes a run directory with one checkpoint, of a network whose hidden layers may be other than the run's."""
    directory = RunDirectory(path)
    directory.claim({"agent": AGENT.to_json()}).close()
    network = make_network(preference=preference)
    if hidden_sizes:
        network = build_network(NetworkConfig(hidden_sizes=hidden_sizes), EnvironmentSpec(observations=OBSERVATIONS, num_actions=2))
    parameters = network.state_dict()
    state = {"env_steps": 1234}
    save_checkpoint(
        directory.checkpoints, Checkpoint(version=7, parameters=parameters, optimiser={}, random={}, state=state), keep=1
    )
    return path


OBSERVATIONS = {"observation": EntrySpec(shape=(2,), dtype=np.dtype(np.float32))}


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


@pytest.mark.parametrize(("flag", "value"), [("--episodes", "0"), ("--seed", "-1")])
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
    run = make_run(tmp_path / "run", hidden_sizes=(3,))
    with pytest.raises(CheckpointError, match="another network"):
        evaluate(EvaluateConfig(run_dir=run))
    assert run_main(monkeypatch, "--run-dir", str(run)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("impala-evaluate: ")


def test_the_summary_is_printed_as_one_json_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", preference=1.0)
    flags = ["--episodes", "3", "--seed", str(FIRST_SEED), "--greedy", "--json"]
    assert run_main(monkeypatch, "--run-dir", str(run), *flags) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == {
        "environment": "tests/ScriptedEvaluation-v0",
        "parameter_version": 7,
        "env_steps": 1234,
        "greedy": True,
        **summarise([1.0, 1002.0, 2003.0]),
    }


def test_the_summary_is_printed_as_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", preference=-50.0)
    assert run_main(monkeypatch, "--run-dir", str(run), "--episodes", "3", "--seed", str(FIRST_SEED), "--no-greedy") == 0
    assert capsys.readouterr().out == (
        "tests/ScriptedEvaluation-v0, version 7 (1,234 steps), sampled: mean return 1000.0 over 3 episodes "
        "(median 1000.0, std 816.5, min 0.0, max 2000.0)\n"
    )


# --- video


def test_one_whole_episode_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for moviepy, so that it runs, and can fail, wherever the tests do."""
    written: dict[str, list[int]] = {}

    class Clip:
        def __init__(self, frames: list[np.ndarray], fps: float) -> None:
            self.frames = frames

        def write_videofile(self, path: str, logger: str | None) -> None:
            written[path] = [int(frame[0, 0, 0]) for frame in self.frames]

    module = types.ModuleType("moviepy.video.io.ImageSequenceClip")
    module.ImageSequenceClip = Clip  # type: ignore[attr-defined]
    for name in ("moviepy", "moviepy.video", "moviepy.video.io"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    run, folder = make_run(tmp_path / "run"), tmp_path / "video"
    evaluate(EvaluateConfig(run_dir=run, episodes=1, seed=FIRST_SEED + 4, video=folder))
    ((path, frames),) = written.items()
    assert Path(path).parent == folder
    assert Path(path).suffix == ".mp4"
    assert frames == [0, 1, 2, 3, 4, 5]  # of environment 4: five steps


def test_a_video_without_its_packages_gets_one_line_that_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "moviepy", None)
    run = make_run(tmp_path / "run")
    assert run_main(monkeypatch, "--run-dir", str(run), "--episodes", "1", "--video", str(tmp_path / "video")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.lower().startswith("impala-evaluate: video: moviepy is not installed")
    assert line.endswith("pip install 'impala-grpc[video]'")
