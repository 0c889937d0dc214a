"""An environment of one's own. Copy it, and train it by `--env custom_environment:Corridor-v0 --allow-module custom_environment`.

The module has to be importable wherever learner and actors run: installed, or in a folder that PYTHONPATH names.
"""

from typing import Any

import gymnasium
import numpy as np


class Corridor(gymnasium.Env[np.ndarray, np.int64]):
    """Walk from the left end to the right one: 0 is a step to the left, 1 to the right, and each costs 1."""

    def __init__(self, length: int = 5) -> None:
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self._length = length
        self._place = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._place = 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._place = max(0, self._place + (1 if action else -1))
        return self._observation(), -1.0, self._place == self._length, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self._place / self._length], dtype=np.float32)


gymnasium.register("Corridor-v0", entry_point="custom_environment:Corridor", max_episode_steps=100)
