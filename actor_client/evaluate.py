"""impala-evaluate: plays episodes with the newest checkpoint of a run."""

import json
import logging
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from impala.config import AgentConfig
from impala.environments import VectorEnvironment, environment_spec, record_episode
from impala.errors import CheckpointError, ConfigError, ImpalaError
from impala.networks import Network, build_network
from run_directory.checkpoint import Checkpoint, load_newest_checkpoint
from run_directory.layout import RunDirectory

_MOST_ENVIRONMENTS = 64
EXIT_CANNOT_RUN = 2


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Plays episodes with the newest checkpoint of a run and prints their true returns."""

    run_dir: Path
    """The run's directory."""
    episodes: int = 100
    """Episodes to play."""
    greedy: bool = True
    """Take the most probable action; otherwise draw from the policy, as in training."""
    seed: int = 1_000_000
    """Of environments and sampling; the default is far from those that a run trains on."""
    json: bool = False
    """Print one JSON object instead of a line."""
    video: Path | None = None
    """Also record one episode as an mp4 file in this folder; needs the extra `video`."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"episodes: expected at least 1, came {self.episodes}")
        if self.seed < 0:
            raise ConfigError(f"seed: expected 0 or more, came {self.seed}")


@torch.inference_mode()
def play(network: Network, agent: AgentConfig, *, episodes: int, greedy: bool, seed: int) -> list[float]:
    """Returns the true returns of `episodes` episodes.

    Every environment plays a number of episodes fixed beforehand: the first so many to finish, of all environments together,
    would favour short ones.
    """
    count = min(episodes, _MOST_ENVIRONMENTS)
    environment = VectorEnvironment(agent.environment_id, agent.environment_kwargs, count)
    missing = np.full(count, episodes // count)
    missing[: episodes % count] += 1
    generator = torch.Generator().manual_seed(seed)
    state = network.initial_state(count)
    observations, is_first = environment.reset(seed), np.ones(count, dtype=np.bool_)
    returns: list[float] = []
    try:
        while missing.any():
            tensors = {name: torch.from_numpy(array) for name, array in observations.items()}
            logits, state = network.act(tensors, torch.from_numpy(is_first), state)
            transition = environment.step(choose_actions(logits, greedy=greedy, generator=generator))
            for index, episode in zip(transition.ended, transition.episodes, strict=True):
                if missing[index]:
                    missing[index] -= 1
                    returns.append(episode.episode_return)
            observations, is_first = transition.observations, transition.is_first
    finally:
        environment.close()
    return returns


@torch.inference_mode()
def _record(network: Network, agent: AgentConfig, config: EvaluateConfig) -> None:
    generator = torch.Generator().manual_seed(config.seed)
    state = network.initial_state(1)

    def act(observations: Mapping[str, np.ndarray], is_first: np.ndarray) -> np.ndarray:
        nonlocal state
        tensors = {name: torch.from_numpy(array) for name, array in observations.items()}
        logits, state = network.act(tensors, torch.from_numpy(is_first), state)
        return choose_actions(logits, greedy=config.greedy, generator=generator)

    assert config.video is not None
    record_episode(agent.environment_id, agent.environment_kwargs, config.video, act=act, seed=config.seed)


def choose_actions(logits: torch.Tensor, *, greedy: bool, generator: torch.Generator) -> np.ndarray:
    """Returns actions, [E] int64, for logits, [E, A]: the most probable ones, or drawn from the policy."""
    if greedy:
        return logits.argmax(-1).numpy()
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1).numpy()


def summarise(returns: list[float]) -> dict[str, Any]:
    """Returns mean, median, standard deviation, least and greatest of the returns."""
    return {
        "episodes": len(returns),
        "mean": statistics.fmean(returns),
        "median": statistics.median(returns),
        "std": statistics.pstdev(returns),
        "min": min(returns),
        "max": max(returns),
    }


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Returns the summary of an evaluation, with the checkpoint's version and steps.

    Raises:
        ConfigError: not a run directory, or one without a checkpoint.
        CheckpointError: no checkpoint is whole, or it is of another network.
    """
    directory = RunDirectory(config.run_dir)
    agent = directory.agent_config()
    checkpoint = load_newest_checkpoint(directory.checkpoints)
    if checkpoint is None:
        raise ConfigError(f"run_dir: {config.run_dir} holds no checkpoint")
    network = load_network(agent, checkpoint)
    returns = play(network, agent, episodes=config.episodes, greedy=config.greedy, seed=config.seed)
    if config.video is not None:
        _record(network, agent, config)
    origin = {"parameter_version": checkpoint.version, "env_steps": checkpoint.state["env_steps"], "greedy": config.greedy}
    return {"environment": agent.environment_id, **origin, **summarise(returns)}


def load_network(agent: AgentConfig, checkpoint: Checkpoint) -> Network:
    """Returns the network of a checkpoint, for inference.

    Raises:
        CheckpointError: it is of another network than the run's configuration says.
    """
    network = build_network(agent.network, environment_spec(agent.environment_id, agent.environment_kwargs))
    try:
        network.load_state_dict(dict(checkpoint.parameters))
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint of another network: {' '.join(str(error).split())}") from error
    return network.eval()


def main() -> None:
    """Evaluates and exits: 0 done, 1 failed, 2 cannot run as asked."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        config = tyro.cli(EvaluateConfig, prog="impala-evaluate")
        summary = evaluate(config)
    except ConfigError as error:
        print(f"impala-evaluate: {error}", file=sys.stderr)  # noqa: T201 - the one line that a wrong command line gets
        sys.exit(EXIT_CANNOT_RUN)
    except ImpalaError as error:
        print(f"impala-evaluate: {error}", file=sys.stderr)  # noqa: T201 - the program's last word
        sys.exit(1)
    print(json.dumps(summary) if config.json else _line(summary))  # noqa: T201 - this program's output


def _line(summary: dict[str, Any]) -> str:
    manner = "greedy" if summary["greedy"] else "sampled"
    return (
        f"{summary['environment']}, version {summary['parameter_version']} ({summary['env_steps']:,} steps), {manner}: "
        f"mean return {summary['mean']:.1f} over {summary['episodes']} episodes "
        f"(median {summary['median']:.1f}, std {summary['std']:.1f}, min {summary['min']:.1f}, max {summary['max']:.1f})"
    )


if __name__ == "__main__":
    main()
