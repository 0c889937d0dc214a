"""A real learner service on a free port, without a training loop: the test takes the batches itself."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import grpc
import torch

from impala.config import AgentConfig
from impala.networks import Network, build_network
from impala.specs import UnrollSpec
from impala.unroll import ActorTimes
from impala.wire import Assignment, spec_digest
from learner_server.actor_limits import ActorLimits
from learner_server.actor_registry import Actor, ActorRegistry
from learner_server.balance import Balance
from learner_server.episodes import EpisodeLog
from learner_server.lockstep import Lockstep
from learner_server.parameter_store import ParameterStore
from learner_server.recorder import Recorder
from learner_server.server import LearnerServer
from learner_server.servicer import LearnerServicer
from learner_server.unroll_queue import UnrollQueue
from protos import impala_pb2 as pb
from protos import impala_pb2_grpc as pb_grpc
from tests.samples import AGENT, SPEC


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Returns once `condition` holds; fails when it does not within `seconds`, which no working machine needs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.002)


def free_port() -> int:
    """Returns a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Service:
    """The parts of a running service, and a stub that calls it as actor `tester`, which has joined."""

    address: str
    digest: str
    network: Network
    queue: UnrollQueue
    store: ParameterStore
    actors: ActorRegistry
    episodes: EpisodeLog
    servicer: LearnerServicer
    server: LearnerServer
    times: list[ActorTimes]
    stub: pb_grpc.LearnerStub

    def join(self, actor_id: str = "tester", incarnation: int = 1) -> pb.JoinResponse:
        request = pb.JoinRequest(protocol_version=1, actor_id=actor_id, incarnation=incarnation)
        response: pb.JoinResponse = self.stub.Join(request, timeout=10)
        return response

    def publish(self) -> None:
        """Publishes the network's weights as the next version."""
        self.store.publish(self.store.version + 1, self.network.state_dict())

    @contextmanager
    def trainer(self, trajectories: int = 3) -> Iterator[list[int]]:
        """Takes batches in a thread, as training would; yields the list of the env_steps of each batch taken so far."""
        taken: list[int] = []
        done = threading.Event()

        def train() -> None:
            while not done.is_set():
                batch = self.queue.take_batch(trajectories, 0.05)
                if batch is not None:
                    self.queue.mark_trained()
                    self.publish()
                    taken.append(batch.env_steps)

        thread = threading.Thread(target=train, name="trainer")
        thread.start()
        try:
            yield taken
        finally:
            done.set()
            thread.join()


@contextmanager
def running_service(
    *,
    capacity: int = 6,
    max_line: int = 64,
    max_policy_lag: int = 1000,
    port: int = 0,
    agent: AgentConfig = AGENT,
    run_id: str = "test-run",
    spec: UnrollSpec = SPEC,
    task: int | None = None,
    max_in_flight: int = 2,
    compresses: bool = True,
    balance: Balance | None = None,
    when_full: Literal["wait", "drop-oldest"] = "wait",
    limits: ActorLimits | None = None,
    lockstep: Lockstep | None = None,
    lanes: int | None = None,
    recorder: Recorder | None = None,
) -> Iterator[Service]:
    """Yields a service with version 1 published; `spec` and `agent` say what its unrolls look like.

    Args:
        capacity: trajectories that have a place in the queue.
        port: of 127.0.0.1; 0 takes a free one.
        balance: sends actors to other learners.
        limits: what one actor may ask for; None for no limits.
        task: which actors are told that theirs is, whatever it is.
        lockstep: that answers are held back by; `lanes` is then how many actors there are, 1 if left out.
        recorder: that follows unrolls.
    """
    torch.manual_seed(0)
    network = build_network(agent.network, spec.environment)
    tasks = len(agent.environments)
    on_taken = None if recorder is None else recorder.taken
    queue = UnrollQueue(
        capacity=capacity, max_line=max_line, when_full=when_full, trained=[0] * tasks, lanes=lanes, on_taken=on_taken
    )
    store, actors, episodes = ParameterStore(), ActorRegistry(tasks), EpisodeLog(counts=[0] * tasks)
    digest = spec_digest(agent, spec)

    def assign(actor: Actor, environments: int) -> Assignment:
        return Assignment(
            run_id=run_id,
            spec_digest=digest,
            environment=agent.environments[actor.task],
            task=actor.task if task is None else task,
            network=agent.network,
            unroll_spec=spec,
            environments=environments or 3,
            seed=actor.index,
            max_in_flight=max_in_flight,
            max_on_the_way=16,
            compresses=compresses,
        )

    times: list[ActorTimes] = []
    servicer = LearnerServicer(
        assign=assign,
        spec=spec,
        spec_digest=digest,
        queue=queue,
        store=store,
        actors=actors,
        max_policy_lag=max_policy_lag,
        on_unroll=episodes.add,
        on_times=times.append,
        balance=balance,
        limits=limits,
        lockstep=lockstep,
        recorder=recorder,
    )
    store.publish(1, network.state_dict())
    server = LearnerServer(servicer, f"127.0.0.1:{port}")
    address = f"127.0.0.1:{server.start()}"
    # Larger than the server's limit, for tests of messages over it.
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel:
        stub = pb_grpc.LearnerStub(channel)
        service = Service(address, digest, network, queue, store, actors, episodes, servicer, server, times, stub)
        try:
            service.join()
            yield service
        finally:
            queue.close(run_over=True)
            server.stop(0.5)
