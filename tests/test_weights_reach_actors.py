"""Two real actors against a real server: which weights acted, recomputed from the weights themselves."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from actor_client.config import ActorConfig
from actor_client.run import ActorProcess
from impala.config import LossConfig
from impala.losses import impala_loss
from impala.unroll import Unroll
from tests.service import Service, running_service


@contextmanager
def running_actors(service: Service, *names: str) -> Iterator[None]:
    """Runs actors in threads of this process, each with the service's choice of 3 environments."""
    config = ActorConfig(learner=service.address)
    actors = [ActorProcess(config, actor_id=name, incarnation=1, host="here") for name in names]
    threads = [threading.Thread(target=actor.run, name=f"actor-{actor_id}") for actor_id, actor in enumerate(actors)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for actor in actors:
            actor.stop()
        for thread in threads:
            thread.join()


def take(service: Service) -> Unroll[np.ndarray]:
    """Takes one unroll, of one actor."""
    batch = service.queue.take_batch(3, 60.0)
    assert batch is not None, "no unroll came"
    service.queue.mark_trained()
    return batch


def change_weights(service: Service) -> dict[str, Tensor]:
    """Makes the policy a quite different one, publishes it as the next version and returns it."""
    with torch.no_grad():
        for parameter in service.network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    service.publish()
    return {name: tensor.clone() for name, tensor in service.network.state_dict().items()}


def log_probs(service: Service, weights: dict[str, Tensor], unroll: Unroll[np.ndarray]) -> Tensor:
    """Returns log pi(a_t|x_t), [T, E], under the given weights."""
    observations = {name: torch.from_numpy(array) for name, array in unroll.observations.items()}
    output = torch.func.functional_call(service.network, weights, (observations, torch.from_numpy(unroll.is_first), {}))
    actions = torch.from_numpy(unroll.actions).unsqueeze(-1)
    return output.policy[:-1].log_softmax(-1).gather(-1, actions).squeeze(-1).detach()


def test_every_unroll_was_acted_by_the_one_version_that_it_names() -> None:
    with running_service(capacity=3) as service:
        weights = {1: {name: tensor.clone() for name, tensor in service.network.state_dict().items()}}
        with running_actors(service, "a", "b"):
            for version in range(2, 30):
                unroll = take(service)
                (acted,) = np.unique(unroll.parameter_version)
                expected = log_probs(service, weights[int(acted)], unroll)
                torch.testing.assert_close(torch.from_numpy(unroll.behaviour_log_probs), expected, rtol=1e-5, atol=1e-5)
                weights[version] = change_weights(service)


def test_each_of_two_actors_acts_on_new_weights() -> None:
    with running_service(capacity=3) as service, running_actors(service, "a", "b"):
        first: dict[str, int] = {}
        for _ in range(2000):
            take(service)
            change_weights(service)
            newest = {actor.actor_id: actor.parameter_version for actor in service.actors.snapshot() if actor.parameter_version}
            for name, version in newest.items():
                first.setdefault(name, version)
            if {"a", "b"} <= newest.keys() and all(newest[name] > first[name] + 10 for name in ("a", "b")):
                return
        pytest.fail(f"after 2000 versions the actors act on {newest}, having begun with {first}")


def test_without_lag_the_learner_computes_the_probabilities_that_the_actors_did() -> None:
    with running_service(capacity=3) as service, running_actors(service, "a", "b"):
        for _ in range(10):
            batch = take(service)
            unroll = batch.map(torch.from_numpy)
            loss = impala_loss(service.network, unroll, LossConfig(), parameter_version=service.store.version)
            assert float(loss.log_rho_abs_lag_0) < 1e-5
