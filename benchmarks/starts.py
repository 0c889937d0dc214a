"""How soon a network sees the ball: returns of Pong, played at random, predicted from frames, by how the network starts.

    python -m benchmarks.starts --output results/starts.json

What a policy learns from has to be told apart first, and in an hour of two cores there are few updates to do it in. Each start
of the paper's small network, torch's own or orthogonal, is trained for 600 updates of 80 steps by Adam on the same recording,
to predict the return from frames. Frames are as they come or less the mean of each pixel (`--normalise-observations`), returns
as they are or with mean 0 and deviation 1 (`--normalise-returns`). Explained variance, of steps not trained on, is 0 for the
best constant and 1 for no error. Dead features are 0 on all of those steps.
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

# How layers start, whether frames are centred, whether returns are normalised.
CASES = (
    ("torch", False, False),
    ("torch", False, True),
    ("orthogonal", False, True),
    ("torch", True, True),
    ("orthogonal", True, True),
)
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
    for layer in layers if how == "torch" else ():
        layer.reset_parameters()
    value = nn.Linear(256, 1)
    nn.init.orthogonal_(value.weight)
    nn.init.zeros_(value.bias)
    return nn.Sequential(trunk, value)


def train(case: tuple[str, bool, bool], recording: tuple[np.ndarray, np.ndarray], updates: int, rate: float, seed: int) -> Any:
    """Returns the explained variance and the share of dead features after so many updates."""
    (how, centred, normalised), (frames, returns) = case, recording
    background = torch.from_numpy(frames.mean((0, 1)).astype(np.float32)) if centred else torch.zeros(84, 84)
    mean, deviation = (float(returns.mean()), float(returns.std())) if normalised else (0.0, 1.0)
    network, generator = started(how, seed), np.random.default_rng(seed)
    optimiser = torch.optim.Adam(network.parameters(), rate)

    def draw(count: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        steps, which = generator.integers(first, last, count), generator.integers(0, _ENVIRONMENTS, count)
        stacks = np.stack([frames[steps - back, which] for back in reversed(range(_STACK))], 1)
        images = (torch.from_numpy(stacks) - background) / 255.0
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
        "case": _name(case),
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
        for case in CASES:
            runs.append(train(case, recording, arguments.updates, arguments.learning_rate, seed))
            print(json.dumps(runs[-1]), flush=True)
    figures = ("explained_variance", "dead_features")
    medians = {
        name: {figure: statistics.median(run[figure] for run in runs if run["case"] == name) for figure in figures}
        for name in map(_name, CASES)
    }
    print(json.dumps(medians, indent=1))
    if arguments.output:
        command = f"python -m benchmarks.starts {' '.join(sys.argv[1:])}"
        record_of_it = {"command": command, "machine": machine(), "medians": medians, "fits": runs}
        arguments.output.write_text(json.dumps(record_of_it, indent=1) + "\n")


def _name(case: tuple[str, bool, bool]) -> str:
    start, centred, normalised = case
    return ", ".join([start, *["frames centred"] * centred, *["returns normalised"] * normalised])


if __name__ == "__main__":
    main()
