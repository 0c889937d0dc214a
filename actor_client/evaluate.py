"""impala-evaluate: plays episodes with the newest checkpoint of a run."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from threading import Event
from typing import Any, Literal

import numpy as np
import torch
import tyro

from actor_client.scores import summarise
from impala.config import AgentConfig
from impala.environments import Hosting, VectorEnvironment, agent_spec, record_episode
from impala.errors import CheckpointError, ConfigError, ImpalaError
from impala.networks import Network, build_network
from impala.specs import EnvironmentSpec
from run_directory.checkpoint import Checkpoint, load_newest_checkpoint
from run_directory.layout import RunDirectory

log = logging.getLogger(__name__)

_MOST_ENVIRONMENTS = 64
EXIT_CANNOT_RUN = 2

# How long an evaluation goes on without a word.
_SAYS_SECONDS = 30.0

# Arguments of an Atari environment that make another game of it than the one whose scores are known.
_ANOTHER_GAME = {"mode", "difficulty"}

# From observations, entry name to [E, ...], and is_first, [E], to actions, [E, *actions.shape].
Act = Callable[[Mapping[str, np.ndarray], np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Plays episodes with the newest checkpoint of a run and prints their true returns, one line for each of the run's tasks."""

    run_dir: Path
    """The run's directory."""
    episodes: int = 100
    """Episodes to play, of each task."""
    greedy: bool = True
    """Take the most probable action; otherwise draw from the policy, as in training."""
    seed: int = 1_000_000
    """Of environments, sampling and confidence interval; the default is far from those that a run trains on."""
    task: str = ""
    """Of a run with several environments, evaluate only this one, by its id."""
    envs: int = 0
    """Environments to step side by side; 0 for as many as episodes, up to 64. Each thread has so many."""
    threads: int = 1
    """Threads to play in, an equal share of the episodes each. As many as cores are fastest where environments are compiled, as
    Atari's are; with another number the same seed plays other episodes."""
    vectorization: Literal["auto", "native", "sync", "async"] = "auto"
    """How environments are stepped side by side, as for impala-actor."""
    allow_module: tuple[str, ...] = ()
    """Python modules, or packages of them, with environments, wrappers or networks that may be imported; a run directory can name
    no others."""
    json: bool = False
    """Print one JSON object instead of lines; with several tasks it has a list of theirs under `tasks`."""
    video: Path | None = None
    """Also record one episode as an mp4 file in this folder, of several tasks in a folder each; needs the extra `video`."""

    def __post_init__(self) -> None:
        for name in ("episodes", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, came {getattr(self, name)}")
        for name in ("seed", "envs"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected 0 or more, came {getattr(self, name)}")

    @property
    def shares(self) -> list[int]:
        """How many episodes each thread plays, one or more."""
        threads = min(self.threads, self.episodes)
        return [self.episodes // threads + (thread < self.episodes % threads) for thread in range(threads)]

    def environments(self, episodes: int) -> int:
        """Returns how many environments are stepped side by side for so many episodes: never more than those."""
        return min(episodes, self.envs or _MOST_ENVIRONMENTS)

    def hosting(self) -> Hosting:
        """Returns how this machine runs environments."""
        return Hosting(vectorization=self.vectorization, allowed_modules=self.allow_module)


class Evaluation:
    """A run's agent, its network as of one checkpoint, and how to evaluate them.

    Raises on construction:
        ConfigError: an environment or a network that cannot be made here.
        CheckpointError: the checkpoint is of another network than the run's configuration says.
    """

    def __init__(self, agent: AgentConfig, parameters: Mapping[str, torch.Tensor], config: EvaluateConfig) -> None:
        self._agent = agent
        self._config = config
        self._spec = agent_spec(agent, config.hosting())
        self._network = load_network(agent, self._spec, parameters, allowed_modules=config.allow_module)

    def play(self, task: int) -> list[float]:
        """Returns the true returns of as many episodes of a task, by its number, as were asked for."""
        shares = self._config.shares
        # A thread's environments have as many seeds in a row as it plays episodes, or fewer: none is another thread's.
        seeds = list(accumulate(shares[:-1], initial=self._config.seed))
        with ExitStack() as stack:
            environments = [stack.enter_context(closing(self._environments(task, episodes))) for episodes in shares]
            if len(shares) == 1:
                return self._play_share(Event(), environments[0], shares[0], seeds[0])
            stack.enter_context(_shared_cores(len(shares)))
            give_up = Event()
            with ThreadPoolExecutor(len(shares)) as threads:
                try:
                    played = list(threads.map(partial(self._play_share, give_up), environments, shares, seeds))
                finally:
                    give_up.set()  # interrupted: leaving the executor waits for its threads
        return [episode_return for share in played for episode_return in share]

    def _environments(self, task: int, episodes: int) -> VectorEnvironment:
        return VectorEnvironment(self._agent.environments[task], self._config.environments(episodes), **self._shape(task))

    @torch.inference_mode()  # of the calling thread alone
    def _play_share(self, give_up: Event, environment: VectorEnvironment, episodes: int, seed: int) -> list[float]:
        try:
            act = policy(self._network, environment.environments, greedy=self._config.greedy, seed=seed)
            return play(environment, act, episodes, seed, give_up)
        except BaseException:
            give_up.set()
            raise

    @torch.inference_mode()
    def record(self, task: int, folder: Path) -> None:
        """Plays one episode of a task and writes it to `folder` as an mp4 file."""
        act = policy(self._network, 1, greedy=self._config.greedy, seed=self._config.seed)
        record_episode(self._agent.environments[task], folder, act=act, seed=self._config.seed, **self._shape(task))

    def _shape(self, task: int) -> dict[str, Any]:
        # What brings a task's environment to the form that the network was trained on.
        return {
            "last_action_reward": self._agent.network.last_action_reward,
            "spec": self._spec,
            "task": task,
            "hosting": self._config.hosting(),
        }


@contextmanager
def _shared_cores(threads: int) -> Iterator[None]:
    """Has torch compute with so many threads in each of several that no more are at work than otherwise."""
    usual = torch.get_num_threads()
    torch.set_num_threads(max(1, usual // threads))
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def play(environment: VectorEnvironment, act: Act, episodes: int, seed: int, give_up: Event | None = None) -> list[float]:
    """Returns the true returns of `episodes` episodes, in the order in which they end; of fewer once `give_up` is set.

    Every environment plays a number of episodes fixed beforehand: the first so many to finish, of all environments together,
    would favour short ones.
    """
    count = environment.environments
    missing = np.full(count, episodes // count)
    missing[: episodes % count] += 1
    observations, is_first = environment.reset(seed), np.ones(count, dtype=np.bool_)
    returns: list[float] = []
    lengths, said = np.zeros(count, dtype=np.int64), time.monotonic()
    while missing.any() and not (give_up and give_up.is_set()):
        transition = environment.step(act(observations, is_first))
        lengths = np.where(transition.is_first, 0, lengths + 1)
        if time.monotonic() - said >= _SAYS_SECONDS:
            said = time.monotonic()
            # A policy that always does the same may walk in circles for ever, where no time limit ends that.
            log.info("%d of %d episodes; one under way has %d steps", len(returns), episodes, lengths[missing > 0].max())
        for index, episode in zip(transition.ended, transition.episodes, strict=True):
            if missing[index]:
                missing[index] -= 1
                returns.append(episode.episode_return)
        observations, is_first = transition.observations, transition.is_first
    return returns


def policy(network: Network, environments: int, *, greedy: bool, seed: int) -> Act:
    """Returns a function that acts step by step, carrying the recurrent state.

    Args:
        greedy: take the most probable actions; otherwise draw them from the policy, with a generator of this seed.
    """
    generator = torch.Generator().manual_seed(seed)
    state = network.initial_state(environments)

    def act(observations: Mapping[str, np.ndarray], is_first: np.ndarray) -> np.ndarray:
        nonlocal state
        tensors = {name: torch.from_numpy(array) for name, array in observations.items()}
        outputs, state = network.act(tensors, torch.from_numpy(is_first), state)
        actions = network.distribution.mode(outputs) if greedy else network.distribution.sample(outputs, generator)
        return actions.numpy()

    return act


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Returns the summary of an evaluation, with the checkpoint's version and steps.

    One task's figures stand beside these; those of several are a list under `tasks`, in the run's order.

    Raises:
        ConfigError: not a run directory, or one without a checkpoint, or without that task; or it cannot be played here.
        CheckpointError: no checkpoint is whole, or it is of another network.
    """
    directory = RunDirectory(config.run_dir)
    agent = directory.agent_config()
    tasks = select_tasks(agent, config.task)
    checkpoint = load_newest_checkpoint(directory.checkpoints)
    if checkpoint is None:
        raise ConfigError(f"run_dir: {config.run_dir} holds no checkpoint")
    evaluation = Evaluation(agent, checkpoint.parameters, config)
    if config.video is not None:
        # First: what cannot be recorded here says so before hours of episodes, not after.
        for task in tasks:
            evaluation.record(task, config.video / f"task-{task}" if len(tasks) > 1 else config.video)
    summaries = []
    for task in tasks:
        environment = agent.environments[task]
        summary = summarise(environment.environment_id, evaluation.play(task), seed=config.seed)
        if environment.wrappers or environment.kwargs.keys() & _ANOTHER_GAME:
            summary["human_normalised"] = None
        summaries.append({"environment": environment.environment_id, **summary})
    return {**_origin(checkpoint, config), **(summaries[0] if len(tasks) == 1 else {"tasks": summaries})}


def select_tasks(agent: AgentConfig, environment_id: str) -> Sequence[int]:
    """Returns the numbers of the tasks with this environment's id, of all tasks for ''.

    Raises:
        ConfigError: there is none.
    """
    ids = [environment.environment_id for environment in agent.environments]
    tasks = [task for task, name in enumerate(ids) if environment_id in ("", name)]
    if not tasks:
        raise ConfigError(f"task: expected one of {', '.join(ids)}, came {environment_id!r}")
    return tasks


def load_network(
    agent: AgentConfig, spec: EnvironmentSpec, parameters: Mapping[str, torch.Tensor], *, allowed_modules: Sequence[str]
) -> Network:
    """Returns the network of a checkpoint, for inference.

    Raises:
        CheckpointError: it is of another network than the run's configuration says.
    """
    network = build_network(agent.network, spec, allowed_modules=allowed_modules)
    try:
        network.load_state_dict(dict(parameters))
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
    print(json.dumps(summary) if config.json else "\n".join(_lines(summary)))  # noqa: T201 - this program's output


def _origin(checkpoint: Checkpoint, config: EvaluateConfig) -> dict[str, Any]:
    return {"parameter_version": checkpoint.version, "env_steps": checkpoint.state["env_steps"], "greedy": config.greedy}


def _lines(summary: Mapping[str, Any]) -> list[str]:
    manner = "greedy" if summary["greedy"] else "sampled"
    origin = f"version {summary['parameter_version']} ({summary['env_steps']:,} steps), {manner}"
    return [f"{task['environment']}, {origin}: {_figures(task)}" for task in summary.get("tasks", [summary])]


def _figures(task: Mapping[str, Any]) -> str:
    low, high = task["ci95"]
    human = "" if task["human_normalised"] is None else f", human-normalised {task['human_normalised']:.1f}%"
    return (
        f"mean return {task['mean']:.1f} over {task['episodes']} episodes "
        f"(95% confidence {low:.1f} to {high:.1f}, median {task['median']:.1f}, std {task['std']:.1f}, "
        f"min {task['min']:.1f}, max {task['max']:.1f}){human}"
    )


if __name__ == "__main__":
    main()
