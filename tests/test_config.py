"""The configuration: what it refuses, what it lets through, and its way through JSON."""

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from impala.config import AgentConfig, LossConfig, NetworkConfig, OptimiserConfig
from impala.errors import ConfigError

NAN, INFINITY = float("nan"), float("inf")
AGENT = AgentConfig(
    environment_id="CartPole-v1",
    environment_kwargs={"sutton_barto_reward": True},
    network=NetworkConfig(hidden_sizes=(32, 16, 8)),
    unroll_length=7,
)


def agent_json(**replaced: Any) -> dict[str, Any]:
    """Returns AGENT as it comes out of a JSON file, with some fields replaced."""
    return {**json.loads(json.dumps(AGENT.to_json())), **replaced}


def test_a_network_of_another_name_is_refused() -> None:
    values: dict[str, Any] = {"network": "transformer"}
    with pytest.raises(ConfigError, match=r"^network: expected one of .*mlp.*, came 'transformer'$"):
        NetworkConfig(**values)


@pytest.mark.parametrize("hidden_sizes", [(0,), (64, -1), (0, 64)], ids=str)
def test_a_hidden_layer_without_units_is_refused(hidden_sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^hidden_sizes: expected widths of at least 1, came "):
        NetworkConfig(hidden_sizes=hidden_sizes)


@pytest.mark.parametrize("value", [-0.01, 1.01, NAN])
def test_a_discount_outside_0_to_1_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"^discount: expected 0 to 1, came "):
        LossConfig(discount=value)


@pytest.mark.parametrize("value", [0.0, -1.0, NAN])
def test_a_reward_scale_that_is_not_above_0_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"^reward_scale: expected more than 0, came "):
        LossConfig(reward_scale=value)


@pytest.mark.parametrize("value", [-0.01, 1.01, NAN])
def test_a_lambda_outside_0_to_1_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"^lambda_: expected 0 to 1, came "):
        LossConfig(lambda_=value)


@pytest.mark.parametrize(("rho_bar", "c_bar"), [(0.5, 1.0), (1.0, 1.5), (NAN, 1.0)])
def test_a_rho_bar_below_c_bar_is_refused(rho_bar: float, c_bar: float) -> None:
    with pytest.raises(ConfigError, match=r"^rho_bar: expected at least c_bar .*, came "):
        LossConfig(rho_bar=rho_bar, c_bar=c_bar)


@pytest.mark.parametrize("name", ["baseline_cost", "entropy_cost", "c_bar", "pg_rho_bar"])
@pytest.mark.parametrize("value", [-0.01, NAN])
def test_a_negative_cost_or_clip_is_refused(name: str, value: float) -> None:
    # A c_bar that is not a number is not below rho_bar either, and refused all the same.
    with pytest.raises(ConfigError, match=rf"^({name}|rho_bar): expected .*, came "):
        LossConfig(**{name: value})


@pytest.mark.parametrize("name", ["learning_rate", "max_grad_norm", "rmsprop_epsilon", "adam_epsilon"])
@pytest.mark.parametrize("value", [0.0, -1.0, NAN])
def test_a_step_size_that_is_not_above_0_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: expected more than 0, came "):
        OptimiserConfig(**{name: value})


@pytest.mark.parametrize("name", ["rmsprop_decay", "rmsprop_momentum"])
@pytest.mark.parametrize("value", [-0.01, 1.0, NAN])
def test_a_decay_that_is_not_below_1_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: expected at least 0 and below 1, came "):
        OptimiserConfig(**{name: value})


def test_the_limits_themselves_are_allowed() -> None:
    NetworkConfig(hidden_sizes=())
    NetworkConfig(hidden_sizes=(1,))
    LossConfig(discount=0.0, lambda_=0.0, baseline_cost=0.0, entropy_cost=0.0, rho_bar=0.0, c_bar=0.0, pg_rho_bar=0.0)
    LossConfig(discount=1.0, lambda_=1.0, rho_bar=INFINITY, c_bar=INFINITY, pg_rho_bar=INFINITY)
    OptimiserConfig(rmsprop_decay=0.0, rmsprop_momentum=0.0, max_grad_norm=INFINITY)


def test_the_defaults_are_those_of_the_paper_s_table() -> None:
    loss, optimiser = LossConfig(), OptimiserConfig()
    assert (loss.discount, loss.baseline_cost, loss.entropy_cost) == (0.99, 0.5, 0.01)
    assert (loss.rho_bar, loss.c_bar, loss.pg_rho_bar, loss.lambda_) == (1.0, 1.0, 1.0, 1.0)
    rmsprop = (optimiser.rmsprop_decay, optimiser.rmsprop_momentum, optimiser.rmsprop_epsilon, optimiser.max_grad_norm)
    assert rmsprop == (0.99, 0.0, 0.01, 40.0)


@pytest.mark.parametrize(
    ("config", "name"),
    [(NetworkConfig(), "network"), (LossConfig(), "discount"), (OptimiserConfig(), "anneal"), (AGENT, "network")],
)
def test_a_configuration_cannot_be_changed(config: Any, name: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(config, name, getattr(config, name))


def test_an_agent_comes_back_from_json_as_it_was() -> None:
    assert AgentConfig.from_json(agent_json()) == AGENT


def test_an_agent_of_defaults_comes_back_from_json_as_it_was() -> None:
    agent = AgentConfig(environment_id="CartPole-v1")
    assert AgentConfig.from_json(json.loads(json.dumps(agent.to_json()))) == agent


@pytest.mark.parametrize("name", ["environment_id", "environment_kwargs", "network", "unroll_length"])
def test_an_agent_without_one_of_its_fields_is_a_config_error(name: str) -> None:
    values = agent_json()
    del values[name]
    with pytest.raises(ConfigError, match=f"^agent configuration: expected the fields of AgentConfig.*{name}"):
        AgentConfig.from_json(values)


def test_an_agent_without_hidden_sizes_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"^agent configuration: .*hidden_sizes"):
        AgentConfig.from_json(agent_json(network={"network": "mlp"}))


def test_a_field_of_the_agent_that_this_version_does_not_know_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"^agent configuration: .*unknown.*frame_stack"):
        AgentConfig.from_json(agent_json(frame_stack=4))


def test_a_field_of_the_network_that_this_version_does_not_know_is_a_config_error() -> None:
    network = {**agent_json()["network"], "lstm_size": 256}
    with pytest.raises(ConfigError, match=r"^agent configuration: .*lstm_size"):
        AgentConfig.from_json(agent_json(network=network))


@pytest.mark.parametrize(
    "replaced",
    [
        {"network": "mlp"},
        {"network": None},
        {"network": {"network": "mlp", "hidden_sizes": 64}},
        {"network": {"network": "mlp", "hidden_sizes": ["wide"]}},
        {"unroll_length": "twenty"},
        {"unroll_length": None},
        {"environment_kwargs": 3},
    ],
    ids=str,
)
def test_a_field_of_the_agent_of_the_wrong_type_is_a_config_error(replaced: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^agent configuration: expected the fields of AgentConfig, came "):
        AgentConfig.from_json(agent_json(**replaced))


@pytest.mark.parametrize("values", [[], "mlp", 3, None], ids=repr)
def test_an_agent_that_is_no_json_object_is_a_config_error(values: Any) -> None:
    with pytest.raises(ConfigError, match=r"^agent configuration: expected the fields of AgentConfig, came "):
        AgentConfig.from_json(values)


def test_an_agent_s_json_is_held_to_the_same_checks() -> None:
    with pytest.raises(ConfigError, match=r"^hidden_sizes: expected widths of at least 1"):
        AgentConfig.from_json(agent_json(network={"network": "mlp", "hidden_sizes": [64, 0]}))
