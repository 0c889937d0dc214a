"""Named configurations that are known to learn."""

from collections.abc import Mapping
from typing import Any

from impala.config import LossConfig, OptimiserConfig
from impala.errors import ConfigError

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # CartPole-v1 to 475 in seconds on two cores; docs/results.md has the seeds.
    "cartpole": {
        "env": ("CartPole-v1",),
        "total_steps": 600_000,
        "stop_at_return": 475.0,
        "settle_steps": 50_000,
        # Two actors fill a batch, and neither runs ahead: at a lag of six updates this learning rate is unstable.
        "envs": 16,
        "max_in_flight": 1,
        # Values of up to 100 would take a network that starts at 0 longer to reach than the whole run lasts.
        "loss": LossConfig(reward_scale=0.05, entropy_cost=0.005),
        "optimiser": OptimiserConfig(optimiser="adam", learning_rate=2e-3),
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
