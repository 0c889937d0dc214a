"""impala/Recall-v0: a task that only a memory solves, to tell recurrent networks from feed-forward ones."""

from typing import Any

import gymnasium
import numpy as np

RECALL = "impala/Recall-v0"


class Recall(gymnasium.Env[np.ndarray, np.int64]):
    """Shows one of `cues` in the first observation alone, and asks for it `delay` steps later: reward 1 for the right action, once.

    Observations: [cues + 1] float32: the cue one-hot, and 1 in the last entry where the answer is asked for. In between all is 0.
    """

    def __init__(self, cues: int = 4, delay: int = 20) -> None:
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (cues + 1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(cues)
        self._cues, self._delay = cues, delay
        self._cue = self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Draws a cue and returns the observation that shows it; `options` are ignored."""
        super().reset(seed=seed)
        self._cue, self._step = int(self.np_random.integers(self._cues)), 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Returns the next observation; the episode ends with the answer, right or wrong."""
        asked = self._step == self._delay
        self._step += 1
        return self._observation(), float(asked and action == self._cue), asked, False, {}

    def _observation(self) -> np.ndarray:
        observation = np.zeros(self._cues + 1, dtype=np.float32)
        observation[self._cue] = self._step == 0
        observation[self._cues] = self._step == self._delay
        return observation
