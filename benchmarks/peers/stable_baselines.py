"""Stable-Baselines3's A2C and PPO, run in an environment of its own by `benchmarks.peers`, which see; prints one JSON object.

python stable_baselines.py throughput a2c CartPole-v1 --seconds 15
python stable_baselines.py throughput a2c ALE/Breakout-v5 --seconds 30
python stable_baselines.py solve ppo CartPole-v1 --seed 0
python stable_baselines.py learn ppo ALE/Pong-v5 --seed 0 --seconds 3600 --episodes 200 --threads 2
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
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack
from torch import Tensor, nn

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
# The same for Atari games, but for rates, which fall to 0 with the time that there is, not with ten million steps.
ATARI: dict[str, dict[str, Any]] = {
    "a2c": {"ent_coef": 0.01, "vf_coef": 0.25},
    "ppo": {"n_steps": 128, "batch_size": 256, "n_epochs": 4, "vf_coef": 0.5, "ent_coef": 0.01},
}
ATARI_ENVIRONMENTS = {"a2c": 16, "ppo": 8}
ENVIRONMENTS = 8


class Shallow(BaseFeaturesExtractor):
    """The small network of the IMPALA paper's Figure 3, which is what this project's presets train on Atari."""

    def __init__(self, observation_space: gymnasium.spaces.Box) -> None:
        super().__init__(observation_space, features_dim=256)
        convolutions = [nn.Conv2d(4, 16, 8, stride=4), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2), nn.ReLU()]
        self.layers = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 9 * 9, 256), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        """Returns features, [N, 256], of frames in [0, 1], [N, 4, 84, 84]."""
        features: Tensor = self.layers(observations)
        return features


class Clock(BaseCallback):
    """Ends training after some seconds past a warm-up, or when the mean of the last 100 episodes reaches a return."""

    def __init__(self, seconds: float, warm_up: float, stop_at_return: float | None) -> None:
        super().__init__()
        self.seconds, self.warm_up, self.stop_at_return = seconds, warm_up, stop_at_return
        self.began: tuple[float, int] | None = None
        self.warm: tuple[float, int] | None = None
        self.now: tuple[float, int] = (0.0, 0)
        self.solved = False
        # Steps, seconds and mean return of the last 100 episodes, every 10 s.
        self.curve: list[tuple[int, float, float]] = []

    def _on_step(self) -> bool:
        self.now = (time.monotonic(), self.num_timesteps)
        self.began = self.began or self.now
        if self.warm is None and self.now[0] - self.began[0] >= self.warm_up:
            self.warm = self.now
        episodes = self.model.ep_info_buffer or []
        mean = sum(episode["r"] for episode in episodes) / max(1, len(episodes))
        seconds = self.now[0] - self.began[0]
        if episodes and seconds >= (self.curve[-1][1] if self.curve else 0.0) + 10.0:
            self.curve.append((self.num_timesteps, round(seconds, 1), round(mean, 3)))
        self.solved = self.stop_at_return is not None and len(episodes) == 100 and mean >= self.stop_at_return
        return not self.solved and seconds < self.warm_up + self.seconds

    def left(self) -> float:
        """Returns the share of its time that is left."""
        return 1.0 if self.began is None else max(0.0, 1.0 - (self.now[0] - self.began[0]) / self.seconds)


def atari(environment: str, environments: int, seed: int, *, whole_games: bool = False) -> VecEnv:
    """Returns games as the library has them: FIRE is pressed for the agent at the start of each life, which ours has to learn.

    `whole_games` are scored as they are. A life's end is an episode's there, too, for after it FIRE has to be pressed as well;
    what counts is what `Monitor`, beneath, says when the last is lost.
    """
    gymnasium.register_envs(ale_py)
    # Repeated once, by its wrapper, and without sticky actions.
    kwargs = {"frameskip": 1, "repeat_action_probability": 0.0}
    wrappers = {"clip_reward": not whole_games}
    return VecFrameStack(make_atari_env(environment, environments, seed, wrapper_kwargs=wrappers, env_kwargs=kwargs), n_stack=4)


def make(algorithm: str, environment: str, seed: int) -> Any:
    """Returns an untrained agent."""
    kind = {"a2c": A2C, "ppo": PPO}[algorithm]
    if environment.startswith("ALE/"):
        return kind("CnnPolicy", atari(environment, ENVIRONMENTS, seed), seed=seed, device="cpu")
    envs = make_vec_env(environment, n_envs=ENVIRONMENTS, seed=seed)
    return kind("MlpPolicy", envs, seed=seed, device="cpu", **CARTPOLE[algorithm])


def learn(algorithm: str, environment: str, seed: int, seconds: float, episodes: int) -> dict[str, Any]:
    """Returns what an agent with the paper's small network has learnt of an Atari game after so many seconds."""
    clock = Clock(seconds, 0.0, None)
    settings = dict(ATARI[algorithm])
    policy: dict[str, Any] = {"features_extractor_class": Shallow, "net_arch": []}
    if algorithm == "ppo":
        settings |= {"learning_rate": lambda _: 2.5e-4 * clock.left(), "clip_range": lambda _: 0.1 * clock.left()}
    else:
        policy |= {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}
    envs = atari(environment, ATARI_ENVIRONMENTS[algorithm], seed)
    kind = {"a2c": A2C, "ppo": PPO}[algorithm]
    agent = kind("CnnPolicy", envs, seed=seed, device="cpu", policy_kwargs=policy, **settings)
    agent.learn(10**9, callback=clock)
    assert clock.began is not None
    took = clock.now[0] - clock.began[0]
    games = atari(environment, 16, 1_000_000 + seed, whole_games=True)
    returns, _ = evaluate_policy(agent, games, episodes, deterministic=False, return_episode_rewards=True)
    return {
        "seed": seed,
        "env_steps": clock.now[1],
        "seconds": round(took, 1),
        "curve": clock.curve[:: max(1, len(clock.curve) // 100)],
        "returns": returns,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "solve", "learn"])
    parser.add_argument("algorithm", choices=["a2c", "ppo"])
    parser.add_argument("environment")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=200, help="whole games, after `learn`")
    # Networks this small gain nothing by a second thread.
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "learn":
        seconds, episodes = arguments.seconds, arguments.episodes
        print(json.dumps(learn(arguments.algorithm, arguments.environment, arguments.seed, seconds, episodes)))
        return
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
