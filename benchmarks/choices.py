"""What the choices of docs/primer.md, section 8, are worth: each wrong in turn, on CartPole-v1 and on Recall.

    python -m benchmarks.choices --seeds 0 1

writes results/choices.json, run by run; a series that was interrupted goes on where it was. Actor and learner take turns in one
process, the acting weights two updates old: 32 environments, unrolls of 20, Adam, rewards scaled by 0.05, as the preset
`cartpole` but at a constant learning rate. The score is the mean return of all episodes in the last tenth of a run.
"""

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.simulated import Simulation, limit_as_termination, simulate, without_reset_rows
from impala.config import LossConfig, NetworkConfig
from impala.optimisers import PaperRMSprop

OUTPUT = Path("results/choices.json")
_ADAM = functools.partial(torch.optim.Adam, lr=2e-3)
_PAPER = functools.partial(PaperRMSprop, lr=5e-3, decay=0.99, momentum=0.0, epsilon=0.01)
_TORCH = functools.partial(torch.optim.RMSprop, lr=5e-3, alpha=0.99, momentum=0.0, eps=0.01)
_MEAN = 1.0 / (20 * 32)
_LOSS = LossConfig(reward_scale=0.05, entropy_cost=0.005)

CARTPOLE = Simulation(environment="CartPole-v1", loss=_LOSS, optimiser=_ADAM)
RECALL = Simulation(
    environment="impala/Recall-v0",
    loss=LossConfig(),
    optimiser=functools.partial(torch.optim.Adam, lr=3e-3),
    network=NetworkConfig(lstm_size=64, lstm_forget_bias=3.0),
    unroll_length=33,
)
# Name: what is trained, and for how many updates.
CHOICES: Mapping[str, tuple[Simulation, int]] = {
    "as it should be": (CARTPOLE, 600),
    "mean of the losses": (replace(CARTPOLE, gradient_scale=_MEAN), 600),
    "RMSProp in the paper's form": (replace(CARTPOLE, optimiser=_PAPER), 600),
    "RMSProp in the paper's form, mean of the losses": (replace(CARTPOLE, optimiser=_PAPER, gradient_scale=_MEAN), 600),
    "RMSProp in PyTorch's form": (replace(CARTPOLE, optimiser=_TORCH), 600),
    "lag 16": (replace(CARTPOLE, lag=16), 600),
    "lag 16, no correction": (replace(CARTPOLE, lag=16, loss=replace(_LOSS, correction="none")), 600),
    "time limit as termination": (replace(CARTPOLE, edit=limit_as_termination), 600),
    "reset rows counted as steps": (replace(CARTPOLE, edit=without_reset_rows), 600),
    "rewards not scaled": (replace(CARTPOLE, loss=replace(_LOSS, reward_scale=1.0)), 600),
    "entropy cost 0": (replace(CARTPOLE, loss=replace(_LOSS, entropy_cost=0.0)), 600),
    "entropy cost 0.05": (replace(CARTPOLE, loss=replace(_LOSS, entropy_cost=0.05)), 600),
    "Recall": (RECALL, 300),
    "Recall, state not reset inside unrolls": (replace(RECALL, resets_inside=False), 300),
}


def train(simulation: Simulation, updates: int, seed: int) -> dict[str, Any]:
    """Returns how a run went."""
    began, returns, window = time.perf_counter(), list[tuple[int, float]](), list[float]()
    solved: int | None = None
    for update in simulate(simulation, seed):
        if update.number == updates:
            break
        window = (window + [episode.episode_return for episode in update.episodes])[-100:]
        returns += [(update.number, episode.episode_return) for episode in update.episodes]
        if solved is None and len(window) == 100 and statistics.fmean(window) >= 475.0:
            solved = update.number
    late = [value for number, value in returns if number >= 0.9 * updates]
    return {
        "updates": updates,
        "updates_until_475": solved,
        "score": round(statistics.fmean(late), 3),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"runs": []}
    result["command"] = "python -m benchmarks.choices --seeds " + " ".join(map(str, arguments.seeds))
    result["machine"] = machine()
    for seed, (name, (simulation, updates)) in itertools.product(arguments.seeds, CHOICES.items()):
        if not any((run["name"], run["seed"]) == (name, seed) for run in result["runs"]):
            result["runs"].append({"name": name, "seed": seed, **train(simulation, updates, seed)})
            arguments.output.parent.mkdir(exist_ok=True)
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")
            print(json.dumps(result["runs"][-1]), flush=True)


if __name__ == "__main__":
    main()
