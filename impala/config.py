"""What the algorithm can be told: environment, network, loss and optimiser, each a frozen dataclass.

The string under a field is its documentation and its `--help`. Programs compose these into one configuration a role.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_args

from impala.errors import ConfigError


def is_allowed(module: str, allowed: Sequence[str]) -> bool:
    """Whether a module is one of those that a machine allows to be imported, or lies within a package that is."""
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def _check_choices(config: Any, *names: str) -> None:
    """Sees that fields have one of the values that their `Literal` lists.

    Raises:
        ConfigError: one has not.
    """
    for name in names:
        known, came = get_args(type(config).__annotations__[name]), getattr(config, name)
        if came not in known:
            raise ConfigError(f"{name}: expected one of {', '.join(known)}, came {came!r}")


NETWORKS = ("auto", "mlp", "minatar", "nature", "shallow", "deep")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The network."""

    network: str = "auto"
    """mlp: tanh layers over everything, flattened. minatar: one small convolution, for images of about 10 x 10 (Young and Tian
    2019). shallow, deep: the paper's (Figure 3), for images of about 84 x 84; nature: that of Mnih et al. 2015, for the same.
    MODULE:CLASS: a torso of one's own. auto: mlp without images; with them minatar where height or width is below 36, else
    shallow, which a CPU can train; deep is for GPUs."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of mlp."""
    frame_stack: int = 0
    """Newest images that the network sees at once, as channels; the wire carries each once. 0: 4 for images of bytes without a
    channel axis, such as Atari's, else 1."""
    lstm_size: int = 0
    """Width of an LSTM between torso and heads (the paper: 256); 0 for none."""
    lstm_forget_bias: float = 1.0
    """Added to the forget gates' bias at the start; 1 as in the paper's code. More where something is to be remembered for long: 3
    keeps for about 20 steps what 1 keeps for 4."""
    action_std: float = 1.0
    """Standard deviation of real-valued actions at the start, in the action's units; it is learnt. Actions are clipped at their
    bounds: a deviation far beyond them tries the bounds alone."""
    squash_means: bool = False
    """Pass the means of real-valued actions through tanh, so that they stay within bounds. Beyond its bounds an action is clipped:
    a mean that got there moves on without a word from the reward, and does not come back. A dimension that lacks a bound keeps its
    own units, in which its mean then stays between -1 and 1."""
    last_action_reward: bool = False
    """Show the network the action and the clipped reward that led to each observation, as in the paper's Figure 3."""
    normalise_observations: bool = False
    """Scale float observations by their running mean and deviation, and take from each pixel of images of bytes its running mean;
    both are part of the weights."""
    normalise_returns: bool = False
    """Scale the value targets, each task's by its own running mean and deviation (PopArt; Hessel et al. 2018)."""
    acting_precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products and convolutions by which actors choose; log-probabilities are float32, of what was drawn. bfloat16
    pays for convolutions, with 32 environments or more, on processors that have it."""

    def __post_init__(self) -> None:
        if self.network not in NETWORKS and ":" not in self.network:
            raise ConfigError(f"network: expected one of {', '.join(NETWORKS)} or MODULE:CLASS, came {self.network!r}")
        _check_choices(self, "acting_precision")
        if any(size < 1 for size in self.hidden_sizes):
            raise ConfigError(f"hidden_sizes: expected widths of at least 1, came {self.hidden_sizes}")
        for name in ("frame_stack", "lstm_size"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: expected 0 or more, came {getattr(self, name)}")
        # Within what `impala.distributions.Gaussian` clamps to, beyond which nothing is learnt of it.
        if not 0.01 <= self.action_std <= 7.0:
            raise ConfigError(f"action_std: expected 0.01 to 7, came {self.action_std}")
        if not math.isfinite(self.lstm_forget_bias):
            raise ConfigError(f"lstm_forget_bias: expected a finite number, came {self.lstm_forget_bias}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """V-trace and the three losses. Defaults: the paper's Table G.1, rewards unclipped."""

    correction: Literal["vtrace", "one-step", "epsilon", "none"] = "vtrace"
    """How the lag between acting and learning is corrected (paper, section 5.2.2). one-step: the ratio on the policy gradient
    alone. epsilon: no ratio, and log(pi + 1e-6). none: no ratio."""
    discount: float = 0.99
    """gamma."""
    baseline_cost: float = 0.5
    """Weight of the value loss 0.5 * sum (v - V)^2."""
    entropy_cost: float = 0.01
    """Weight of the entropy bonus."""
    rho_bar: float = 1.0
    """Clip of the importance ratio in the value target; decides what is learnt. At least c_bar."""
    c_bar: float = 1.0
    """Clip of the trace; decides how fast."""
    pg_rho_bar: float = 1.0
    """Clip of the importance ratio on the policy gradient."""
    lambda_: float = 1.0
    """Multiplies the trace c, as in TD(lambda)."""
    reward_clip: Literal["none", "unit"] = "none"
    """unit: rewards clipped to [-1, 1] at the learner, as in the paper's Atari runs."""
    reward_scale: float = 1.0
    """Multiplies rewards after clipping. Small networks take long to reach values far from 1; entropy_cost weighs against it."""

    def __post_init__(self) -> None:
        _check_choices(self, "correction", "reward_clip")
        if not 0.0 <= self.discount <= 1.0:
            raise ConfigError(f"discount: expected 0 to 1, came {self.discount}")
        if not self.reward_scale > 0.0:
            raise ConfigError(f"reward_scale: expected more than 0, came {self.reward_scale}")
        if not 0.0 <= self.lambda_ <= 1.0:
            raise ConfigError(f"lambda_: expected 0 to 1, came {self.lambda_}")
        if not self.rho_bar >= self.c_bar:
            raise ConfigError(f"rho_bar: expected at least c_bar ({self.c_bar}; paper, section 4.1), came {self.rho_bar}")
        for name in ("baseline_cost", "entropy_cost", "c_bar", "pg_rho_bar"):
            if not getattr(self, name) >= 0.0:
                raise ConfigError(f"{name}: expected 0 or more, came {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """The optimiser."""

    optimiser: Literal["rmsprop", "adam"] = "adam"
    """rmsprop: the paper's form (epsilon inside the root, average from 1). adam: suits small networks and short runs."""
    learning_rate: float = 1e-3
    """At the start. Losses are summed over time and batch, so rates for averaged losses do not carry over to rmsprop."""
    anneal: bool = True
    """Learning rate falls linearly to 0 at total-steps."""
    rmsprop_decay: float = 0.99
    """Decay of the squared-gradient average (Table G.1)."""
    rmsprop_momentum: float = 0.0
    """Momentum (Table G.1)."""
    rmsprop_epsilon: float = 0.01
    """Added to the average, inside the root (Table G.1)."""
    adam_epsilon: float = 1e-8
    """Added to the root."""
    max_grad_norm: float = 40.0
    """Global gradient norm is clipped at this (Table G.1)."""

    def __post_init__(self) -> None:
        _check_choices(self, "optimiser")
        for name in ("learning_rate", "max_grad_norm", "rmsprop_epsilon", "adam_epsilon"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"{name}: expected more than 0, came {getattr(self, name)}")
        for name in ("rmsprop_decay", "rmsprop_momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}: expected at least 0 and below 1, came {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class EnvironmentConfig:
    """One environment: a task."""

    environment_id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    life_loss_terminates: bool = True

    def __post_init__(self) -> None:
        if not self.environment_id:
            raise ConfigError("env: expected the id of an environment, came ''")

    def to_json(self) -> dict[str, Any]:
        """Returns this configuration as plain JSON values."""
        return {
            "environment_id": self.environment_id,
            "kwargs": dict(self.kwargs),
            "wrappers": [[name, dict(kwargs)] for name, kwargs in self.wrappers],
            "life_loss_terminates": self.life_loss_terminates,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the configuration that `to_json` wrote.

        Raises:
            ConfigError: a field is missing, unknown to this version, or of the wrong type.
        """
        try:
            if unknown := values.keys() - {known.name for known in fields(cls)}:
                raise TypeError(f"unknown: {sorted(unknown)}")
            return cls(
                environment_id=str(values["environment_id"]),
                kwargs=dict(values["kwargs"]),
                wrappers=tuple((str(name), dict(kwargs)) for name, kwargs in values["wrappers"]),
                life_loss_terminates=bool(values["life_loss_terminates"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"environment: expected the fields of EnvironmentConfig, came {values} ({error!r})") from error


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """What an agent is: its tasks, its network and its unrolls. `config.json` keeps it."""

    environments: tuple[EnvironmentConfig, ...]
    network: NetworkConfig = field(default_factory=NetworkConfig)
    unroll_length: int = 20

    def __post_init__(self) -> None:
        if not self.environments:
            raise ConfigError("environments: expected at least one, came none")
        if self.unroll_length < 1:
            raise ConfigError(f"unroll_length: expected at least 1, came {self.unroll_length}")

    def to_json(self) -> dict[str, Any]:
        """Returns this configuration as plain JSON values."""
        return {
            "environments": [environment.to_json() for environment in self.environments],
            "network": asdict(self.network),
            "unroll_length": self.unroll_length,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the configuration that `to_json` wrote.

        Raises:
            ConfigError: a field is missing, unknown to this version, or of the wrong type.
        """
        try:
            if unknown := values.keys() - {known.name for known in fields(cls)}:
                raise TypeError(f"unknown: {sorted(unknown)}")
            return cls(
                environments=tuple(EnvironmentConfig.from_json(environment) for environment in values["environments"]),
                network=network_from_json(values["network"]),
                unroll_length=int(values["unroll_length"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"agent configuration: expected the fields of AgentConfig, came {values} ({error!r})") from error


def network_from_json(values: Mapping[str, Any]) -> NetworkConfig:
    """Returns a network's configuration from JSON values.

    Raises:
        ConfigError: a field is unknown to this version or of the wrong type.
    """
    try:
        network: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        defaults = NetworkConfig()
        # JSON does not tell 1 from 1.0.
        network |= {
            name: float(value) for name, value in network.items() if type(value) is int and type(getattr(defaults, name)) is float
        }
        wrong = [name for name, value in network.items() if type(value) is not type(getattr(defaults, name))]
        if wrong or not all(type(size) is int for size in network.get("hidden_sizes", ())):
            raise TypeError(f"wrong type: {wrong or ['hidden_sizes']}")
        return NetworkConfig(**network)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"network: expected the fields of NetworkConfig, came {values} ({error!r})") from error
