"""Trained weights in a program of one's own: the newest checkpoint of a run plays, a decision at a time.

    python -m examples.trained_agent --run-dir runs/CartPole-v1-seed0-... --episodes 3

`impala-evaluate` does the same with statistics, threads and videos. Here are the three things that any other use needs as well: the
run's configuration, its network with the weights, and a function that acts.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from actor_client.evaluate import Act, load_network, policy
from impala.environments import Hosting, VectorEnvironment, agent_spec
from run_directory.checkpoint import load_newest_checkpoint
from run_directory.layout import RunDirectory


def play(environment: VectorEnvironment, act: Act, episodes: int, seed: int) -> list[float]:
    """Returns the true returns of so many episodes, one after the other in a single environment; `evaluate.play` made plain."""
    returns = list[float]()
    observations, is_first = environment.reset(seed), np.ones(environment.environments, dtype=np.bool_)
    while len(returns) < episodes:
        # By name, [E, ...], and whether an episode begins, [E], which is when the agent's memory is cleared; to actions, [E, ...].
        transition = environment.step(act(observations, is_first))
        observations, is_first = transition.observations, transition.is_first
        returns += [episode.episode_return for episode in transition.episodes]
    return returns


@torch.inference_mode()
def main() -> None:
    """Plays, and prints a line for each episode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--allow-module", nargs="*", default=[], help="where environments and networks of one's own may come from")
    arguments = parser.parse_args()
    hosting = Hosting(allowed_modules=tuple(arguments.allow_module))
    run = RunDirectory(arguments.run_dir)
    agent, checkpoint = run.agent_config(), load_newest_checkpoint(run.checkpoints)
    assert checkpoint is not None, f"{arguments.run_dir} holds no checkpoint"
    # What the run's environments look like to the network, and one of them in that form.
    spec, last = agent_spec(agent, hosting), agent.network.last_action_reward
    environment = VectorEnvironment(agent.environments[0], 1, spec=spec, last_action_reward=last, hosting=hosting)
    network = load_network(agent, spec, checkpoint.parameters, allowed_modules=hosting.allowed_modules)
    act = policy(network, environment.environments, greedy=True, seed=arguments.seed)
    for number, episode_return in enumerate(play(environment, act, arguments.episodes, arguments.seed), start=1):
        print(f"episode {number}: return {episode_return:g}")
    environment.close()


if __name__ == "__main__":
    main()
