"""Families of environments that need more than their id: Atari, as in the paper's Table G.1, MinAtar, and our own."""

import importlib
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from impala.environments.recall import RECALL
from impala.errors import ConfigError

_PREPROCESSING = "AtariPreprocessing"

# Both forms: every frame is skipped once, here or in the preprocessing; ALE/...-v5 has sticky actions unless told otherwise, the
# paper has none; networks stack frames; the learner clips rewards. No fire on reset: the paper has none, a life lost is no reset
# and needs it all the same, and Gymnasium's preprocessing of single environments does not do it.
_NATIVE = {
    "stack_num": 1,
    "frameskip": 4,
    "maxpool": True,
    "noop_max": 30,
    "reward_clipping": False,
    "episodic_life": False,
    "life_loss_info": False,
    "repeat_action_probability": 0.0,
    "use_fire_reset": False,
    "full_action_space": False,
    "num_threads": 1,  # an actor is one core
}

# With these the rows would no longer be what the unroll says, returns would not be the game's, or, for the stack, every frame
# would travel several times.
_REFUSED = {"stack_num", "episodic_life", "life_loss_info", "autoreset_mode", "batch_size", "reward_clipping"}

# What the native form calls differently than, or has besides, the preprocessing of single environments.
_RENAMED = {"frameskip": "frame_skip", "noop_max": "noop_max", "grayscale": "grayscale_obs"}
_THREADS = {"num_threads", "thread_affinity_offset"}


def is_atari(environment_id: str) -> bool:
    """Whether this is one of ale-py's environments."""
    return environment_id.startswith("ALE/")


def register(environment_id: str) -> None:
    """Makes Gymnasium know the id, where it belongs to a family that has to be imported first.

    Raises:
        ConfigError: its package is not installed.
    """
    try:
        if is_atari(environment_id):
            ale = importlib.import_module("ale_py")
            ale.ALEInterface.setLoggerMode(ale.LoggerMode.Error)
        elif environment_id.startswith("MinAtar/") and environment_id not in gymnasium.registry:
            _register_minatar()
        elif environment_id == RECALL and environment_id not in gymnasium.registry:
            gymnasium.register(RECALL, entry_point="impala.environments.recall:Recall")
    except ImportError as error:
        extra = "atari" if is_atari(environment_id) else "minatar"
        raise ConfigError(f"env: {environment_id} needs a package ({error}); pip install 'impala-grpc[{extra}]'") from error


def _register_minatar() -> None:
    # What it draws with, and does not need to play, warns as it is imported, and is missed in a log message where it is not there.
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("minatar.gym").register_envs()
    finally:
        logging.disable(disabled)


def native_atari(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of ale-py's vector environment, from a user's.

    Raises:
        ConfigError: an argument that would break the unroll's convention.
    """
    _refuse(kwargs)
    return {**_NATIVE, **kwargs}


def single_atari(
    kwargs: Mapping[str, Any], wrappers: tuple[tuple[str, Mapping[str, Any]], ...]
) -> tuple[dict[str, Any], tuple[tuple[str, Mapping[str, Any]], ...]]:
    """Returns the arguments and wrappers of one environment that shows what the native form does, from a user's.

    Raises:
        ConfigError: an argument that would break the unroll's convention.
    """
    _refuse(kwargs)
    preprocessing = {"noop_max": 30, "frame_skip": 4} | {new: kwargs[old] for old, new in _RENAMED.items() if old in kwargs}
    preprocessing["screen_size"] = (kwargs.get("img_width", 84), kwargs.get("img_height", 84))
    rest = {name: value for name, value in kwargs.items() if name not in {*_RENAMED, *_THREADS, "img_width", "img_height"}}
    if all(name != _PREPROCESSING for name, _ in wrappers):
        wrappers = ((_PREPROCESSING, preprocessing), *wrappers)
    elif given := sorted(kwargs.keys() & {*_RENAMED, "img_width", "img_height"}):
        raise ConfigError(
            f"env-kwargs: expected {', '.join(given)} among the arguments of the wrapper {_PREPROCESSING}, which has its own"
        )
    return {"repeat_action_probability": 0.0, **rest, "frameskip": 1}, wrappers


def _refuse(kwargs: Mapping[str, Any]) -> None:
    refused = sorted(kwargs.keys() & _REFUSED)
    if refused:
        raise ConfigError(
            f"env-kwargs: expected arguments of one Atari game, came {', '.join(refused)}; frames are stacked by the network, the "
            "learner clips rewards (--reward-clip), and life_loss_terminates says what a lost life is"
        )


class OneFrame(gymnasium.vector.VectorObservationWrapper):
    """Takes away the axis of a stack of one frame: [E, 1, ...] becomes [E, ...]."""

    def __init__(self, envs: gymnasium.vector.VectorEnv[Any, Any, Any]) -> None:
        super().__init__(envs)
        stacked = envs.single_observation_space
        assert stacked.shape is not None
        self.single_observation_space = spaces.Box(0, 255, stacked.shape[1:], np.uint8)
        self.observation_space = batch_space(self.single_observation_space, envs.num_envs)

    def observations(self, observations: np.ndarray) -> np.ndarray:
        return observations[:, 0]
