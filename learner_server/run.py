"""A learner process from start to end: puts the parts together, trains, and takes them apart again."""

import itertools
import logging
import re
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import torch
from rich.console import Console
from rich.markup import escape

from impala.addresses import split_address
from impala.environments import agent_spec
from impala.errors import ConfigError, ImpalaError
from impala.logs import always_say
from impala.networks import build_network
from impala.processor import prepare_processor
from impala.replay import TrajectoryReplay
from impala.specs import EnvironmentSpec, UnrollSpec
from impala.tokens import read_token
from impala.unroll import idle_unroll
from impala.vtrace import prepare_vtrace
from impala.wire import Assignment, max_submission_bytes, spec_digest
from learner_server.actor_limits import ActorLimits
from learner_server.actor_registry import ACTOR_SILENCE_SECONDS, Actor, ActorRegistry
from learner_server.balance import Balance, Door
from learner_server.config import LearnerConfig
from learner_server.console import say
from learner_server.curve import draw_curve
from learner_server.descriptors import make_room_for
from learner_server.episodes import EpisodeLog
from learner_server.group import Group, Place, join_group
from learner_server.histograms import LearnerHistograms
from learner_server.learner import Learner
from learner_server.local_actors import LocalActors, local_actor_id
from learner_server.lockstep import Lockstep
from learner_server.metrics import ActorTimeShares, MetricsWriter
from learner_server.parameter_store import ParameterStore
from learner_server.profile import Profile
from learner_server.recorder import Recorder
from learner_server.resume import StartingPoint, find_starting_point, share_starting_point
from learner_server.rounds import End
from learner_server.security import server_context, server_credentials
from learner_server.server import LearnerServer
from learner_server.servicer import LearnerServicer
from learner_server.spans import Spans
from learner_server.training import Training
from learner_server.transfer import transfer_to
from learner_server.unroll_queue import UnrollQueue
from learner_server.wandb_run import WandbRun, check_wandb
from learner_server.watchers import Show, watchers
from run_directory.counters import CounterFile
from run_directory.layout import RunDirectory

log = logging.getLogger(__name__)

# Callers that may wait for a place in the queue; beyond that the learner answers UNAVAILABLE and they back off.
_MAX_LINE = 4096

# A run that is over goes on answering for at most this long, so that its actors hear of it; where unrolls take longer, for longer.
_FAREWELL_SECONDS, _LONGEST_FAREWELL_SECONDS = 10.0, 120.0
_STOP_GRACE_SECONDS = 2.0
# Taking a process with torch in it apart takes seconds on a machine that is busy.
_ACTOR_GRACE_SECONDS = 5.0

# Settings in which the learners of a group may differ: those of their machine.
_OWN_SETTINGS = (
    "listen",
    "advertise",
    "health",
    "metrics",
    "status",
    "token_file",
    "tls_cert",
    "tls_key",
    "tls_client_ca",
    "run_dir",
    "threads",
)

_HEADLINES = {End.SOLVED: "[bold green]solved[/]", End.STOPPED: "stopped", End.TOTAL_STEPS: "out of steps"}


def run_learner(
    config: LearnerConfig,
    console: Console,
    stop: threading.Event,
    *,
    place: Place | None = None,
    spans: Spans | None = None,
) -> int:
    """Trains until solved, out of steps or `stop` is set; returns the exit code.

    Args:
        place: which of several learners that train as one this is. Rank 0 alone keeps the run and tells of it.
        spans: where what becomes of unrolls is sent; closed when the run ends.

    Returns:
        0 when the run did what it was asked to, or was stopped in good order; 1 when it used up its steps short of
        stop_at_return.

    Raises:
        ConfigError: this cannot run at all.
        ImpalaError: it could not go on.
    """
    prepare_processor(config.threads)
    place = place or Place()
    if config.deterministic and place.size > 1:
        raise ConfigError(f"deterministic: expected one learner with it, came {place.size} that train as one")
    device, agent = _device(config, place), config.agent()
    spec = agent_spec(agent, config.hosting())
    access = _Access.of(config)
    _check_ports(config, place)
    if config.wandb is not None and not place.rank:
        check_wandb()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # streams and events are the current device's unless told otherwise
    group, tasks = join_group(place, device), len(config.env)
    _check_alike(config, group)
    directory = None if place.rank else RunDirectory(config.run_dir or default_run_dir(config))
    with nullcontext() if directory is None else directory.claim(config.identity(), config.to_json() | {"learners": place.size}):
        start = share_starting_point(group, tasks, None if directory is None else find_starting_point(directory, tasks))
        if directory is not None:
            _describe(console, config, directory, start)
        learner = _build_learner(config, spec, device, start, group)
        always_say(lambda: {"parameter_version": learner.version, "rank": place.rank if place.size > 1 else None})
        code = _Service(
            config=config,
            console=console,
            directory=directory,
            start=start,
            spec=spec,
            learner=learner,
            access=access,
            group=group,
            recorder=_recorder(config, directory, spans),
        ).run(stop)
    # Not where something went wrong: others may be gone, and whoever waits for them does so for minutes.
    group.leave()
    return code


@dataclass(frozen=True, kw_only=True)
class _Access:
    """Who may call, and over what; read before anything is written, so that a wrong path leaves nothing behind.

    Attributes:
        context: as `credentials`, for browsers, which are asked for no certificate.
    """

    token: str | None
    credentials: grpc.ServerCredentials | None
    context: ssl.SSLContext | None

    @classmethod
    def of(cls, config: LearnerConfig) -> "_Access":
        return cls(
            token=read_token(config.token_file) if config.token_file else None,
            credentials=server_credentials(config.tls_cert, config.tls_key, client_ca=config.tls_client_ca)
            if config.tls_cert and config.tls_key
            else None,
            context=server_context(config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None,
        )


class _Service:
    """The parts of one learner process, wired together."""

    def __init__(
        self,
        *,
        config: LearnerConfig,
        console: Console,
        directory: RunDirectory | None,
        start: StartingPoint,
        spec: EnvironmentSpec,
        learner: Learner,
        access: _Access,
        group: Group,
        recorder: Recorder | None,
    ) -> None:
        self._recorder = recorder
        if recorder is not None:
            learner.on_stage = recorder.stage
        self._config, self._console, self._directory, self._start, self._learner = config, console, directory, start, learner
        self._access = access
        self._group, self._place = group, group.place
        self._spec = UnrollSpec(
            unroll_length=config.unroll_length,
            max_environments=config.max_envs,
            environment=spec,
            state=learner.network.state_spec(),
        )
        self._digest = spec_digest(config.agent(), self._spec, run_id=start.run_id)
        # Of several learners each counts its own; what they have in all is known where they meet, in lines and checkpoints.
        self._counters = None if directory is None or self._place.size > 1 else CounterFile(directory.counters)
        self._queue = UnrollQueue(
            capacity=config.queue_batches * config.fresh_trajectories,
            max_line=_MAX_LINE,
            when_full=config.when_full,
            keep=None if self._counters is None else self._counters.write,
            received=start.steps_received,
            trained=start.trained_by_task,
            dropped=start.steps_dropped,
            lanes=config.actors if config.deterministic else None,
            on_taken=None if recorder is None else recorder.taken,
        )
        self._store = ParameterStore(inject_lag=config.inject_lag)
        self._lockstep = Lockstep(config.actors) if config.deterministic else None
        own = [local_actor_id(index) for index in range(config.actors)] if config.deterministic else []
        self._actors = ActorRegistry(len(config.env), rank=self._place.rank, ranks=self._place.size, only=own)
        self._balance = Balance(self._place.rank)
        if start.checkpoint is not None:
            self._actors.restore(start.checkpoint.state["actors"])
        self._episodes = EpisodeLog(
            counts=start.episodes, recent_returns=start.recent_returns, seconds=start.seconds, tells=self._place.rank > 0
        )
        self._actor_times = ActorTimeShares()
        self._histograms = LearnerHistograms()
        self._servicer = LearnerServicer(
            assign=self._assign,
            spec=self._spec,
            spec_digest=self._digest,
            queue=self._queue,
            store=self._store,
            actors=self._actors,
            max_policy_lag=config.max_policy_lag,
            on_unroll=self._episodes.add,
            on_times=self._actor_times.add,
            limits=_limits(config),
            histograms=self._histograms,
            recorder=recorder,
            lockstep=self._lockstep,
            balance=self._balance,
        )
        self._server = LearnerServer(
            self._servicer,
            nth_address(config.listen, self._place.local_rank),
            token=access.token,
            credentials=access.credentials,
            health_address=None if config.health is None else nth_address(config.health, self._place.local_rank),
            max_message_bytes=max_submission_bytes(self._spec),
            max_connections=make_room_for(config.max_connections),
        )

    def run(self, stop: threading.Event) -> int:
        """Serves and trains; returns the exit code."""
        writer = None if self._directory is None else self._metrics_writer(self._directory)
        self._store.publish(self._learner.version, self._learner.network.state_dict())
        address = f"{split_address(self._config.listen, field='listen')[0]}:{self._server.start()}"
        who = "learner" if self._place.size == 1 else f"learner {self._place.rank} of {self._place.size}"
        say(self._console, f"{who} listens on {address}")
        try:
            actors = self._start_actors()
            try:
                # While they start.
                prepare_vtrace(self._learner.device)
                end, figures = self._train(writer, actors, stop)
            finally:
                if actors is not None:
                    actors.stop(_ACTOR_GRACE_SECONDS)
        finally:
            self._server.stop(_STOP_GRACE_SECONDS)
            if writer is not None:
                writer.close()
            if self._counters is not None:
                self._counters.close()
        return self._conclude(end, figures)

    def _metrics_writer(self, directory: RunDirectory) -> MetricsWriter:
        config, wandb = self._config, None
        if config.wandb is not None:
            identity = config.identity()
            wandb = WandbRun(project=config.wandb, run_id=self._start.run_id, folder=directory.path, config=identity)
        return MetricsWriter(directory.metrics, directory.tensorboard, wandb=wandb)

    def _start_actors(self) -> LocalActors | None:
        """Starts rank 0's, which `Join` spreads over the ranks of this machine."""
        if self._directory is None:
            return None
        local = f"127.0.0.1:{self._server.local_port}"
        flags, log_format = self._local_actor_flags(), self._config.log_format
        return LocalActors(self._config.actors, local, self._directory.logs, flags=flags, log_format=log_format)

    def _train(self, writer: MetricsWriter | None, actors: LocalActors | None, stop: threading.Event) -> tuple[End, dict[str, Any]]:
        with self._shown() as show, nullcontext() if self._recorder is None else closing(self._recorder):
            training = self._training(writer, actors, show)
            end = training.run(stop)
            if end is End.FAILED:
                training.save()  # what has been learnt is whole
                raise training.failure or ImpalaError("another learner of the group failed")
            self._queue.close(run_over=end is not End.STOPPED)
            if end is End.STOPPED:
                training.drain()
            else:
                self._server.call(self._servicer.end_run)
            figures = training.finish(end)
            # While the status page still answers, which then has the time to say how the run ended.
            if end is not End.STOPPED:
                self._say_farewell()
        return end, figures

    def _training(
        self, writer: MetricsWriter | None, actors: LocalActors | None, show: Callable[[dict[str, Any]], None]
    ) -> Training:
        return Training(
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
            traffic=lambda: {"bytes_received": self._servicer.bytes_received, "bytes_sent": self._servicer.bytes_sent},
            ingest_seconds=self._server.busy_seconds,
            actor_times=self._actor_times,
            show=show,
            look_after_actors=lambda: None if actors is None else actors.look_after(),
            group=self._group,
            idle=idle_unroll(self._spec),
            door=self._door,
            balance=self._balance,
            lockstep=self._lockstep,
            recorder=self._recorder,
            histograms=self._histograms,
        )

    def _shown(self) -> AbstractContextManager[Show]:
        """Yields what shows figures to whoever looks; rank 0 alone shows anything."""
        if self._place.rank:
            return nullcontext(lambda _: None)
        token, context = self._access.token, self._access.context
        return watchers(
            self._config,
            self._console,
            learners=self._place.size,
            actors=self._actors,
            histograms=self._histograms,
            token=token,
            context=context,
        )

    def _door(self, actors: int) -> Door:
        server, machine = self._server, self._place.machine
        return Door(host=self._config.advertise, port=server.port, local_port=server.local_port, machine=machine, actors=actors)

    def _replay(self) -> TrajectoryReplay | None:
        config = self._config
        if not config.replay_fraction:
            return None
        mebibytes = config.replay_unrolls * TrajectoryReplay.bytes_per_trajectory(self._spec) / 2**20
        if not self._place.rank:
            said = f"replay: {config.replay_unrolls:,} trajectories, up to {mebibytes:,.0f} MiB"
            say(self._console, said + (" for each learner" if self._place.size > 1 else ""))
        replay = TrajectoryReplay(config.replay_unrolls, seed=config.seed + self._place.rank)
        if self._start.checkpoint is not None:
            state = self._start.checkpoint.state
            states = state.get("replay_random_states") or [state["replay_random_state"]]
            if self._place.rank < len(states):  # as many learners as before, or fewer
                replay.random_state = states[self._place.rank]
        return replay

    def _local_actor_flags(self) -> list[str]:
        flags = ["--vectorization", self._config.vectorization]
        if self._config.token_file:
            flags += ["--token-file", str(self._config.token_file)]
        if self._config.allow_module:
            flags += ["--allow-module", *self._config.allow_module]
        return flags

    def _say_farewell(self) -> None:
        """Goes on answering until every actor that takes part has heard that the run is over: it hears when it calls."""
        pauses = [actor.silent_after(_FAREWELL_SECONDS) for actor in self._actors.seen_within(ACTOR_SILENCE_SECONDS)]
        deadline = time.monotonic() + min(_LONGEST_FAREWELL_SECONDS, max(pauses, default=0.0))
        while time.monotonic() < deadline:
            if all(actor.farewelled for actor in self._actors.seen_within(ACTOR_SILENCE_SECONDS)):
                return
            time.sleep(0.02)

    def _conclude(self, end: End, last: dict[str, Any]) -> int:
        """Says how the run ended, draws its curve and returns the exit code."""
        title, target = f"{', '.join(self._config.env)}, seed {self._config.seed}", self._config.stop_at_return
        code = 1 if end is End.TOTAL_STEPS and target is not None else 0
        if self._directory is None:
            return code
        said = "-" if last["mean_return_100"] is None else f"{last['mean_return_100']:.1f}"
        figures = f"mean return of the last 100 episodes {said}, {last['env_steps']:,} steps, {last['seconds']:.1f} s"
        path = escape(str(self._directory.path))
        lines = [f"{_HEADLINES[end]}: {figures}"]
        if end is End.STOPPED:
            lines.append(f"to go on: the same command with --run-dir {path}")
        try:
            if draw_curve(self._directory.metrics, self._directory.curve, title=title, target=target):
                lines.append(f"curve: {escape(str(self._directory.curve))}")
        except OSError as error:  # a picture, and it can be drawn again
            log.error("curve: cannot write to %s: %s", self._directory.curve, error.strerror)
        lines.append(f"evaluate: impala-evaluate --run-dir {path}")
        for line in lines:
            say(self._console, line)
        return code

    def _assign(self, actor: Actor, environments: int) -> Assignment:
        return Assignment(
            run_id=self._start.run_id,
            spec_digest=self._digest,
            environment=self._config.environments()[actor.task],
            task=actor.task,
            network=self._config.network,
            unroll_spec=self._spec,
            environments=self._config.envs if self._lockstep else environments or self._config.envs,
            seed=self._config.actor_seed(actor.index, self._life(actor)),
            max_in_flight=self._config.max_in_flight,
            max_on_the_way=self._config.max_on_the_way,
            compresses=self._config.compress,
        )

    def _life(self, actor: Actor) -> int:
        """Returns which life of the actor this is, so that it does not play the same episodes again after every restart."""
        # A learner that resumes begins with a version that no earlier one began with. In lockstep a seed is all that decides.
        return 0 if self._lockstep else 1000 * (self._start.version - 1) + actor.lives


def _recorder(config: LearnerConfig, directory: RunDirectory | None, spans: Spans | None) -> Recorder | None:
    """Returns what follows unrolls, where that was asked for. Of several learners rank 0 alone writes a profile, of its actors."""
    profile = None if config.profile is None or directory is None else Profile(directory.trace, config.profile)
    return None if profile is None and spans is None else Recorder(profile=profile, spans=spans)


def _limits(config: LearnerConfig) -> ActorLimits:
    return ActorLimits(
        calls_per_second=config.max_calls_per_second,
        # Twice what `Join` allows: a process that was replaced under the same name leaves its own in line.
        unrolls=2 * (config.max_in_flight + config.max_on_the_way),
        unroll_bytes=config.max_actor_mebibytes * 2**20,
        all_bytes=config.max_line_mebibytes * 2**20,
    )


def default_run_dir(config: LearnerConfig) -> Path:
    """Returns a new name under runs/."""
    names = "+".join(re.sub(r"[^\w.-]", "-", environment) for environment in config.env)
    return Path("runs") / f"{names}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def nth_address(address: str, index: int) -> str:
    """Returns HOST:PORT with a port that many higher, for one learner of several on a machine; port 0 stays: any free one."""
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + index if int(port) else 0}"


def _check_ports(config: LearnerConfig, place: Place) -> None:
    """Raises ConfigError where two ports of several learners of this machine are the same. Those of one the system tells apart."""
    if place.local_size == 1:
        return
    numbered = {"listen": config.listen, "health": config.health}
    each = {name: split_address(address, field=name)[1] for name, address in numbered.items() if address is not None}
    taken = {name: {port + index for index in range(place.local_size)} for name, port in each.items() if port}
    if config.metrics is not None:
        taken["metrics"] = {split_address(config.metrics, field="metrics")[1]} - {0}
    for (first, ports), (second, others) in itertools.combinations(taken.items(), 2):
        if ports & others:
            expected = f"none of those of {first}, {min(ports)} to {max(ports)} for {place.local_size} learners"
            raise ConfigError(f"{second}: expected {expected}, came {min(others)}")


def _check_alike(config: LearnerConfig, group: Group) -> None:
    """Raises ConfigError where the learners of a group were started with different settings."""
    everyone = group.collect({**config.to_json(), **dict.fromkeys(_OWN_SETTINGS)})
    for rank, theirs in enumerate(everyone):
        different = sorted(name for name, value in theirs.items() if value != everyone[0][name])
        if different:
            name = different[0]
            came = f"{everyone[0][name]!r} for rank 0, {theirs[name]!r} for rank {rank}"
            raise ConfigError(f"{name}: expected the same of every learner, came {came}")


def _device(config: LearnerConfig, place: Place) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: expected a CUDA device, came a machine without one; use --device cpu")
    if config.device == "cuda" and place.local_rank >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ConfigError(f"device: expected a CUDA device for each learner here, came {found} and learner {place.local_rank}")
    return torch.device("cuda", place.local_rank) if config.device == "cuda" else torch.device(config.device)


def _build_learner(
    config: LearnerConfig, spec: EnvironmentSpec, device: torch.device, start: StartingPoint, group: Group
) -> Learner:
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
        group=group,
    )
    learner.updates, learner.skipped_updates = start.learner_updates, start.skipped_updates
    if start.checkpoint is not None:
        learner.restore(start.checkpoint.parameters, start.checkpoint.optimiser)
        torch.set_rng_state(start.checkpoint.random["cpu"])
        if "cuda" in start.checkpoint.random and device.type == "cuda":
            torch.cuda.set_rng_state(start.checkpoint.random["cuda"], device)
    return learner


def _describe(console: Console, config: LearnerConfig, directory: RunDirectory, start: StartingPoint) -> None:
    say(console, f"run directory: {escape(str(directory.path))}")
    if start.checkpoint is None and start.steps_trained:
        say(console, f"no checkpoint was ever written: new weights, at {start.steps_trained:,} steps")
    if start.checkpoint is not None:
        lost = start.steps_lost - start.checkpoint.state["steps_lost"]
        note = f"; the weights of {lost:,} steps since are lost" if lost else ""
        say(console, f"resumes from version {start.checkpoint.version} at {start.steps_trained:,} steps{note}")
