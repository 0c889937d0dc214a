"""What the algorithm can be told: environment, network, loss and optimiser, each a frozen dataclass.

The string under a field is its documentation and its `--help`. Programs compose these into one configuration a role.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_args

from impala.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The network."""

    network: Literal["mlp"] = "mlp"
    """mlp: separate tanh torsos for policy and value, for vector observations."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of each torso."""

    def __post_init__(self) -> None:
        known = get_args(NetworkConfig.__annotations__["network"])
        if self.network not in known:
            raise ConfigError(f"network: expected one of {', '.join(known)}, came {self.network!r}")
        if any(size < 1 for size in self.hidden_sizes):
            raise ConfigError(f"hidden_sizes: expected widths of at least 1, came {self.hidden_sizes}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """V-trace and the three losses. Defaults: the paper's Table G.1, rewards unclipped."""

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
        for name in ("learning_rate", "max_grad_norm", "rmsprop_epsilon", "adam_epsilon"):
            if not getattr(self, name) > 0.0:
                raise ConfigError(f"{name}: expected more than 0, came {getattr(self, name)}")
        for name in ("rmsprop_decay", "rmsprop_momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}: expected at least 0 and below 1, came {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """What it takes to take part in a run: what `Join` carries and `config.json` keeps."""

    environment_id: str
    environment_kwargs: Mapping[str, Any] = field(default_factory=dict)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    unroll_length: int = 20

    def to_json(self) -> dict[str, Any]:
        """Returns this configuration as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Returns the configuration that `to_json` wrote.

        Raises:
            ConfigError: a field is missing, unknown to this version, or of the wrong type.
        """
        try:
            if unknown := values.keys() - {known.name for known in fields(cls)}:
                raise TypeError(f"unknown: {sorted(unknown)}")
            network = dict(values["network"])
            network["hidden_sizes"] = tuple(int(size) for size in network["hidden_sizes"])
            return cls(
                environment_id=str(values["environment_id"]),
                environment_kwargs=dict(values["environment_kwargs"]),
                network=NetworkConfig(**network),
                unroll_length=int(values["unroll_length"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"agent configuration: expected the fields of AgentConfig, came {values} ({error!r})") from error
