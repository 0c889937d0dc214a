"""IMPALA in one process: what learner and actors do together, without servers, threads or a wire.

    python -m examples.single_process --preset cartpole --actors 2 --envs 16 --stop-at-return None --total-steps 200000

takes impala-learner's flags and prints the SHA-256 of the final weights. `impala-learner --deterministic` with the same flags ends
with the same weights, bit for bit, on the same machine: that is the sum of its last checkpoint's `parameters.safetensors`. Read it
to see the algorithm whole; it has no injected lag, no checkpoints, and no end but the last step.
"""

import hashlib
import sys

import safetensors.torch
import torch

from actor_client.actor import Actor
from impala.environments import VectorEnvironment, agent_spec
from impala.networks import build_network
from impala.replay import TrajectoryReplay
from impala.specs import EnvironmentSpec
from impala.unroll import concatenate
from learner_server.__main__ import parse
from learner_server.config import LearnerConfig
from learner_server.learner import Learner


def train(config: LearnerConfig) -> Learner:
    """Returns the learner after `total_steps`, its actors' unrolls side by side in every batch, all of the newest weights."""
    torch.set_num_threads(config.threads)
    spec = agent_spec(config.agent(), config.hosting())
    torch.manual_seed(config.seed)
    network = build_network(config.network, spec, allowed_modules=config.allow_module)
    learner = Learner(network, config.loss, config.optimiser, total_steps=config.total_steps, precision=config.precision)
    replay, replayed = TrajectoryReplay(config.replay_unrolls, seed=config.seed), config.batch_size - config.fresh_trajectories
    actors = [_make_actor(config, spec, index) for index in range(config.actors)]
    env_steps = 0
    while env_steps < config.total_steps:
        for actor in actors:
            actor.load_parameters(learner.version, network.state_dict())
        fresh = concatenate([actor.collect().unroll for actor in actors])
        batch = concatenate([fresh, replay.sample(replayed)]) if replayed and len(replay) else fresh
        report = learner.step(batch, env_steps)
        env_steps += fresh.env_steps
        if replayed and not report.skipped:
            replay.add(fresh)
    return learner


def weights_digest(learner: Learner) -> str:
    """Returns the SHA-256 of the weights, as a checkpoint writes them."""
    return hashlib.sha256(safetensors.torch.save(learner.network.state_dict())).hexdigest()


def _make_actor(config: LearnerConfig, spec: EnvironmentSpec, index: int) -> Actor:
    task = index % len(config.env)
    environment = VectorEnvironment(
        config.environments()[task],
        config.envs,
        last_action_reward=config.network.last_action_reward,
        spec=spec,
        task=task,
        hosting=config.hosting(),
    )
    network = build_network(config.network, spec, allowed_modules=config.allow_module)
    network.compute_in(getattr(torch, config.network.acting_precision))
    return Actor(environment, network, unroll_length=config.unroll_length, seed=config.actor_seed(index))


if __name__ == "__main__":
    print(weights_digest(train(parse(sys.argv[1:]))))
