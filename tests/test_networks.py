"""Whole networks: that one step at a time says what the unroll says, which parts they are built of, and what they refuse."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from impala.config import NetworkConfig
from impala.errors import ConfigError
from impala.networks import Network, Torso, build_network
from impala.specs import ActionSpec, EnvironmentSpec, discrete
from tests.network_cases import Case, at, entry, make_spec, random_observations, random_starts, with_last_action_reward

SPACES = {
    "vector": make_spec(observation=entry("float32", 4)),
    "mixed": make_spec(
        # Not in the order of the alphabet; two images, each with a trunk of its own; names as nested spaces have them.
        **{
            "zone.position": entry("float32", 3),
            "map": entry("bool", 6, 7, 2),
            "camera": entry("uint8", 36, 37),
            "goal": entry("int64", 2, categories=(3, 4)),
        }
    ),
    "masked": make_spec(ActionSpec(sizes=(3, 2)), observation=entry("int64", categories=(5,)), action_mask=entry("bool", 5)),
    "continuous": make_spec(ActionSpec(dimensions=2), observation=entry("float32", 3)),
    "minatar": make_spec(observation=entry("bool", 10, 10, 4)),
    "pixels": make_spec(observation=entry("uint8", 40, 44)),
    "colours": make_spec(observation=entry("uint8", 3, 36, 36), task=entry("uint8", categories=(2,))),
}
NETWORKS = [
    ("vector", NetworkConfig()),
    ("vector", NetworkConfig(hidden_sizes=())),
    ("mixed", NetworkConfig()),
    ("mixed", NetworkConfig(network="mlp", frame_stack=2)),
    ("masked", NetworkConfig()),
    ("continuous", NetworkConfig(normalise_observations=True, normalise_returns=True)),
    ("minatar", NetworkConfig(frame_stack=3)),
    ("pixels", NetworkConfig()),
    ("pixels", NetworkConfig(network="deep")),
    ("pixels", NetworkConfig(network="nature")),
    ("colours", NetworkConfig(normalise_returns=True, frame_stack=2)),
]
CASES = [
    pytest.param(
        Case(
            with_last_action_reward(SPACES[space]) if last else SPACES[space],
            replace(config, lstm_size=lstm_size, last_action_reward=last),
        ),
        id=f"{space}-{index}-lstm{lstm_size}{'-last' if last else ''}",
    )
    for index, (space, config) in enumerate(NETWORKS)
    for lstm_size, last in ((0, False), (0, True), (5, True))
]
T, B = 6, 3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads cost most of the time for such small networks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", CASES)
def test_an_unroll_equals_single_steps_in_policy_values_and_final_state(case: Case) -> None:
    network, observations, is_first = case.build(), random_observations(case.spec, T, B), random_starts(T, B)
    whole = network(observations, is_first, network.initial_state(B))
    assert whole.policy.shape == (T, B, network.distribution.num_outputs)
    assert whole.values.shape == (T, B)
    state = network.initial_state(B)
    for t in range(T):
        values = network({name: tensor[t : t + 1] for name, tensor in observations.items()}, is_first[t : t + 1], state).values
        policy, state = network.act(at(observations, t), is_first[t], state)
        torch.testing.assert_close(policy, whole.policy[t], rtol=0.0, atol=1e-5)
        torch.testing.assert_close(values[0], whole.values[t], rtol=0.0, atol=1e-5)
    final = network._unroll(observations, is_first, network.initial_state(B))[2]
    initial = network.initial_state(B)
    assert final.keys() == state.keys() == initial.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(final[name], tensor, rtol=0.0, atol=1e-5)
        assert (tensor.shape, tensor.dtype) == (initial[name].shape, initial[name].dtype)


@pytest.mark.parametrize("case", CASES)
def test_on_a_device_everything_is_there(case: Case) -> None:
    """The device "meta" has shapes and dtypes alone, and like any other refuses tensors of the host."""
    host, network = case.build(), case.build().to("meta")
    observations = {name: tensor.to("meta") for name, tensor in random_observations(case.spec, T, B).items()}
    output = network(observations, random_starts(T, B).to("meta"), network.initial_state(B))
    (output.values.sum() + output.policy.sum()).backward()
    assert output.values.device.type == output.policy.device.type == "meta"
    assert network.state_spec() == host.state_spec()


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_computing_in_bfloat16_is_off_by_rounding_and_nothing_else_changes(case: Case) -> None:
    exact, rounded = case.build(), case.build()
    rounded.compute_in(torch.bfloat16)
    observations, is_first = at(random_observations(case.spec, T, B), 0), random_starts(T, B)[0]
    wanted, state = exact.act(observations, is_first, exact.initial_state(B))
    policy, rounded_state = rounded.act(observations, is_first, rounded.initial_state(B))
    assert (policy.dtype, policy.shape) == (torch.float32, wanted.shape)
    assert not torch.equal(policy, wanted)
    # Eight bits, through a dozen layers, and logits of up to a hundred.
    assert float((policy - wanted).abs().max()) <= 0.1 * max(1.0, float(wanted[wanted > -1e6].abs().max()))
    assert {name: tensor.dtype for name, tensor in rounded_state.items()} == {name: tensor.dtype for name, tensor in state.items()}
    assert rounded.state_spec() == exact.state_spec()


@pytest.mark.parametrize("case", CASES)
def test_the_state_spec_is_that_of_the_state(case: Case) -> None:
    network = case.build()
    state = network.initial_state(3)
    assert {name: (3, *entry.shape) for name, entry in network.state_spec().items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    assert all(network.state_spec()[name].dtype == tensor.numpy().dtype for name, tensor in state.items())


@pytest.mark.parametrize("case", CASES)
def test_a_column_depends_on_no_other_and_a_step_on_nothing_before_its_episode(case: Case) -> None:
    network, observations, is_first = case.build(), random_observations(case.spec, T, B), random_starts(T, B)
    is_first[3, 0] = True
    base = network(observations, is_first, network.initial_state(B))
    changed = random_observations(case.spec, T, B, seed=1)
    for name, tensor in changed.items():
        tensor[3:, 0] = observations[name][3:, 0]
    other = network(changed, is_first, network.initial_state(B))
    torch.testing.assert_close(other.policy[3:, 0], base.policy[3:, 0], rtol=0.0, atol=1e-5)
    torch.testing.assert_close(other.values[3:, 0], base.values[3:, 0], rtol=0.0, atol=1e-5)
    assert not torch.equal(other.values[:, 1:], base.values[:, 1:])


@pytest.mark.parametrize("hidden_sizes", [(), (16,), (16, 8)], ids=str)
def test_the_mlp_is_two_tanh_torsos_drawn_one_after_the_other_over_the_entries_by_name(hidden_sizes: tuple[int, ...]) -> None:
    spec = make_spec(discrete(5), position=entry("float32", 3), angle=entry("float32", 2))
    torch.manual_seed(0)
    network = build_network(NetworkConfig(hidden_sizes=hidden_sizes), spec)
    torch.manual_seed(0)
    policy, value = _literal_mlp((5, *hidden_sizes), 5, gain=0.01), _literal_mlp((5, *hidden_sizes), 1, gain=1.0)
    observations = dict(reversed(random_observations(spec, T, B).items()))
    flat = torch.cat([observations["angle"], observations["position"]], -1)
    output = network(observations, torch.zeros(T, B, dtype=torch.bool), {})
    torch.testing.assert_close(output.policy, policy(flat))
    torch.testing.assert_close(output.values, value(flat).squeeze(-1))
    assert network.initial_state(B) == {}


def _literal_mlp(sizes: tuple[int, ...], outputs: int, *, gain: float) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, width in zip(sizes, (*sizes[1:], outputs), strict=True):
        layers += [nn.Linear(inputs, width), nn.Tanh()]
        nn.init.orthogonal_(layers[-2].weight, 2.0**0.5 if len(layers) < 2 * len(sizes) else gain)  # type: ignore[arg-type]
        nn.init.zeros_(layers[-2].bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1])


def test_weights_are_called_what_the_contract_says() -> None:
    network = build_network(NetworkConfig(hidden_sizes=(7, 6)), SPACES["vector"])
    layers = [f"layers.{index}.{kind}" for index in (0, 2) for kind in ("weight", "bias")]
    heads = [f"{head}.{kind}" for head in ("policy_head", "value_head") for kind in ("weight", "bias")]
    assert sorted(network.state_dict()) == sorted(
        [f"{torso}.{name}" for torso in ("torso", "value_torso") for name in layers] + heads
    )


@pytest.mark.parametrize(
    ("space", "config"), [("vector", NetworkConfig(lstm_size=4)), ("minatar", NetworkConfig()), ("pixels", NetworkConfig())]
)
def test_with_an_lstm_or_convolutions_policy_and_value_share_one_torso(space: str, config: NetworkConfig) -> None:
    network = build_network(config, SPACES[space])
    output = network(random_observations(SPACES[space], 2, 1), random_starts(2, 1), network.initial_state(1))
    output.values.sum().backward()
    untouched = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert untouched == {"policy_head.weight", "policy_head.bias"}


@pytest.mark.parametrize("case", [case for case in CASES if "vector" in str(case.id) or "continuous" in str(case.id)])
def test_acting_computes_no_values(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    network = case.build()

    def fail(*_: Tensor) -> Tensor:
        raise AssertionError("computed")

    for unneeded in (network.value_head, network.value_torso, network.popart):
        if unneeded is not None:
            monkeypatch.setattr(unneeded, "forward", fail)
    network.act(random_observations(case.spec, B), torch.zeros(B, dtype=torch.bool), network.initial_state(B))


def test_masked_actions_have_probability_0_and_the_mask_is_no_input() -> None:
    spec = SPACES["masked"]
    network, observations = Case(spec, NetworkConfig()).build(), random_observations(spec, T, B)
    free = dict(observations, action_mask=torch.ones(T, B, 5, dtype=torch.bool))
    bound = dict(observations, action_mask=torch.tensor([True, False, True, False, True]).expand(T, B, 5))
    is_first = random_starts(T, B)
    bound_output, free_output = network(bound, is_first, {}), network(free, is_first, {})
    assert bool((network.distribution.mode(bound_output.policy)[..., 0] != 1).all())
    assert bool((network.distribution.mode(bound_output.policy)[..., 1] == 1).all())
    torch.testing.assert_close(bound_output.policy[..., 0::2], free_output.policy[..., 0::2])
    torch.testing.assert_close(bound_output.values, free_output.values)


def test_a_gaussian_policy_has_learnt_deviations_that_begin_at_1() -> None:
    network = build_network(NetworkConfig(), SPACES["continuous"])
    assert network.act(random_observations(SPACES["continuous"], B), random_starts(B), {})[0][:, 2:].tolist() == [[0.0, 0.0]] * B
    output = network(random_observations(SPACES["continuous"], T, B), random_starts(T, B), {})
    output.policy.sum().backward()
    assert network.log_std.grad is not None
    assert network.log_std.grad.tolist() == [T * B, T * B]


@pytest.mark.parametrize(("strayed", "back"), [(40.0, 2.0), (-40.0, -5.0), (1.5, 1.5)])
def test_a_deviation_that_left_its_bounds_is_brought_back_to_where_gradients_reach_it(strayed: float, back: float) -> None:
    network = build_network(NetworkConfig(), SPACES["continuous"])
    with torch.no_grad():
        network.log_std.fill_(strayed)
    network.keep_within_bounds()
    assert network.log_std.tolist() == [back] * 2


@pytest.mark.parametrize(
    ("observations", "network", "convolutions"),
    [
        (make_spec(o=entry("float32", 4)), "auto", 0),
        (make_spec(o=entry("bool", 10, 10, 4)), "auto", 1),
        (make_spec(o=entry("uint8", 35, 90)), "auto", 1),
        (make_spec(o=entry("uint8", 36, 90)), "auto", 2),
        (make_spec(o=entry("float32", 2, 90)), "auto", 0),
        (make_spec(o=entry("uint8", 40, 40), small=entry("bool", 5, 5), flat=entry("float32", 2, 2)), "auto", 3),
        (make_spec(o=entry("uint8", 12, 12)), "mlp", 0),
        (make_spec(o=entry("uint8", 40, 40)), "minatar", 1),
        (make_spec(o=entry("uint8", 20, 20)), "shallow", 2),
        (make_spec(o=entry("uint8", 10, 10)), "deep", 15),
    ],
)
def test_the_observation_picks_the_network_unless_one_is_asked_for(
    observations: EnvironmentSpec, network: str, convolutions: int
) -> None:
    built = build_network(NetworkConfig(network=network), observations)
    assert sum(isinstance(module, nn.Conv2d) for module in built.modules()) == convolutions


def test_the_weights_follow_from_the_seed() -> None:
    first, same, other = (Case(SPACES["mixed"], NetworkConfig(lstm_size=3)).build(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("weight"))


class Doubled(Torso):
    """Features that a test can foretell."""

    def __init__(self, spec: EnvironmentSpec) -> None:
        super().__init__()
        self.output_size = spec.observations["observation"].size

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        return 2.0 * observations["observation"]


class WrongWidth(Doubled):
    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        return observations["observation"][:, 1:]


@pytest.fixture
def own_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_networks")
    vars(module).update(Doubled=Doubled, WrongWidth=WrongWidth, NotATorso=nn.Linear, not_a_class=len)
    monkeypatch.setitem(sys.modules, "own_networks", module)


@pytest.mark.usefixtures("own_networks")
def test_an_allowed_module_s_torso_stands_between_inputs_and_heads() -> None:
    spec = make_spec(observation=entry("uint8", 4))
    network = build_network(NetworkConfig(network="own_networks:Doubled"), spec, allowed_modules=["own_networks"])
    observations = random_observations(spec, T, B)
    expected = network.policy_head(observations["observation"].float() * 2.0 / 255.0)
    torch.testing.assert_close(network(observations, random_starts(T, B), {}).policy, expected)


@pytest.mark.usefixtures("own_networks")
@pytest.mark.parametrize(
    ("config", "spec", "message"),
    [
        ({}, make_spec(), "network: expected an environment with at least one observation entry"),
        ({}, make_spec(action_mask=entry("bool", 3)), "network: expected an environment with at least one observation entry"),
        (
            {"network": "deep"},
            SPACES["vector"],
            r"network: expected an environment with images for deep, came only \['observation'\]",
        ),
        (
            {"network": "shallow"},
            SPACES["minatar"],
            "network: expected images of at least 20 x 20 for shallow, came 'observation' of 10",
        ),
        (
            {"network": "minatar"},
            make_spec(o=entry("bool", 5, 2)),
            "network: expected images of at least 3 x 3 for minatar, came 'o' of 5",
        ),
        ({"frame_stack": 2}, SPACES["vector"], r"frame_stack: expected images to stack 2 of, came only \['observation'\]"),
        (
            {"network": "forbidden:Torso"},
            SPACES["vector"],
            "network: expected a module that this machine allows, .*--allow-module forb",
        ),
        ({"network": "of_another.networks:Torso"}, SPACES["vector"], "network: expected a module that this machine allows"),
        ({"network": "no_such_module:Torso"}, SPACES["vector"], "network: expected MODULE:CLASS, came .*No module"),
        ({"network": "own_networks:Missing"}, SPACES["vector"], "network: expected MODULE:CLASS, came .*Missing"),
        ({"network": "own_networks:NotATorso"}, SPACES["vector"], "network: expected a subclass of impala.networks.Torso"),
        ({"network": "own_networks:not_a_class"}, SPACES["vector"], "network: expected a subclass of impala.networks.Torso"),
        (
            {"network": "own_networks:WrongWidth"},
            SPACES["vector"],
            r"network: expected features \[N, 4\] of .*, came \[2, 3\] for N = 2",
        ),
    ],
)
def test_what_does_not_fit_is_a_config_error_by_name(config: dict[str, str], spec: EnvironmentSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        build_network(NetworkConfig(**config), spec, allowed_modules=["own_networks", "no_such_module"])  # type: ignore[arg-type]


def test_without_normalisation_an_update_of_statistics_changes_nothing() -> None:
    network = build_network(NetworkConfig(), SPACES["vector"])
    assert _weights_after_update(network, SPACES["vector"]) == []
    assert network.value_scale(random_observations(SPACES["vector"], T, B)) is None


def test_statistics_are_part_of_the_weights() -> None:
    config = NetworkConfig(normalise_observations=True, normalise_returns=True)
    network = build_network(config, SPACES["continuous"])
    changed = _weights_after_update(network, SPACES["continuous"])
    statistics = [f"inputs.statistics.{name}" for name in ("count", "mean", "variance")]
    popart = [f"popart.{name}" for name in ("mean", "variance", "weight")]
    assert sorted(changed) == sorted([*statistics, *popart, "value_head.bias", "value_head.weight"])
    other = build_network(config, SPACES["continuous"])
    other.load_state_dict(network.state_dict())
    observations, is_first = random_observations(SPACES["continuous"], T, B), random_starts(T, B)
    assert torch.equal(other(observations, is_first, {}).policy, network(observations, is_first, {}).policy)
    assert torch.equal(other(observations, is_first, {}).values, network(observations, is_first, {}).values)


def _weights_after_update(network: Network, spec: EnvironmentSpec) -> list[str]:
    """Returns the names of the weights that an update of statistics changed."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    vs = torch.randn(T, B, generator=torch.Generator().manual_seed(2))
    network.update_statistics(random_observations(spec, T + 1, B), random_starts(T + 1, B), vs, torch.ones(T, B))
    return [name for name, tensor in network.state_dict().items() if not torch.equal(before[name], tensor)]


def test_real_valued_actions_begin_with_the_deviation_asked_for() -> None:
    network = Case(SPACES["continuous"], NetworkConfig(action_std=0.5)).build()
    output = network(random_observations(SPACES["continuous"], T, B), random_starts(T, B), network.initial_state(B))
    torch.testing.assert_close(output.policy[..., 2:].exp(), torch.full((T, B, 2), 0.5))


@pytest.mark.parametrize("squash", [True, False])
def test_means_of_real_valued_actions_stay_within_bounds_where_that_is_asked_for(squash: bool) -> None:
    network = Case(SPACES["continuous"], NetworkConfig(squash_means=squash, action_std=0.5)).build()
    with torch.no_grad():
        network.policy_head.bias.fill_(3.0)
    output = network(random_observations(SPACES["continuous"], T, B), random_starts(T, B), network.initial_state(B))
    means, deviations = output.policy.detach()[..., :2], output.policy.detach()[..., 2:].exp()
    assert bool((means <= 1.0).all()) is squash
    assert float(means.min()) > 0.9  # as far out as it may be
    torch.testing.assert_close(deviations, torch.full((T, B, 2), 0.5))
