"""What a machine can train at most: environment, inference and learning step, each alone on one core, and what follows from them.

    python -m benchmarks.parts --preset cartpole --envs 256 --batch-size 512
    python -m benchmarks.parts --seconds 3 --preset atari-deep --device cuda --precision bfloat16

Everything but --seconds, --cores and --output is for impala-learner. One core of the computed limit does nothing but these three,
one after the other, without a queue, a message or a lock: cores / (1/environment + 1/inference + 1/learning). Where the learner is
on a GPU there are two limits: what the GPU learns, and what the cores act.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actor_client.actor import Actor
from benchmarks.machine import machine
from impala.environments import VectorEnvironment, agent_spec
from impala.networks import build_network
from impala.processor import prepare_processor
from impala.unroll import Unroll, concatenate
from learner_server.__main__ import parse
from learner_server.config import LearnerConfig
from learner_server.learner import Learner
from learner_server.transfer import transfer_to


def rate(work: Callable[[], int], seconds: float) -> float:
    """Returns what calls of `work` did a second, the first of them not counted: `work` returns how much it did."""
    work()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        done += work()
    return done / (time.perf_counter() - started)


def environment_rate(config: LearnerConfig, seconds: float) -> float:
    """Returns agent steps a second of one actor's environments alone, played at random."""
    spec = agent_spec(config.agent(), config.hosting())
    environment = VectorEnvironment(config.environments()[0], config.envs, spec=spec, hosting=config.hosting())
    try:
        environment.reset(config.seed)
        shape = (64, config.envs, *spec.actions.shape)
        generator = np.random.default_rng(config.seed)
        actions = (
            generator.uniform(-1, 1, shape) if spec.actions.is_continuous else generator.integers(0, spec.actions.sizes, shape)
        )
        actions = actions.astype(spec.actions.dtype)

        def play() -> int:
            for row in actions:
                environment.step(row)
            return 64 * config.envs

        return rate(play, seconds)
    finally:
        environment.close()


def recorded(config: LearnerConfig) -> Unroll[np.ndarray]:
    """Returns unrolls side by side, as untrained actors play them: those of one actor at least, and enough for a batch."""
    spec = agent_spec(config.agent(), config.hosting())
    environment = VectorEnvironment(
        config.environments()[0],
        config.envs,
        last_action_reward=config.network.last_action_reward,
        spec=spec,
        hosting=config.hosting(),
    )
    try:
        network = build_network(config.network, spec, allowed_modules=config.allow_module)
        actor = Actor(environment, network, unroll_length=config.unroll_length, seed=config.seed)
        actor.load_parameters(1, network.state_dict())
        # Copies, for the actor's buffers are written again.
        unrolls = [actor.collect().unroll.map(np.copy) for _ in range(-(-config.batch_size // config.envs))]
        return concatenate(unrolls)
    finally:
        environment.close()


def inference_rate(config: LearnerConfig, unrolls: Unroll[np.ndarray], seconds: float) -> float:
    """Returns agent steps a second of inference alone, choosing actions included, with as many environments as an actor has."""
    spec = agent_spec(config.agent(), config.hosting())
    network = build_network(config.network, spec, allowed_modules=config.allow_module).eval().requires_grad_(requires_grad=False)
    network.compute_in(getattr(torch, config.network.acting_precision))
    rows = [
        {name: torch.from_numpy(np.ascontiguousarray(array[t, : config.envs])) for name, array in unrolls.observations.items()}
        for t in range(unrolls.length)
    ]
    is_first, state = torch.zeros(config.envs, dtype=torch.bool), network.initial_state(config.envs)
    generator = torch.Generator().manual_seed(config.seed)

    @torch.inference_mode()
    def act() -> int:
        current = state
        noise = network.distribution.noise((unrolls.length, config.envs), generator)
        for t, observations in enumerate(rows):
            policy, current = network.act(observations, is_first, current)
            network.distribution.choose(policy, noise[t])
        return unrolls.length * config.envs

    return rate(act, seconds)


def learning_rate(config: LearnerConfig, unrolls: Unroll[np.ndarray], seconds: float) -> float:
    """Returns agent steps a second of the learner's steps alone, from batch to weights, both on the host."""
    batch = concatenate([unrolls.columns(0, config.batch_size)])
    device = torch.device(config.device)
    spec = agent_spec(config.agent(), config.hosting())
    network = build_network(config.network, spec, allowed_modules=config.allow_module).to(device)
    learner = Learner(
        network,
        config.loss,
        config.optimiser,
        total_steps=config.total_steps,
        transfer=transfer_to(device),
        precision=config.precision,
        compiles=config.compile,
    )

    def step() -> int:
        learner.step(batch, 0)
        return batch.length * batch.environments

    for _ in range(3):  # a device finds its algorithms, a compiler compiles
        step()
    return rate(step, seconds)


def measure_parts(config: LearnerConfig, *, seconds: float, cores: int) -> dict[str, Any]:
    """Returns the three rates and the limits that follow, in agent steps a second."""
    torch.manual_seed(config.seed)
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    try:
        prepare_processor(1)
        unrolls = recorded(config)
        environment = environment_rate(config, seconds)
        inference = inference_rate(config, unrolls, seconds)
        learning = learning_rate(config, unrolls, seconds)
    finally:
        os.sched_setaffinity(0, everywhere)
    figures = {"environment": environment, "inference": inference, "learning": learning}
    if config.device == "cpu":
        figures["limit"] = cores / (1 / environment + 1 / inference + 1 / learning)
    else:
        figures["limit_of_acting"] = cores / (1 / environment + 1 / inference)
    return {name: round(figure) for name, figure in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each part")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, help="a record is added to it")
    arguments, flags = parser.parse_known_args()
    figures = measure_parts(parse(flags), seconds=arguments.seconds, cores=arguments.cores)
    result = {
        "command": f"python -m benchmarks.parts {' '.join(sys.argv[1:])}",
        "machine": machine(),
        "cores": arguments.cores,
        "agent_steps_per_second": figures,
    }
    print(json.dumps(result), flush=True)
    if arguments.output is not None:
        records = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
        arguments.output.write_text(json.dumps([*records, result], indent=1) + "\n")


if __name__ == "__main__":
    main()
