"""How soon a network sees the ball: returns of Pong, played at random, predicted from frames, by how the network starts.

    python -m benchmarks.starts --output results/starts.json

What a policy learns from has to be told apart first, and in an hour of two cores there are few updates to do it in. Each start of
the paper's small network is trained for 600 updates of 80 steps by Adam on the same recording, to predict the return from frames, as
it is and with mean 0 and deviation 1 (`--normalise-returns`). Explained variance, of steps not trained on, is 0 for the best
constant and 1 for no error. Dead features are 0 on all of those steps.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.machine import machine
from impala.config import EnvironmentConfig
from impala.environments import VectorEnvironment
from impala.networks.convolutions import ConvolutionalTorso
from impala.processor import prepare_processor
from impala.specs import ActionSpec, EntrySpec, EnvironmentSpec

STARTS = ("torch", "orthogonal", "ours")
_ENVIRONMENTS, _STEPS, _TRAINED_ON, _STACK, _DISCOUNT = 8, 4000, 3100, 4, 0.99
_BATCH, _TESTED = 80, 1500


def record(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns frames, [steps, environments, 84, 84], of play at random, and the discounted return from each on."""
    environment = VectorEnvironment(EnvironmentConfig(environment_id="ALE/Pong-v5"), _ENVIRONMENTS)
    try:
        generator, observations = np.random.default_rng(seed), environment.reset(seed)
        frames, rewards, is_first = [], [], []
        for _ in range(_STEPS):
            frames.append(observations["observation"].copy())
            transition = environment.step(generator.integers(0, 6, _ENVIRONMENTS))
            observations = transition.observations
            rewards.append(transition.rewards.copy())
            is_first.append(transition.is_first.copy())
    finally:
        environment.close()
    returns, following = np.zeros((_STEPS, _ENVIRONMENTS), np.float32), np.zeros(_ENVIRONMENTS, np.float32)
    for step in reversed(range(_STEPS)):
        following = rewards[step] + _DISCOUNT * following * ~is_first[step]
        returns[step] = following
    return np.stack(frames), returns


def started(how: str, seed: int) -> nn.Module:
    """Returns an untrained network from four frames to a value."""
    torch.manual_seed(seed)
    entry = EntrySpec(shape=(_STACK, 84, 84), dtype=np.dtype(np.float32))
    spec = EnvironmentSpec(observations={"image": entry}, actions=ActionSpec(sizes=(6,), dimensions=0, single=True))
    (trunk,) = ConvolutionalTorso(spec, {"image": "shallow"}).trunks
    layers = [layer for layer in trunk.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers if how != "ours" else ():
        layer.reset_parameters()
        if how == "orthogonal":
            nn.init.orthogonal_(layer.weight, 2.0**0.5)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    value = nn.Linear(256, 1)
    nn.init.orthogonal_(value.weight)
    nn.init.zeros_(value.bias)
    return nn.Sequential(trunk, value)


def train(how: str, recording: tuple[np.ndarray, np.ndarray], *, normalised: bool, updates: int, rate: float, seed: int) -> Any:
    """Returns the explained variance and the share of dead features after so many updates."""
    frames, returns = recording
    mean, deviation = (float(returns.mean()), float(returns.std())) if normalised else (0.0, 1.0)
    network, generator = started(how, seed), np.random.default_rng(seed)
    optimiser = torch.optim.Adam(network.parameters(), rate)

    def draw(count: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        steps, which = generator.integers(first, last, count), generator.integers(0, _ENVIRONMENTS, count)
        stacks = np.stack([frames[steps - back, which] for back in reversed(range(_STACK))], 1)
        images = torch.from_numpy(stacks).float() / 255.0
        return images.contiguous(memory_format=torch.channels_last), torch.from_numpy(returns[steps, which])

    for _ in range(updates):
        images, targets = draw(_BATCH, _STACK, _TRAINED_ON)
        loss = (network(images)[:, 0] - (targets - mean) / deviation).square().mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    # A hundred steps apart, so that what is tested on is not the same point of a game.
    images, targets = draw(_TESTED, _TRAINED_ON + 100, _STEPS - 100)
    with torch.inference_mode():
        features = network[0](images)  # type: ignore[index]
        errors = targets - (network[1](features)[:, 0] * deviation + mean)  # type: ignore[index]
    return {
        "start": how,
        "normalised": normalised,
        "seed": seed,
        "explained_variance": round(1.0 - float(errors.square().mean() / targets.var()), 4),
        "dead_features": round(float((features <= 0.0).all(0).float().mean()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    prepare_processor(1)
    recording, runs = record(0), []
    for seed in arguments.seeds:
        for how in STARTS:
            for normalised in (False, True):
                amounts = {"updates": arguments.updates, "rate": arguments.learning_rate, "seed": seed}
                runs.append(train(how, recording, normalised=normalised, **amounts))
                print(json.dumps(runs[-1]), flush=True)
    medians = {
        f"{how}{', normalised' * normalised}": {
            figure: statistics.median(run[figure] for run in runs if (run["start"], run["normalised"]) == (how, normalised))
            for figure in ("explained_variance", "dead_features")
        }
        for how in STARTS
        for normalised in (False, True)
    }
    print(json.dumps(medians, indent=1))
    if arguments.output:
        command = f"python -m benchmarks.starts {' '.join(sys.argv[1:])}"
        record_of_it = {"command": command, "machine": machine(), "medians": medians, "fits": runs}
        arguments.output.write_text(json.dumps(record_of_it, indent=1) + "\n")


if __name__ == "__main__":
    main()
