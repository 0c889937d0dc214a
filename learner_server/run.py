"""A learner process from start to end: puts the parts together, trains, and takes them apart again."""

import logging
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import torch
from rich.console import Console

from impala.addresses import split_address
from impala.environments import agent_spec
from impala.errors import ConfigError
from impala.networks import Network, build_network
from impala.replay import TrajectoryReplay
from impala.specs import EntrySpec, EnvironmentSpec, UnrollSpec
from impala.tokens import read_token
from impala.wire import Assignment, spec_digest
from learner_server.actor_registry import ACTOR_SILENCE_SECONDS, Actor, ActorRegistry
from learner_server.config import LearnerConfig
from learner_server.curve import draw_curve
from learner_server.episodes import EpisodeLog
from learner_server.learner import Learner
from learner_server.local_actors import LocalActorFailed, LocalActors
from learner_server.metrics import MetricsWriter
from learner_server.parameter_store import ParameterStore
from learner_server.progress import ProgressDisplay
from learner_server.resume import StartingPoint, find_starting_point
from learner_server.security import server_credentials
from learner_server.server import LearnerServer
from learner_server.servicer import LearnerServicer
from learner_server.training import End, Training
from learner_server.transfer import transfer_to
from learner_server.unroll_queue import UnrollQueue
from run_directory.layout import RunDirectory

log = logging.getLogger(__name__)

# Callers that may wait for a place in the queue; beyond that the learner answers UNAVAILABLE and they back off.
_MAX_LINE = 4096

# A run that is over goes on answering for at most this long, so that its actors hear of it.
_FAREWELL_SECONDS = 10.0
_STOP_GRACE_SECONDS = 2.0
# Taking a process with torch in it apart takes seconds on a machine that is busy.
_ACTOR_GRACE_SECONDS = 5.0

_HEADLINES = {End.SOLVED: "[bold green]solved[/]", End.STOPPED: "stopped", End.TOTAL_STEPS: "out of steps"}


def run_learner(config: LearnerConfig, console: Console, stop: threading.Event) -> int:
    """Trains until solved, out of steps or `stop` is set; returns the exit code.

    Returns:
        0 when the run did what it was asked to, or was stopped in good order; 1 when it used up its steps short of
        stop_at_return.

    Raises:
        ConfigError: this cannot run at all.
        ImpalaError: it could not go on.
    """
    torch.set_num_threads(config.threads)
    device, agent = _device(config), config.agent()
    spec = agent_spec(agent, config.hosting())
    access = _Access.of(config)
    directory = RunDirectory(config.run_dir or default_run_dir(config))
    with directory.claim(config.identity(), config.to_json()):
        start = find_starting_point(directory, len(config.env))
        learner = _build_learner(config, spec, device, start)
        _describe(console, config, directory, start)
        return _Service(
            config=config, console=console, directory=directory, start=start, spec=spec, learner=learner, access=access
        ).run(stop)


@dataclass(frozen=True, kw_only=True)
class _Access:
    """Who may call, and over what; read before anything is written, so that a wrong path leaves nothing behind."""

    token: str | None
    credentials: grpc.ServerCredentials | None

    @classmethod
    def of(cls, config: LearnerConfig) -> "_Access":
        return cls(
            token=read_token(config.token_file) if config.token_file else None,
            credentials=server_credentials(config.tls_cert, config.tls_key, client_ca=config.tls_client_ca)
            if config.tls_cert and config.tls_key
            else None,
        )


class _Service:
    """The parts of one learner process, wired together."""

    def __init__(
        self,
        *,
        config: LearnerConfig,
        console: Console,
        directory: RunDirectory,
        start: StartingPoint,
        spec: EnvironmentSpec,
        learner: Learner,
        access: _Access,
    ) -> None:
        self._config, self._console, self._directory, self._start, self._learner = config, console, directory, start, learner
        self._spec = UnrollSpec(
            unroll_length=config.unroll_length,
            max_environments=config.max_envs,
            environment=spec,
            state=_state_spec(learner.network),
        )
        self._digest = spec_digest(config.agent(), self._spec, run_id=start.run_id)
        self._queue = UnrollQueue(
            capacity=config.queue_batches * config.fresh_trajectories,
            max_line=_MAX_LINE,
            received=start.steps_received,
            trained=start.trained_by_task,
            dropped=start.steps_dropped,
        )
        self._store = ParameterStore(inject_lag=config.inject_lag)
        self._actors = ActorRegistry(len(config.env))
        if start.checkpoint is not None:
            self._actors.restore(start.checkpoint.state["actors"])
        self._episodes = EpisodeLog(counts=start.episodes, recent_returns=start.recent_returns, seconds=start.seconds)
        self._servicer = LearnerServicer(
            assign=self._assign,
            spec=self._spec,
            spec_digest=self._digest,
            queue=self._queue,
            store=self._store,
            actors=self._actors,
            max_policy_lag=config.max_policy_lag,
            on_unroll=self._episodes.add,
        )
        self._server = LearnerServer(
            self._servicer,
            config.listen,
            token=access.token,
            credentials=access.credentials,
            health_address=config.health,
        )

    def run(self, stop: threading.Event) -> int:
        """Serves and trains; returns the exit code."""
        writer = MetricsWriter(self._directory.metrics, self._directory.tensorboard)
        self._store.publish(self._learner.version, self._learner.network.state_dict())
        address = f"{split_address(self._config.listen, field='listen')[0]}:{self._server.start()}"
        self._console.print(f"learner listens on {address}", highlight=False)
        try:
            local = f"127.0.0.1:{self._server.local_port}"
            actors = LocalActors(self._config.actors, local, self._directory.logs, flags=self._local_actor_flags())
            try:
                end, figures = self._train(writer, actors, stop)
            finally:
                actors.stop(_ACTOR_GRACE_SECONDS)
        finally:
            self._server.stop(_STOP_GRACE_SECONDS)
            writer.close()
        return self._conclude(end, figures)

    def _train(self, writer: MetricsWriter, actors: LocalActors, stop: threading.Event) -> tuple[End, dict[str, Any]]:
        display = ProgressDisplay(
            self._console,
            title=f"IMPALA  {', '.join(self._config.env)}  seed {self._config.seed}",
            total_steps=self._config.total_steps,
            stop_at_return=self._config.stop_at_return,
        )
        training = Training(
            config=self._config,
            directory=self._directory,
            learner=self._learner,
            queue=self._queue,
            store=self._store,
            actors=self._actors,
            episodes=self._episodes,
            writer=writer,
            start=self._start,
            replay=self._replay(),
            refused=lambda: dict(self._servicer.refused),
            show=display.show,
            look_after_actors=actors.look_after,
        )
        try:
            end = training.run(stop)
            self._queue.close(run_over=end is not End.STOPPED)
            if end is End.STOPPED:
                training.drain()
            else:
                self._server.call(self._servicer.end_run)
            figures = training.finish(end)
        except LocalActorFailed:
            training.save_or_raise()  # what has been learnt is whole
            raise
        finally:
            display.close()
        if end is not End.STOPPED:
            self._say_farewell()
        return end, figures

    def _replay(self) -> TrajectoryReplay | None:
        config = self._config
        if not config.replay_fraction:
            return None
        mebibytes = config.replay_unrolls * TrajectoryReplay.bytes_per_trajectory(self._spec) / 2**20
        self._console.print(f"replay: {config.replay_unrolls:,} trajectories, up to {mebibytes:,.0f} MiB", highlight=False)
        replay = TrajectoryReplay(config.replay_unrolls, seed=config.seed)
        if self._start.checkpoint is not None:
            replay.random_state = self._start.checkpoint.state["replay_random_state"]
        return replay

    def _local_actor_flags(self) -> list[str]:
        flags = ["--vectorization", self._config.vectorization]
        if self._config.token_file:
            flags += ["--token-file", str(self._config.token_file)]
        if self._config.allow_module:
            flags += ["--allow-module", *self._config.allow_module]
        return flags

    def _say_farewell(self) -> None:
        """Goes on answering until every actor that called lately has heard that the run is over."""
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while time.monotonic() < deadline:
            if all(actor.farewelled for actor in self._actors.seen_within(ACTOR_SILENCE_SECONDS)):
                return
            time.sleep(0.02)

    def _conclude(self, end: End, last: dict[str, Any]) -> int:
        """Says how the run ended, draws its curve and returns the exit code."""
        said = "-" if last["mean_return_100"] is None else f"{last['mean_return_100']:.1f}"
        figures = f"mean return of the last 100 episodes {said}, {last['env_steps']:,} steps, {last['seconds']:.1f} s"
        path = self._directory.path
        lines = [f"{_HEADLINES[end]}: {figures}"]
        if end is End.STOPPED:
            lines.append(f"to go on: the same command with --run-dir {path}")
        title, target = f"{', '.join(self._config.env)}, seed {self._config.seed}", self._config.stop_at_return
        if draw_curve(self._directory.metrics, self._directory.curve, title=title, target=target):
            lines.append(f"curve: {self._directory.curve}")
        lines.append(f"evaluate: impala-evaluate --run-dir {path}")
        for line in lines:
            self._console.print(line, highlight=False, soft_wrap=True)
        fell_short = end is End.TOTAL_STEPS and target is not None
        return 1 if fell_short else 0

    def _assign(self, actor: Actor, environments: int) -> Assignment:
        # A prime stride keeps the seeds of an actor's environments, seed + e, apart from every other actor's.
        seed = self._config.seed * 1_000_003 + (actor.index + 1) * 10_007
        return Assignment(
            run_id=self._start.run_id,
            spec_digest=self._digest,
            environment=self._config.environments()[actor.task],
            task=actor.task,
            network=self._config.network,
            unroll_spec=self._spec,
            environments=environments or self._config.envs,
            seed=seed % 2**31,
            max_in_flight=self._config.max_in_flight,
        )


def default_run_dir(config: LearnerConfig) -> Path:
    """Returns a new name under runs/."""
    names = "+".join(re.sub(r"[^\w.-]", "-", environment) for environment in config.env)
    return Path("runs") / f"{names}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def _device(config: LearnerConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: expected a CUDA device, came a machine without one; use --device cpu")
    return torch.device(config.device)


def _build_learner(config: LearnerConfig, spec: EnvironmentSpec, device: torch.device, start: StartingPoint) -> Learner:
    torch.manual_seed(config.seed)
    network = build_network(config.network, spec, allowed_modules=config.allow_module).to(device)
    learner = Learner(
        network,
        config.loss,
        config.optimiser,
        total_steps=config.total_steps,
        version=start.version,
        transfer=transfer_to(device),
        precision=config.precision,
        compiles=config.compile,
    )
    learner.updates, learner.skipped_updates = start.learner_updates, start.skipped_updates
    if start.checkpoint is not None:
        learner.restore(start.checkpoint.parameters, start.checkpoint.optimiser)
        torch.set_rng_state(start.checkpoint.random["cpu"])
        if "cuda" in start.checkpoint.random and device.type == "cuda":
            torch.cuda.set_rng_state(start.checkpoint.random["cuda"], device)
    return learner


def _state_spec(network: Network) -> dict[str, EntrySpec]:
    return {
        name: EntrySpec(shape=tuple(tensor.shape[1:]), dtype=tensor.numpy().dtype)
        for name, tensor in network.initial_state(1).items()
    }


def _describe(console: Console, config: LearnerConfig, directory: RunDirectory, start: StartingPoint) -> None:
    console.print(f"run directory: {directory.path}", highlight=False, soft_wrap=True)
    if start.checkpoint is None and start.steps_trained:
        console.print(f"no checkpoint was ever written: new weights, at {start.steps_trained:,} steps", highlight=False)
    if start.checkpoint is not None:
        lost = start.steps_lost - start.checkpoint.state["steps_lost"]
        note = f"; the weights of {lost:,} steps since are lost" if lost else ""
        console.print(f"resumes from version {start.checkpoint.version} at {start.steps_trained:,} steps{note}", highlight=False)
