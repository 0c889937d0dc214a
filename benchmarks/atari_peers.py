"""Peers on the same games for as many minutes: Stable-Baselines3's A2C and PPO with the paper's small network, and what they reach.

    python -m benchmarks.atari_peers --games Pong Breakout --minutes 60 --seeds 0 1 2

writes results/atari-peers.json, a run at a time; a series that was interrupted goes on with the run that it was in, from its start.
Ours are the runs of `make atari` after as many minutes. `make .venv-peers/.ready` makes the peers' environment first. Both want the
machine for themselves, in turn, with two threads.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from actor_client.scores import summarise
from benchmarks.compare import run_peer
from benchmarks.machine import commit, machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=".venv-peers/bin/python", help="the interpreter that has the peer")
    parser.add_argument("--games", nargs="+", default=["Pong", "Breakout"], help="NAME of ALE/NAME-v5")
    parser.add_argument("--algorithms", nargs="+", choices=["a2c", "ppo"], default=["a2c", "ppo"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("results/atari-peers.json"))
    arguments = parser.parse_args()
    runs: list[dict[str, Any]] = json.loads(arguments.output.read_text())["peers"] if arguments.output.exists() else []
    done = {_key(run) for run in runs}
    # Seed by seed, so that an interrupted series has something of everything.
    for seed in arguments.seeds:
        for game in arguments.games:
            for algorithm in arguments.algorithms:
                which = {"game": game, "algorithm": algorithm, "seed": seed, "minutes": arguments.minutes}
                if _key(which) in done:
                    continue
                runs.append(which | train(arguments.peer, which, arguments.episodes))
                arguments.output.parent.mkdir(parents=True, exist_ok=True)
                arguments.output.write_text(json.dumps({"peers": runs}, indent=1) + "\n")
                print(json.dumps({name: value for name, value in runs[-1].items() if name != "curve"}), flush=True)


def train(peer: str, which: dict[str, Any], episodes: int) -> dict[str, Any]:
    """Returns how one of the peers' agents learnt, how its final policy plays, sampled, and what it takes to repeat that."""
    environment = f"ALE/{which['game']}-v5"
    amounts = ["--seed", str(which["seed"]), "--seconds", str(60.0 * which["minutes"]), "--episodes", str(episodes)]
    result = run_peer(peer, "learn", which["algorithm"], environment, *amounts, "--threads", "2")
    returns = result.pop("returns")
    return {
        "command": f"python -m benchmarks.atari_peers {' '.join(sys.argv[1:])}",
        "commit": commit(),
        "machine": machine(),
        **result,
        "evaluation": summarise(environment, returns, seed=which["seed"]),
    }


def _key(run: dict[str, Any]) -> tuple[str, str, int, float]:
    return run["game"], run["algorithm"], run["seed"], run["minutes"]


if __name__ == "__main__":
    main()
