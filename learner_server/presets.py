"""Named configurations. docs/results.md has command, seeds and figures of those that were run to their end."""

from collections.abc import Mapping
from typing import Any

from impala.config import LossConfig, NetworkConfig, OptimiserConfig
from impala.errors import ConfigError


def _table_g1(network: str) -> Mapping[str, Any]:
    """The paper's Atari runs, for a learner on a GPU and many actors: 200 million frames are 50 million agent steps."""
    return {
        "env": ("ALE/Breakout-v5",),
        "total_steps": 50_000_000,
        "envs": 16,
        "network": NetworkConfig(network=network, last_action_reward=True),
        "loss": LossConfig(reward_clip="unit", entropy_cost=0.01, baseline_cost=0.5),
        "optimiser": OptimiserConfig(optimiser="rmsprop", learning_rate=6e-4),
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # CartPole-v1 to 475 in seconds on two cores.
    "cartpole": {
        "env": ("CartPole-v1",),
        "total_steps": 600_000,
        "stop_at_return": 475.0,
        "settle_steps": 50_000,
        # One actor's unrolls are a batch, and none runs ahead: large lags do not go with so large a learning rate (decision 12).
        "envs": 32,
        "max_in_flight": 1,
        "max_on_the_way": 0,
        # Values of up to 100 would take a network that starts at 0 longer to reach than the whole run lasts.
        "loss": LossConfig(reward_scale=0.05, entropy_cost=0.005),
        "optimiser": OptimiserConfig(optimiser="adam", learning_rate=2e-3),
    },
    # Acrobot-v1 to -90 in seconds.
    "acrobot": {
        "env": ("Acrobot-v1",),
        "total_steps": 2_000_000,
        "stop_at_return": -87.0,
        "settle_steps": 50_000,
        "envs": 16,
        "max_in_flight": 1,
        "loss": LossConfig(reward_scale=0.05, entropy_cost=0.005),
        "optimiser": OptimiserConfig(optimiser="adam", learning_rate=2e-3),
    },
    # LunarLander-v3 to 200. Long unrolls in small batches: a landing's worth is known only at its end, and updates are
    # what runs out. Several settings with shorter unrolls and returns as they come learnt to hover.
    "lunarlander": {
        "env": ("LunarLander-v3",),
        "total_steps": 4_000_000,
        "stop_at_return": 230.0,
        "settle_steps": 100_000,
        "envs": 16,
        "max_in_flight": 1,
        "unroll_length": 64,
        "batch_size": 8,
        "network": NetworkConfig(normalise_observations=True, normalise_returns=True),
        "loss": LossConfig(discount=0.995, entropy_cost=0.003, lambda_=0.98),
        "optimiser": OptimiserConfig(optimiser="adam", learning_rate=2.5e-3),
    },
    # Pendulum-v1 to -250. It stays at -1000, spinning, for up to a million steps; with twice the learning rate, or unrolls of 50,
    # for longer than that.
    "pendulum": {
        "env": ("Pendulum-v1",),
        "total_steps": 4_000_000,
        "stop_at_return": -160.0,
        "settle_steps": 200_000,
        "envs": 16,
        "max_in_flight": 1,
        "batch_size": 16,
        "network": NetworkConfig(normalise_observations=True, normalise_returns=True),
        "loss": LossConfig(discount=0.9, entropy_cost=0.0, lambda_=0.95),
        "optimiser": OptimiserConfig(optimiser="adam", learning_rate=1e-3),
    },
    # HalfCheetah-v5 (MuJoCo) to 2,000, with two of three seeds; the third slides along on its back at 1,700. Half of each batch is
    # replayed: of nine settings tried for 600,000 steps the one whose two seeds were both at 2,000.
    "halfcheetah": {
        "env": ("HalfCheetah-v5",),
        "total_steps": 4_000_000,
        "envs": 8,
        "max_in_flight": 1,
        "unroll_length": 32,
        "batch_size": 16,
        "replay_fraction": 0.5,
        "replay_unrolls": 1000,
        "network": NetworkConfig(normalise_observations=True, normalise_returns=True, action_std=0.14, squash_means=True),
        "loss": LossConfig(discount=0.98, entropy_cost=0.0, lambda_=0.92),
        "optimiser": OptimiserConfig(optimiser="adam", learning_rate=7e-4),
    },
    # Memory: an unroll is one episode of impala/Recall-v0 and its reset, so that the gradient reaches from the answer to the cue.
    "recall": {
        "env": ("impala/Recall-v0",),
        "total_steps": 1_500_000,
        "stop_at_return": 0.97,
        "settle_steps": 50_000,
        "max_in_flight": 1,
        "unroll_length": 22,
        "network": NetworkConfig(lstm_size=64, lstm_forget_bias=3.0),
        "optimiser": OptimiserConfig(optimiser="adam", learning_rate=3e-3),
    },
    "atari-shallow": _table_g1("shallow"),
    "atari-deep": _table_g1("deep"),
    # Atari on few cores, where what runs out is updates: small batches, half of each replayed, and Adam. Frames are centred, so
    # that what moves is seen before the background is. Pong is won within 1.6 million steps; other games want more.
    "atari-cpu": {
        "env": ("ALE/Pong-v5",),
        "total_steps": 4_000_000,
        "envs": 16,
        "max_in_flight": 1,
        "batch_size": 4,
        "replay_fraction": 0.5,
        "replay_unrolls": 1000,
        "network": NetworkConfig(network="shallow", last_action_reward=True, normalise_observations=True, normalise_returns=True),
        "loss": LossConfig(reward_clip="unit", entropy_cost=0.005),
        "optimiser": OptimiserConfig(optimiser="adam", learning_rate=3e-4),
    },
    # MinAtar's games in 10 million steps; --env picks one. The entropy cost decides most: at 0.003, with a
    # discount of 0.99, Breakout's policy was certain (0.02 nats), and stood still, after two million steps. Freeway's
    # rewards are so rare at first that at 0.02, and at 0.01, one of its seeds each learnt nothing: 0.005 there. One unroll at a
    # time: on two cores the learner is what limits, and unrolls that wait for it only grow old.
    "minatar": {
        "env": ("MinAtar/Breakout-v1",),
        "total_steps": 10_000_000,
        "envs": 32,
        "max_in_flight": 1,
        "network": NetworkConfig(network="minatar"),
        "loss": LossConfig(discount=0.97, entropy_cost=0.02),
        "optimiser": OptimiserConfig(optimiser="adam", learning_rate=3e-3),
    },
    # One agent for four of MinAtar's games, ten million steps of each. A batch has eight trajectories of every game.
    "minatar-multitask": {
        "env": ("MinAtar/Asterix-v1", "MinAtar/Breakout-v1", "MinAtar/Freeway-v1", "MinAtar/SpaceInvaders-v1"),
        "total_steps": 40_000_000,
        "envs": 32,
        "max_in_flight": 1,
        "network": NetworkConfig(network="minatar", normalise_returns=True),
        "loss": LossConfig(discount=0.97, entropy_cost=0.02),
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
