"""The configuration: what it refuses, what it lets through, and its way through JSON."""

import json
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from impala.config import AgentConfig, EnvironmentConfig, LossConfig, NetworkConfig, OptimiserConfig, is_allowed, network_from_json
from impala.errors import ConfigError

NAN, INFINITY = float("nan"), float("inf")
ENVIRONMENT = EnvironmentConfig(
    environment_id="CartPole-v1",
    kwargs={"sutton_barto_reward": True},
    wrappers=(("TimeAwareObservation", {"flatten": False}), ("ClipReward", {})),
    life_loss_terminates=False,
)
AGENT = AgentConfig(
    environments=(ENVIRONMENT, EnvironmentConfig(environment_id="Acrobot-v1")),
    network=NetworkConfig(
        network="tests.networks:Torso",
        hidden_sizes=(32, 16, 8),
        frame_stack=3,
        lstm_size=256,
        last_action_reward=True,
        normalise_observations=True,
        normalise_returns=True,
    ),
    unroll_length=7,
)


def environment_json(**replaced: Any) -> dict[str, Any]:
    """Returns ENVIRONMENT as it comes out of a JSON file, with some fields replaced."""
    return {**json.loads(json.dumps(ENVIRONMENT.to_json())), **replaced}


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


@pytest.mark.parametrize("std", [0.0, 0.009, 8.0, float("nan")])
def test_a_deviation_of_actions_that_could_not_be_learnt_is_refused(std: float) -> None:
    with pytest.raises(ConfigError, match=r"^action_std: expected 0\.01 to 7, came "):
        NetworkConfig(action_std=std)


def test_a_precision_that_actors_do_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^acting_precision: expected one of float32, bfloat16, came 'load'$"):
        NetworkConfig(acting_precision="load")  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [math.inf, math.nan])
def test_a_forget_bias_that_is_not_finite_is_refused(bias: float) -> None:
    with pytest.raises(ConfigError, match=r"^lstm_forget_bias: expected a finite number, came (inf|nan)$"):
        NetworkConfig(lstm_forget_bias=bias)


@pytest.mark.parametrize("name", ["frame_stack", "lstm_size"])
def test_a_negative_size_of_the_network_is_refused(name: str) -> None:
    values: dict[str, Any] = {name: -1}
    with pytest.raises(ConfigError, match=rf"^{name}: expected 0 or more, came -1$"):
        NetworkConfig(**values)


def test_an_environment_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^env: expected the id of an environment, came ''$"):
        EnvironmentConfig(environment_id="")


def test_an_agent_without_environments_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^environments: expected at least one, came none$"):
        AgentConfig(environments=())


@pytest.mark.parametrize("correction", ["retrace", "", "VTRACE"])
def test_a_correction_of_another_name_is_refused(correction: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^correction: expected one of vtrace, one-step, epsilon, none, came '{correction}'$"):
        LossConfig(correction=correction)


def test_a_package_that_is_allowed_allows_what_is_within() -> None:
    assert is_allowed("package", ["other", "package"])
    assert is_allowed("package.worlds.maze", ["package"])
    assert not is_allowed("packages", ["package"])
    assert not is_allowed("package", ["package.worlds"])


def test_an_optimiser_or_a_clip_of_another_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^optimiser: expected one of rmsprop, adam, came 'RMSProp'$"):
        OptimiserConfig(optimiser="RMSProp")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^reward_clip: expected one of none, unit, came 'Unit'$"):
        LossConfig(reward_clip="Unit")  # type: ignore[arg-type]


def test_an_unroll_without_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^unroll_length: expected at least 1, came 0$"):
        AgentConfig(environments=(EnvironmentConfig(environment_id="CartPole-v1"),), unroll_length=0)


def test_a_whole_number_is_a_number_of_the_network_all_the_same() -> None:
    network = network_from_json({"action_std": 1, "lstm_forget_bias": 3})
    assert (network, type(network.action_std)) == (NetworkConfig(action_std=1.0, lstm_forget_bias=3.0), float)
    with pytest.raises(ConfigError, match="wrong type"):
        network_from_json({"action_std": True})


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
    NetworkConfig(hidden_sizes=(1,), network="module:Class", frame_stack=0, lstm_size=0)
    for correction in ("vtrace", "one-step", "epsilon", "none"):
        LossConfig(correction=correction)
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
    [
        (NetworkConfig(), "network"),
        (LossConfig(), "discount"),
        (OptimiserConfig(), "anneal"),
        (AGENT, "network"),
        (ENVIRONMENT, "kwargs"),
    ],
)
def test_a_configuration_cannot_be_changed(config: Any, name: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(config, name, getattr(config, name))


def test_an_agent_comes_back_from_json_as_it_was() -> None:
    assert AgentConfig.from_json(agent_json()) == AGENT


def test_an_agent_of_defaults_comes_back_from_json_as_it_was() -> None:
    agent = AgentConfig(environments=(EnvironmentConfig(environment_id="CartPole-v1"),))
    assert AgentConfig.from_json(json.loads(json.dumps(agent.to_json()))) == agent


@pytest.mark.parametrize("name", ["environments", "network", "unroll_length"])
def test_an_agent_without_one_of_its_fields_is_a_config_error(name: str) -> None:
    values = agent_json()
    del values[name]
    with pytest.raises(ConfigError, match=f"^agent configuration: expected the fields of AgentConfig.*{name}"):
        AgentConfig.from_json(values)


@pytest.mark.parametrize("name", ["environment_id", "kwargs", "wrappers", "life_loss_terminates"])
def test_an_environment_without_one_of_its_fields_is_a_config_error(name: str) -> None:
    values = environment_json()
    del values[name]
    with pytest.raises(ConfigError, match=f"^environment: expected the fields of EnvironmentConfig.*{name}"):
        EnvironmentConfig.from_json(values)


def test_a_network_s_missing_fields_are_the_defaults() -> None:
    assert network_from_json({}) == NetworkConfig()
    assert network_from_json({"hidden_sizes": [8]}) == NetworkConfig(hidden_sizes=(8,))


@pytest.mark.parametrize("read", [AgentConfig.from_json, EnvironmentConfig.from_json, network_from_json])
@pytest.mark.parametrize("values", [["mlp"], "mlp", 3, None], ids=repr)
def test_what_is_no_json_object_is_a_config_error(read: Callable[[Any], Any], values: Any) -> None:
    with pytest.raises(ConfigError, match=r"^(agent configuration|environment|network): expected the fields of \w+, came "):
        read(values)


def test_a_field_that_this_version_does_not_know_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"^agent configuration: .*unknown.*replay"):
        AgentConfig.from_json(agent_json(replay=4))
    with pytest.raises(ConfigError, match=r"^environment: .*unknown.*replay"):
        AgentConfig.from_json(agent_json(environments=[environment_json(replay=4)]))
    with pytest.raises(ConfigError, match=r"^network: .*heads"):
        AgentConfig.from_json(agent_json(network={"network": "mlp", "heads": 8}))


@pytest.mark.parametrize(
    "values",
    [
        {"network": 3},
        {"network": None},
        {"network": ["mlp"]},
        {"hidden_sizes": 64},
        {"hidden_sizes": "64"},
        {"hidden_sizes": ["wide"]},
        {"hidden_sizes": [64.0]},
        {"hidden_sizes": [1e999]},
        {"hidden_sizes": [True]},
        {"frame_stack": "4"},
        {"lstm_size": 256.5},
        {"lstm_size": True},
        {"last_action_reward": "no"},
        {"normalise_returns": 1},
    ],
    ids=str,
)
def test_a_field_of_the_network_of_the_wrong_type_is_a_config_error(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^network: expected the fields of NetworkConfig, came .*wrong type"):
        network_from_json(values)


@pytest.mark.parametrize(
    ("replaced", "field"),
    [
        ({"unroll_length": "twenty"}, "agent configuration"),
        ({"unroll_length": None}, "agent configuration"),
        ({"environments": 3}, "agent configuration"),
        ({"environments": "CartPole-v1"}, "environment"),
        ({"environments": [environment_json(kwargs=3)]}, "environment"),
        ({"environments": [environment_json(wrappers=None)]}, "environment"),
        ({"environments": [environment_json(wrappers=["ClipReward"])]}, "environment"),
        ({"environments": [environment_json(wrappers=[["ClipReward"]])]}, "environment"),
        ({"environments": [environment_json(wrappers=[["ClipReward", 1]])]}, "environment"),
    ],
    ids=str,
)
def test_a_field_of_the_agent_of_the_wrong_type_is_a_config_error(replaced: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}: expected the fields of \w+, came "):
        AgentConfig.from_json(agent_json(**replaced))


@pytest.mark.parametrize(
    ("replaced", "field"),
    [
        ({"network": {"hidden_sizes": [64, 0]}}, "hidden_sizes"),
        ({"environments": []}, "environments"),
        ({"environments": [environment_json(environment_id="")]}, "env"),
    ],
    ids=str,
)
def test_an_agent_s_json_is_held_to_the_same_checks(replaced: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field}: expected "):
        AgentConfig.from_json(agent_json(**replaced))
