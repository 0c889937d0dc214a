"""An actor process from start to end: joins, acts and sends until the run is over."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from actor_client.actor import Actor
from actor_client.client import LearnerClient, Redirect
from actor_client.config import ActorConfig
from actor_client.connection import Astray, Closed
from actor_client.figures import ActorFigures
from actor_client.health import health_port
from impala.environments import Hosting, VectorEnvironment
from impala.errors import ConfigError, Refused
from impala.networks import build_network
from impala.processor import prepare_processor, starved_seconds
from impala.tokens import read_token
from impala.unroll import ActorTimes
from impala.wire import Assignment

log = logging.getLogger(__name__)


class ActorProcess:
    """Takes part in runs until one is over or `stop` is called."""

    def __init__(self, config: ActorConfig, *, actor_id: str, incarnation: int, host: str) -> None:
        self._config = config
        self._actor_id = actor_id
        self._incarnation = incarnation
        self._host = host
        self._client: LearnerClient | None = None
        self._actor: Actor | None = None
        self._figures = ActorFigures()
        self._stopped = threading.Event()

    def facts(self) -> dict[str, Any]:
        """Returns who this is and which weights it acts with, for the log; from any thread."""
        version = None if self._actor is None else self._actor.parameter_version
        return {"actor_id": self._actor_id, "parameter_version": version or None}

    def stop(self) -> None:
        """Ends `run` soon, from any thread."""
        self._stopped.set()
        if self._client is not None:
            self._client.close()

    def run(self) -> None:
        """Returns when the run is over or `stop` was called. A learner that came back with something else to run is joined anew.

        Raises:
            ConfigError: the environment cannot be made on this machine.
            Refused: the learner refuses this actor.
            EnvironmentFault: an environment returned what nobody can learn from.
            Unreachable: the learner did not answer for as long as the configuration says.
        """
        prepare_processor(self._config.threads)
        token = read_token(self._config.token_file) if self._config.token_file else None
        with health_port(self._config.health) as report, self._metrics_port():

            def reached(answers: bool) -> None:
                report(answers)
                self._figures.note_reached(answers)

            self._take_part_until_over(token, reached)

    @contextmanager
    def _metrics_port(self) -> Iterator[None]:
        if self._config.metrics is None:
            yield
            return
        # Late: most actors answer no Prometheus, and start without what that takes.
        from actor_client.prometheus import metrics_port

        with metrics_port(self._config.metrics, self._figures) as port:
            log.info("answers Prometheus on port %d", port)
            yield

    def _take_part_until_over(self, token: str | None, report: Callable[[bool], None]) -> None:
        config, stays = self._config, False
        while not self._stopped.is_set():
            client = LearnerClient(
                config.learner,
                actor_id=self._actor_id,
                incarnation=self._incarnation,
                host=self._host,
                token=token,
                tls=config.tls(),
                reached=report,
                sent_here=config is not self._config,
                stays=stays,
                give_up_seconds=config.give_up_seconds,
                figures=self._figures,
            )
            self._client = client
            try:
                # Asked again: a stop between the loop's question and here found no client to close.
                if self._stopped.is_set():
                    return
                if self._take_part(client):
                    return
                # Without a redirect it starts over with the learner that it was given, which knows the others.
                config, stays = self._next(client.redirect)
            except Closed:
                return
            except (Astray, Refused) as error:
                # Only where another learner sent it: a name that is not on the certificate, a port that no firewall lets through.
                if config is self._config or (isinstance(error, Refused) and client.joined):
                    raise
                log.warning("%s; back to %s, to stay there", error, self._config.learner)
                config, stays = self._config, True
            finally:
                client.close()
            # Sequences start over with a new client. Higher in any case: clocks are set back at times.
            self._incarnation = max(time.time_ns(), self._incarnation + 1)

    def _next(self, redirect: Redirect | None) -> tuple[ActorConfig, bool]:
        """Returns how to go on, and whether to stay there."""
        if redirect is None:
            return self._config, False
        try:
            return self._config.at(redirect.address), False
        except ConfigError as error:
            log.warning("not going where %s sends this actor: %s", self._config.learner, error)
            return self._config, True

    def _take_part(self, client: LearnerClient) -> bool:
        """Acts for one assignment; returns whether that was the last."""
        assignment = client.join(self._config.envs)
        if isinstance(assignment, Redirect):
            return False
        actor, environment = _build(assignment, self._config.hosting())
        self._actor = actor
        log.info(
            "joined run %s at %s: %s x %d, unrolls of %d",
            assignment.run_id,
            client.address,
            assignment.environment.environment_id,
            assignment.environments,
            assignment.unroll_spec.unroll_length,
        )
        try:
            client.start(assignment)
            _act(client, actor, self._figures)
            if client.redirect is not None:
                client.finish()
        finally:
            environment.close()
        if client.run_over:
            log.info("the run is over")
        return client.run_over or not (client.reassigned or client.redirect)


def _act(client: LearnerClient, actor: Actor, figures: ActorFigures) -> None:
    version, clock = 0, time.perf_counter
    collected_at, waited, starved = clock(), client.waited_seconds, starved_seconds()
    free_at = collected_at
    while (parameters := client.next_parameters()) is not None:
        if parameters.version != version:
            version = parameters.version
            actor.load_parameters(version, parameters.tensors)
        first_step_at = time.monotonic()
        draft = client.recording.begin(free_at)
        collected = actor.collect(None if draft is None else draft.moments)
        before, collected_at = (collected_at, waited, starved), clock()
        if draft is not None:
            draft.collected = collected_at
        waited, starved, calls = client.waited_seconds, starved_seconds(), client.call_times.take()
        times = ActorTimes(
            total=collected_at - before[0],
            environment=collected.environment_seconds,
            inference=collected.inference_seconds,
            waiting=waited - before[1],
            line=calls.line,
            sending=calls.sending,
            fetching=calls.fetching,
            starved=starved - before[2],
        )
        figures.note_unroll(collected.unroll.env_steps, len(collected.episodes), version, times)
        if not client.submit(collected.unroll, collected.episodes, first_step_at, times, draft):
            return
        free_at = clock()


def _build(assignment: Assignment, hosting: Hosting) -> tuple[Actor, VectorEnvironment]:
    spec, config = assignment.unroll_spec, assignment.environment
    environment = VectorEnvironment(
        config,
        assignment.environments,
        last_action_reward=assignment.network.last_action_reward,
        spec=spec.environment,
        task=assignment.task,
        hosting=hosting,
    )
    try:
        network = build_network(assignment.network, spec.environment, allowed_modules=hosting.allowed_modules)
        network.compute_in(getattr(torch, assignment.network.acting_precision))
        return Actor(environment, network, unroll_length=spec.unroll_length, seed=assignment.seed), environment
    except BaseException:
        environment.close()
        raise
