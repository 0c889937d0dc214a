"""How far apart the policies are at several lags: importance ratios on CartPole-v1.

    python -m benchmarks.ratios --seeds 0 1 2

writes results/ratios.json. Actor and learner take turns in one process (`benchmarks.simulated`), the acting weights two updates
old; after 300 updates the newest policy is held against unrolls of its own, and of those of 1, 4, 16 and 64 updates before.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.choices import CARTPOLE
from benchmarks.machine import machine
from benchmarks.simulated import Update, simulate
from impala.losses import impala_loss
from impala.unroll import concatenate

LAGS = (0, 1, 4, 16, 64)
UPDATES, UNROLLS = 300, 10
# Of log pi/mu; what lies beyond is counted in the first and last.
EDGES = np.linspace(-4.0, 4.0, 81)


def measure(update: Update, lag: int) -> dict[str, Any]:
    """Returns the distribution of log pi/mu of the newest weights on new unrolls of those `lag` updates before."""
    update.actor.load_parameters(update.number - lag, update.snapshots[-1 - lag])
    unroll = concatenate([concatenate([update.actor.collect().unroll]) for _ in range(UNROLLS)]).map(torch.from_numpy)
    with torch.no_grad():
        output = update.network(unroll.observations, unroll.is_first, unroll.initial_state)
        log_ratios = update.network.distribution.log_prob(output.policy[:-1], unroll.actions) - unroll.behaviour_log_probs
        loss = impala_loss(update.network, unroll, CARTPOLE.loss, parameter_version=update.number)
    taken = log_ratios[~unroll.reset_rows].numpy()
    ratios = np.exp(taken)
    return {
        "lag": lag,
        "steps": len(taken),
        "histogram": np.histogram(taken.clip(EDGES[0], EDGES[-1]), EDGES)[0].tolist(),
        "mean_ratio": round(float(ratios.mean()), 4),
        "ratio_standard_deviation": round(float(ratios.std()), 4),
        "largest_ratio": round(float(ratios.max()), 3),
        "log_rho_abs": round(float(loss.log_rho_abs), 5),
        "clipped_fraction": round(float(loss.clipped_fraction), 4),
        "effective_sample_size": round(float(loss.effective_sample_size), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("results/ratios.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for seed in arguments.seeds:
        simulation = simulate(CARTPOLE, seed, kept=max(LAGS))
        update = next(itertools.islice(simulation, UPDATES, None))
        runs += [{"seed": seed, **measure(update, lag)} for lag in LAGS]
        simulation.close()
        print(*[{name: value for name, value in run.items() if name != "histogram"} for run in runs[-len(LAGS) :]], sep="\n")
    result = {
        "command": "python -m benchmarks.ratios --seeds " + " ".join(map(str, arguments.seeds)),
        "machine": machine(),
        "edges": EDGES.round(3).tolist(),
        "runs": runs,
    }
    arguments.output.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
