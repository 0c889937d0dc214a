"""Every space x network x vector form, trained for a few updates: real actor, real server, real wire, real learner."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from actor_client.config import ActorConfig
from actor_client.run import ActorProcess
from impala.config import AgentConfig, EnvironmentConfig, LossConfig, NetworkConfig, OptimiserConfig
from impala.environments import agent_spec
from impala.networks import build_network
from impala.specs import EntrySpec, UnrollSpec
from learner_server.learner import Learner
from tests.service import Service, running_service

T, E = 4, 2
UPDATES = 3
ID = "tests/AnySpace-v0"

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
SMALL_IMAGE = spaces.Box(0.0, 1.0, (10, 10, 4), np.bool_)
FRAME = spaces.Box(0, 255, (36, 36), np.uint8)
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "vector": VECTOR,
    "small image": SMALL_IMAGE,
    "another small image": spaces.Box(0.0, 1.0, (10, 9, 6), np.bool_),
    "frame": FRAME,
    "category": spaces.Discrete(5, start=2),
    "categories": spaces.MultiDiscrete([3, 2]),
    "bits": spaces.MultiBinary(4),
    "tuple": spaces.Tuple((VECTOR, spaces.Discrete(3))),
    "everything": spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (36, 36, 3), np.uint8),
            "inner": spaces.Dict({"speed": VECTOR, "gear": spaces.Discrete(3)}),
            "action_mask": spaces.MultiBinary(3),
        }
    ),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "one of three": spaces.Discrete(3, start=-1),
    "one of two": spaces.Discrete(2),
    "several": spaces.MultiDiscrete([3, 2]),
    "bits": spaces.MultiBinary(2),
    "reals": spaces.Box(np.float32([-2.0, 0.0]), np.float32([2.0, np.inf]), dtype=np.float32),
}
NETWORKS = {
    "mlp": NetworkConfig(network="mlp", hidden_sizes=(8,)),
    "mlp lstm": NetworkConfig(network="mlp", hidden_sizes=(8,), lstm_size=8, last_action_reward=True),
    "mlp normalised": NetworkConfig(network="mlp", hidden_sizes=(8,), normalise_observations=True, normalise_returns=True),
    "minatar": NetworkConfig(network="minatar"),
    "nature": NetworkConfig(network="nature"),
    "shallow": NetworkConfig(network="shallow"),
    "deep": NetworkConfig(network="deep"),
    "deep lstm": NetworkConfig(network="deep", lstm_size=8, last_action_reward=True),
}
CONVOLUTIONAL = {"minatar", "nature", "shallow", "deep", "deep lstm"}
# What each takes: convolutions want an image, and those of long strides a large one.
IMAGES = {"small image", "frame", "everything"}
# For several tasks.
OTHERS = {"another small image", "one of two"}


class AnySpace(gymnasium.Env[Any, Any]):
    """Observations drawn from a space, an action in which is an error, and an end every three steps, in two ways by turns."""

    def __init__(self, observation: str, action: str) -> None:
        self.observation_space, self.action_space = OBSERVATIONS[observation], ACTIONS[action]
        self._steps = self._episodes = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self._steps, self._episodes = 0, self._episodes + 1
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self._steps += 1
        done, odd = self._steps == 3, self._episodes % 2 == 1
        return self.observation_space.sample(), 1.0, done and odd, done and not odd, {}


def same_step_vector(num_envs: int, **kwargs: Any) -> SyncVectorEnv:
    """A native vector form in another autoreset mode than ours."""
    makers = [lambda: AnySpace(**kwargs)] * num_envs
    envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    envs.metadata = {**envs.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
    return envs


@pytest.fixture(params=["single", "native"])
def registered(request: pytest.FixtureRequest) -> Iterator[str]:
    """Registers the environment in one of its forms: single ones, stepped one by one, or a vector one in SAME_STEP mode."""
    if request.param == "single":
        gymnasium.register(ID, entry_point=AnySpace)
    else:
        gymnasium.register(ID, vector_entry_point=same_step_vector)
    yield request.param
    del gymnasium.registry[ID]


@contextmanager
def actor_of(service: Service, name: str = "actor") -> Iterator[ActorProcess]:
    actor = ActorProcess(ActorConfig(learner=service.address, envs=E), actor_id=name, incarnation=1, host="here")
    failures: list[BaseException] = []

    def run() -> None:
        try:
            actor.run()
        except BaseException as error:
            failures.append(error)
            service.queue.close(run_over=True)  # so that the test does not wait for an unroll that never comes

    thread = threading.Thread(target=run, name="actor")
    thread.start()
    try:
        yield actor
    finally:
        actor.stop()
        thread.join()
        if failures:
            raise failures[0]


def unroll_spec(agent: AgentConfig) -> UnrollSpec:
    environment = agent_spec(agent)
    state = build_network(agent.network, environment).initial_state(1)
    return UnrollSpec(
        unroll_length=T,
        max_environments=E,
        environment=environment,
        state={name: EntrySpec(shape=tuple(tensor.shape[1:]), dtype=tensor.numpy().dtype) for name, tensor in state.items()},
    )


def train(agent: AgentConfig) -> None:
    """Trains a few updates from an actor's unrolls and holds the weights that come out against those that went in."""
    with running_service(capacity=E, agent=agent, spec=unroll_spec(agent)) as service, actor_of(service):
        learner = Learner(service.network, LossConfig(), OptimiserConfig(), total_steps=1000)
        before = {name: tensor.clone() for name, tensor in service.network.state_dict().items()}
        for _ in range(UPDATES):
            batch = service.queue.take_batch(E, 60.0)
            assert batch is not None, "no unroll came"
            report = learner.step(batch, 0)
            assert not report.skipped
            if learner.version == 2:  # the first batch was acted by the weights that it trained
                assert float(report.loss.log_rho_abs_lag_0) < 1e-5
            service.store.publish(learner.version, service.network.state_dict())
        after = service.network.state_dict()
        changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
        assert all(torch.isfinite(tensor).all() for tensor in after.values())
        assert {name for name, _ in service.network.named_parameters()} == changed & dict(service.network.named_parameters()).keys()


def combinations() -> Iterator[tuple[str, str, str]]:
    for observation, space in OBSERVATIONS.items():
        for action in ACTIONS:
            for network in NETWORKS:
                masked = "action_mask" in getattr(space, "spaces", {})
                if masked and action != "one of three":
                    continue  # its mask is for three actions
                if {observation, action} & OTHERS:
                    continue
                if network in CONVOLUTIONAL and observation not in IMAGES:
                    continue
                if network in {"nature", "shallow"} and observation == "small image":
                    continue
                yield observation, action, network


@pytest.mark.parametrize(("observation", "action", "network"), [pytest.param(*each, id="-".join(each)) for each in combinations()])
def test_every_space_trains_with_every_network_in_every_vector_form(
    registered: str, observation: str, action: str, network: str
) -> None:
    config = EnvironmentConfig(environment_id=ID, kwargs={"observation": observation, "action": action})
    train(AgentConfig(environments=(config,), network=NETWORKS[network], unroll_length=T))


def test_tasks_of_different_spaces_have_equal_shares_and_keep_to_their_own_actions() -> None:
    gymnasium.register(ID, entry_point=AnySpace)
    kinds = [("small image", "one of three"), ("another small image", "one of two")]
    environments = tuple(
        EnvironmentConfig(environment_id=ID, kwargs={"observation": observation, "action": action}) for observation, action in kinds
    )
    network = NetworkConfig(network="minatar", normalise_returns=True)
    agent = AgentConfig(environments=environments, network=network, unroll_length=T)
    try:
        with running_service(capacity=2 * E, agent=agent, spec=unroll_spec(agent)) as service:
            learner = Learner(service.network, LossConfig(), OptimiserConfig(), total_steps=1000)
            # `tester`, who has joined and does not act, has the first task.
            with actor_of(service, "second"), actor_of(service, "first"):
                for _ in range(UPDATES):
                    batch = service.queue.take_batch(2 * E, 60.0)
                    assert batch is not None, "no unroll came"
                    tasks = batch.observations["task"][0]
                    assert sorted(tasks) == [0] * E + [1] * E
                    assert batch.actions[:, tasks == 1].max() <= 1
                    assert not learner.step(batch, 0).skipped
                    service.queue.mark_trained()
                    service.store.publish(learner.version, service.network.state_dict())
            first, second = service.queue.account().trained_by_task
            assert min(first, second) > 0
    finally:
        del gymnasium.registry[ID]
