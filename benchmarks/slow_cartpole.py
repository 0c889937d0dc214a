"""CartPole that takes its time: every step of an actor sleeps, so that a long run of several actors leaves the processor idle.

--env benchmarks.slow_cartpole:SlowCartPole-v0 --allow-module benchmarks.slow_cartpole --env-kwargs '{"sleep_seconds": 0.02}'
"""

import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv

MODULE = "benchmarks.slow_cartpole"
ENVIRONMENT = f"{MODULE}:SlowCartPole-v0"


class SlowCartPole(CartPoleEnv):
    """One CartPole; the learner makes one to see its spaces."""

    def __init__(self, sleep_seconds: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sleep_seconds = sleep_seconds

    def step(self, action: Any) -> Any:
        time.sleep(self._sleep_seconds)
        return super().step(action)


class SlowCartPoles(CartPoleVectorEnv):
    """Several side by side, which sleep together: once for a step of all."""

    def __init__(self, num_envs: int = 1, sleep_seconds: float = 0.01, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        self._sleep_seconds = sleep_seconds

    def step(self, action: np.ndarray) -> Any:
        time.sleep(self._sleep_seconds)
        return super().step(action)


gymnasium.register(
    "SlowCartPole-v0", entry_point=f"{MODULE}:SlowCartPole", vector_entry_point=f"{MODULE}:SlowCartPoles", max_episode_steps=500
)
