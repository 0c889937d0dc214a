"""Stable-Baselines3's A2C and PPO, run in an environment of its own by `benchmarks.peers`, which see; prints one JSON object.

python stable_baselines.py throughput a2c CartPole-v1 --seconds 15
python stable_baselines.py throughput a2c ALE/Breakout-v5 --seconds 30
python stable_baselines.py solve ppo CartPole-v1 --seed 0
"""

import argparse
import json
import time
from typing import Any

import ale_py
import gymnasium
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack

# For CartPole-v1, its own tuned settings (RL Baselines3 Zoo, hyperparams/a2c.yml and ppo.yml); else what the library starts with.
CARTPOLE: dict[str, dict[str, Any]] = {
    "a2c": {"ent_coef": 0.0},
    "ppo": {
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "ent_coef": 0.0,
        "learning_rate": lambda left: left * 1e-3,
        "clip_range": lambda left: left * 0.2,
    },
}
ENVIRONMENTS = 8


class Clock(BaseCallback):
    """Ends training after some seconds past a warm-up, or when the mean of the last 100 episodes reaches a return."""

    def __init__(self, seconds: float, warm_up: float, stop_at_return: float | None) -> None:
        super().__init__()
        self.seconds, self.warm_up, self.stop_at_return = seconds, warm_up, stop_at_return
        self.began: tuple[float, int] | None = None
        self.warm: tuple[float, int] | None = None
        self.now: tuple[float, int] = (0.0, 0)
        self.solved = False

    def _on_step(self) -> bool:
        self.now = (time.monotonic(), self.num_timesteps)
        self.began = self.began or self.now
        if self.warm is None and self.now[0] - self.began[0] >= self.warm_up:
            self.warm = self.now
        episodes = self.model.ep_info_buffer or []
        mean = sum(episode["r"] for episode in episodes) / max(1, len(episodes))
        self.solved = self.stop_at_return is not None and len(episodes) == 100 and mean >= self.stop_at_return
        return not self.solved and self.now[0] - self.began[0] < self.warm_up + self.seconds


def make(algorithm: str, environment: str, seed: int) -> Any:
    """Returns an untrained agent."""
    kind = {"a2c": A2C, "ppo": PPO}[algorithm]
    if environment.startswith("ALE/"):
        gymnasium.register_envs(ale_py)
        # Repeated once, by its wrapper, and without sticky actions: the paper's games.
        kwargs = {"frameskip": 1, "repeat_action_probability": 0.0}
        envs = VecFrameStack(make_atari_env(environment, n_envs=ENVIRONMENTS, seed=seed, env_kwargs=kwargs), n_stack=4)
        return kind("CnnPolicy", envs, seed=seed, device="cpu")
    envs = make_vec_env(environment, n_envs=ENVIRONMENTS, seed=seed)
    return kind("MlpPolicy", envs, seed=seed, device="cpu", **CARTPOLE[algorithm])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "solve"])
    parser.add_argument("algorithm", choices=["a2c", "ppo"])
    parser.add_argument("environment")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    # Networks this small gain nothing by a second thread.
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    solve = arguments.what == "solve"
    agent = make(arguments.algorithm, arguments.environment, arguments.seed)
    # Zoo's runs are this long, which its schedules of rates go by.
    steps = {"a2c": 500_000, "ppo": 100_000}[arguments.algorithm] if solve else 10**9
    clock = Clock(arguments.seconds, 0.0 if solve else 3.0, 475.0 if solve else None)
    agent.learn(steps, callback=clock)
    assert clock.began is not None
    result: dict[str, Any] = {"seed": arguments.seed, "env_steps": clock.now[1]}
    if solve:
        result |= {"solved": clock.solved, "seconds": round(clock.now[0] - clock.began[0], 2)}
    else:
        assert clock.warm is not None
        result["steps_per_second"] = round((clock.now[1] - clock.warm[1]) / (clock.now[0] - clock.warm[0]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
