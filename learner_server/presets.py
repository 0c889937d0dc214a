"""Named configurations that are known to learn."""

from collections.abc import Mapping
from typing import Any

from impala.config import LossConfig, OptimiserConfig
from impala.errors import ConfigError

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # CartPole-v1 to 475 in seconds on two cores; docs/results.md has the seeds.
    "cartpole": {
        "env": "CartPole-v1",
        "total_steps": 1_000_000,
        "stop_at_return": 475.0,
        "loss": LossConfig(),
        "optimiser": OptimiserConfig(optimiser="adam", learning_rate=3e-3),
    },
}


def preset(name: str) -> Mapping[str, Any]:
    """Returns the fields of `LearnerConfig` that a preset sets.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset: expected one of {', '.join(sorted(PRESETS))}, came {name!r}")
    return PRESETS[name]
