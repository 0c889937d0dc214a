"""The loss: its terms and their gradients by hand, its masks, and what no gradient may flow through."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from impala.config import LossConfig, NetworkConfig
from impala.distributions import ActionDistribution, Categorical, Gaussian
from impala.losses import ImpalaLoss, baseline_loss, clip_rewards, impala_loss, policy_gradient_loss
from impala.networks import NetworkOutput, State, build_network
from impala.unroll import Unroll
from impala.vtrace import vtrace
from tests.samples import SPEC, make_unroll

STATES, ACTIONS = 6, 3

Correction = Literal["vtrace", "one-step", "epsilon", "none"]
CORRECTIONS = get_args(Correction)


class Table(nn.Module):
    """Policies and values looked up in a table; an observation is the number of its row."""

    def __init__(self, distribution: ActionDistribution | None = None, *, scales: Tensor | None = None) -> None:
        super().__init__()
        self.distribution = distribution or Categorical((ACTIONS,), single=True)
        generator = torch.Generator().manual_seed(0)
        outputs = self.distribution.num_outputs
        self.logits = nn.Parameter(torch.randn(STATES, outputs, generator=generator, dtype=torch.float64))
        self.values = nn.Parameter(torch.randn(STATES, generator=generator, dtype=torch.float64))
        self.scales = scales

    def forward(self, observations: Mapping[str, Tensor], is_first: Tensor, state: State) -> NetworkOutput:
        rows = observations["state"]
        return NetworkOutput(policy=self.logits[rows], values=self.values[rows])

    def value_scale(self, observations: Mapping[str, Tensor]) -> Tensor | None:
        return None if self.scales is None else self.scales[observations["state"]]


def table_unroll(
    states: Sequence[int],
    *,
    actions: Sequence[int] = (),
    rewards: Sequence[float] = (),
    terminated: Sequence[int] = (),
    first: Sequence[int] = (),
    log_probs: Sequence[float] = (),
    version: int = 1,
) -> Unroll[Tensor]:
    """Returns one trajectory through the rows of a table.

    Args:
        terminated: rows that end in termination.
        first: observations that begin an episode.
        log_probs: of the behaviour policy; log 0.5 unless given.
    """
    length = len(states) - 1
    return Unroll(
        observations={"state": torch.tensor(states).unsqueeze(1)},
        is_first=torch.tensor([t in first for t in range(length + 1)]).unsqueeze(1),
        actions=torch.tensor(actions or [t % ACTIONS for t in range(length)]).unsqueeze(1),
        rewards=torch.tensor(rewards or [1.0 + t for t in range(length)], dtype=torch.float64).unsqueeze(1),
        terminated=torch.tensor([t in terminated for t in range(length)]).unsqueeze(1),
        behaviour_log_probs=torch.tensor(log_probs or [math.log(0.5)] * length, dtype=torch.float64).unsqueeze(1),
        initial_state={},
        parameter_version=torch.tensor([version]),
    )


def side_by_side(*unrolls: Unroll[Tensor]) -> Unroll[Tensor]:
    joined: dict[str, Any] = {
        name: torch.cat([getattr(unroll, name) for unroll in unrolls], dim=-1)
        for name in ("is_first", "actions", "rewards", "terminated", "behaviour_log_probs", "parameter_version")
    }
    states = torch.cat([unroll.observations["state"] for unroll in unrolls], dim=1)
    return replace(unrolls[0], observations={"state": states}, **joined)


def loss_and_gradients(network: Table, unroll: Unroll[Tensor], config: LossConfig) -> tuple[ImpalaLoss, Tensor, Tensor]:
    """Returns the loss, and the gradients of the table's logits and values; zeros where there is none."""
    network.zero_grad()
    loss = impala_loss(network, unroll, config, parameter_version=1)
    loss.total.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in (network.logits, network.values)]
    return loss, gradients[0], gradients[1]


def sampled_unroll(**arrays: Any) -> Unroll[Tensor]:
    """Returns a CartPole-like unroll as tensors."""
    return make_unroll(**arrays).map(torch.from_numpy)


# The terms by themselves.


def test_the_policy_gradient_loss_is_minus_the_sum_of_log_prob_times_advantage() -> None:
    log_probs = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], requires_grad=True)
    advantages = torch.tensor([[2.0, -1.0], [4.0, 0.0]])
    loss = policy_gradient_loss(log_probs, advantages)
    loss.backward()
    assert float(loss.detach()) == -(-2.0 + 2.0 - 2.0 + 0.0)
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == (-advantages).tolist()


def test_the_baseline_loss_is_half_the_sum_of_squares() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    vs = torch.tensor([[2.0, 0.0], [3.0, 7.0]])
    loss = baseline_loss(values, vs, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    loss.backward()
    assert float(loss.detach()) == 0.5 * (1.0 + 4.0 + 0.0)
    assert values.grad is not None
    assert values.grad.tolist() == [[-1.0, 2.0], [0.0, 0.0]]


def test_values_with_a_trailing_one_are_not_broadcast() -> None:
    ones = torch.ones(3, 4)
    with pytest.raises(AssertionError):
        baseline_loss(ones.unsqueeze(-1), ones, ones)


@pytest.mark.parametrize("detached", ["targets", "advantages"])
def test_the_terms_detach_what_they_are_given(detached: str) -> None:
    predicted, given = torch.ones(2, 2, requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    loss = baseline_loss(predicted, given, torch.ones(2, 2)) if detached == "targets" else policy_gradient_loss(predicted, given)
    loss.backward()
    assert predicted.grad is not None
    assert given.grad is None


# The whole loss.


def test_one_step_by_hand() -> None:
    network = Table()
    with torch.no_grad():
        network.logits[0] = torch.tensor([0.25, 0.5, 0.25]).log()
        network.values[:2] = torch.tensor([1.0, 2.0])
    # rho = 0.25 / 0.5; r + gamma V(x_1) - V(x_0) = 3 + 0.9 * 2 - 1 = 3.8.
    unroll = table_unroll([0, 1], actions=[0], rewards=[3.0])
    loss, logits, values = loss_and_gradients(network, unroll, LossConfig(discount=0.9, baseline_cost=0.3, entropy_cost=0.2))
    entropy = -(0.5 * math.log(0.25) + 0.5 * math.log(0.5))
    assert float(loss.policy_gradient) == pytest.approx(-math.log(0.25) * 1.9)
    assert float(loss.baseline) == pytest.approx(0.5 * 1.9**2)
    assert float(loss.entropy) == pytest.approx(entropy)
    assert float(loss.total.detach()) == pytest.approx(-math.log(0.25) * 1.9 + 0.3 * 0.5 * 1.9**2 - 0.2 * entropy)
    assert values[:2].tolist() == pytest.approx([-0.3 * 1.9, 0.0])
    assert float(logits[0, 0]) == pytest.approx(-1.9 * (1.0 - 0.25) + 0.2 * 0.25 * (math.log(0.25) + entropy))
    assert float(logits[0, 1]) == pytest.approx(1.9 * 0.5 + 0.2 * 0.5 * (math.log(0.5) + entropy))


def test_the_gradients_are_the_hand_derived_ones() -> None:
    network = Table()
    config = LossConfig(discount=0.9, baseline_cost=0.3, entropy_cost=0.2, rho_bar=1.5, pg_rho_bar=1.2, lambda_=0.8)
    unroll = side_by_side(
        table_unroll([0, 1, 2, 3, 4, 5], first=[3], terminated=[1]),
        table_unroll([3, 4, 5, 1, 0, 2], first=[2], rewards=[0.5, 0.0, -2.0, 1.0, 3.0]),
        table_unroll([2, 2, 3, 1, 4, 4], first=[0], actions=[2, 2, 1, 0, 0]),
    )
    _, got_logits, got_values = loss_and_gradients(network, unroll, config)

    states, acted = unroll.observations["state"], ~unroll.is_first[1:]
    policy, values = network.logits.detach().softmax(-1), network.values.detach()
    entropy = -(policy * policy.log()).sum(-1)
    chosen = policy[states[:-1], unroll.actions]
    targets = vtrace(
        log_rhos=(chosen * acted).log() - unroll.behaviour_log_probs,
        discounts=0.9 * (~unroll.terminated).double(),
        rewards=unroll.rewards,
        values=values[states[:-1]],
        bootstrap_value=values[states[-1]],
        rho_bar=1.5,
        pg_rho_bar=1.2,
        lambda_=0.8,
    )
    expected_logits, expected_values = torch.zeros_like(got_logits), torch.zeros_like(got_values)
    for t, b in np.argwhere(acted.numpy()):
        s, action = int(states[t, b]), int(unroll.actions[t, b])
        chose = nn.functional.one_hot(torch.tensor(action), ACTIONS)
        expected_logits[s] += targets.pg_advantages[t, b] * (policy[s] - chose)
        expected_logits[s] += 0.2 * policy[s] * (policy[s].log() + entropy[s])
        expected_values[s] += 0.3 * (values[s] - targets.vs[t, b])
    torch.testing.assert_close(got_logits, expected_logits, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(got_values, expected_values, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("costs", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.01)], ids=["pg", "baseline", "entropy", "all"])
def test_every_term_is_a_sum_over_time_and_batch(costs: tuple[float, float]) -> None:
    # Both ways of having the same row n times: a mean anywhere would not grow with them.
    network, config = Table(), LossConfig(discount=0.0, baseline_cost=costs[0], entropy_cost=costs[1])
    once = table_unroll([0, 1], actions=[1], rewards=[2.0])
    _, logits, values = loss_and_gradients(network, once, config)
    wide = loss_and_gradients(network, side_by_side(*[once] * 4), config)
    long = loss_and_gradients(network, table_unroll([0] * 5, actions=[1] * 4, rewards=[2.0] * 4), config)
    for _, more_logits, more_values in (wide, long):
        torch.testing.assert_close(more_logits, 4.0 * logits)
        torch.testing.assert_close(more_values, 4.0 * values)


def test_the_total_is_the_weighted_sum_of_the_terms() -> None:
    unroll = table_unroll([0, 1, 2, 3], first=[2])
    loss, _, _ = loss_and_gradients(Table(), unroll, LossConfig(baseline_cost=0.3, entropy_cost=0.2))
    # Two rows were acted in; the metric is their mean, the loss takes their sum.
    expected = loss.policy_gradient + 0.3 * loss.baseline - 0.2 * 2 * loss.entropy
    assert float(loss.total.detach()) == pytest.approx(float(expected))


def test_a_huge_entropy_cost_drives_the_policy_to_uniform() -> None:
    network, config = Table(), LossConfig(entropy_cost=1e4)
    unroll = table_unroll([0, 1, 2, 3, 4, 5, 0])
    for _ in range(60):
        _, gradient, _ = loss_and_gradients(network, unroll, config)
        with torch.no_grad():
            network.logits -= 2e-4 * gradient
    assert bool(((network.logits.detach().softmax(-1) - 1.0 / ACTIONS).abs() < 0.02).all())


def test_the_entropy_metric_is_the_mean_entropy_of_the_rows_acted_in() -> None:
    network = Table()
    loss, _, _ = loss_and_gradients(network, table_unroll([0, 1, 2, 3], first=[2]), LossConfig(entropy_cost=5.0))
    policy = network.logits.detach().softmax(-1)
    entropies = -(policy * policy.log()).sum(-1)
    assert float(loss.entropy) == pytest.approx(float(entropies[[0, 2]].mean()))


def test_the_policy_gradient_trains_no_values() -> None:
    _, logits, values = loss_and_gradients(Table(), table_unroll([0, 1, 2, 3]), LossConfig(baseline_cost=0.0))
    assert bool((values == 0.0).all())
    assert bool((logits[:3] != 0.0).all())


def test_no_gradient_flows_into_the_bootstrap_value() -> None:
    _, _, values = loss_and_gradients(Table(), table_unroll([0, 1, 2, 3]), LossConfig())
    assert float(values[3]) == 0.0


def test_no_gradient_flows_into_the_next_value_of_a_target() -> None:
    # Row 1 is a reset: x_1 is read as the next value of row 0, and nowhere else.
    _, _, values = loss_and_gradients(Table(), table_unroll([0, 1, 2, 3], first=[2]), LossConfig())
    assert float(values[1]) == 0.0
    assert float(values[0]) != 0.0


def test_importance_ratios_carry_no_gradient() -> None:
    # Below every clip, where a ratio with a gradient would add to the policy's and to no other.
    network, config = Table(), LossConfig(baseline_cost=1.0, entropy_cost=0.0)
    unroll = table_unroll([0, 1], actions=[0], log_probs=[0.0], rewards=[2.0])
    loss, logits, _ = loss_and_gradients(network, unroll, config)
    policy = network.logits.detach().softmax(-1)[0]
    advantage = float(loss.policy_gradient) / -math.log(float(policy[0]))
    assert logits[0].tolist() == pytest.approx((advantage * (policy - torch.tensor([1.0, 0.0, 0.0]))).tolist())


# Reset rows. Row t is one where is_first[t+1]: x_t is the final observation of the episode before.


@pytest.mark.parametrize("costs", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)], ids=["pg", "baseline", "entropy"])
def test_a_reset_row_is_masked_out_of_every_term(costs: tuple[float, float]) -> None:
    # x_1 is row 1 of the table, which no other row of the unroll acts in.
    config = LossConfig(baseline_cost=costs[0], entropy_cost=costs[1])
    _, logits, values = loss_and_gradients(Table(), table_unroll([0, 1, 2, 3], first=[2]), config)
    assert logits[1].tolist() == [0.0] * ACTIONS
    assert float(values[1]) == 0.0


@pytest.mark.parametrize(
    "change",
    [
        lambda unroll: unroll.actions[1].fill_(0),
        lambda unroll: unroll.rewards[1].fill_(1e6),
        lambda unroll: unroll.behaviour_log_probs[1].fill_(-50.0),
    ],
    ids=["action", "reward", "behaviour log prob"],
)
def test_what_a_reset_row_holds_changes_nothing(change: Callable[[Unroll[Tensor]], Tensor]) -> None:
    network, unroll = Table(), table_unroll([0, 1, 2, 3], first=[2])
    loss, *gradients = loss_and_gradients(network, unroll, LossConfig())
    change(unroll)
    changed, *changed_gradients = loss_and_gradients(network, unroll, LossConfig())
    assert float(changed.total.detach()) == float(loss.total.detach())
    assert all(torch.equal(one, other) for one, other in zip(gradients, changed_gradients, strict=True))


def test_the_final_observation_of_a_terminated_episode_changes_nothing() -> None:
    gradients = [
        loss_and_gradients(Table(), table_unroll([0, final, 2, 3], first=[2], terminated=[0]), LossConfig())[1:] for final in (1, 5)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_the_final_observation_of_a_truncated_episode_counts_by_its_value_alone() -> None:
    # The same value under other logits: the same gradients everywhere, and none for either row of the table.
    network = Table()
    with torch.no_grad():
        network.values[5] = network.values[1]
    one, other = (loss_and_gradients(network, table_unroll([0, final, 2, 3], first=[2]), LossConfig())[1:] for final in (1, 5))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


def test_the_value_of_a_truncated_episode_s_final_observation_moves_the_row_before_it_and_no_other() -> None:
    network, unroll = Table(), table_unroll([0, 1, 2, 3], first=[2], log_probs=[-9.0, -9.0, -9.0])
    _, logits, values = loss_and_gradients(network, unroll, LossConfig(discount=0.9, baseline_cost=0.5))
    with torch.no_grad():
        network.values[1] += 1.0
    _, moved_logits, moved_values = loss_and_gradients(network, unroll, LossConfig(discount=0.9, baseline_cost=0.5))
    # Ratio clipped at 1: target and advantage of row 0 rise by gamma.
    policy = network.logits.detach().softmax(-1)[0]
    assert float((moved_values - values)[0]) == pytest.approx(-0.5 * 0.9)
    assert (moved_logits - logits)[0].tolist() == pytest.approx((0.9 * (policy - torch.tensor([1.0, 0.0, 0.0]))).tolist())
    assert torch.equal(moved_values[1:], values[1:])
    assert torch.equal(moved_logits[1:], logits[1:])


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_where_episodes_restart_at_once_a_terminated_step_counts_as_if_a_reset_row_followed(correction: Correction) -> None:
    config = LossConfig(correction=correction)
    with_row, at_once = table_unroll([0, 1, 2, 3], first=[2], terminated=[0]), table_unroll([0, 2, 3], first=[1], terminated=[0])
    at_once.actions[1], at_once.rewards[1] = with_row.actions[2], with_row.rewards[2]
    (one, *gradients), (other, *same) = (loss_and_gradients(Table(), unroll, config) for unroll in (with_row, at_once))
    assert float(one.total.detach()) == pytest.approx(float(other.total.detach()))
    assert other.valid.flatten().tolist() == [1.0, 1.0]
    for left, right in zip(gradients, same, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_where_episodes_restart_at_once_a_truncated_step_is_given_up(correction: Correction) -> None:
    config = LossConfig(correction=correction)
    whole, rest = table_unroll([0, 1, 2, 3], first=[2]), table_unroll([2, 3])
    rest.actions[0], rest.rewards[0] = whole.actions[2], whole.rewards[2]
    before = table_unroll([0, 1])
    parts = [loss_and_gradients(Table(), unroll, config)[1:] for unroll in (before, rest)]
    # x_1 is the first of the next episode here, and row 0 leads nowhere that is known.
    _, *given_up = loss_and_gradients(Table(), replace(whole, is_first=table_unroll([0] * 4, first=[1]).is_first), config)
    assert given_up[0][0].tolist() == [0.0] * ACTIONS
    assert float(given_up[1][0]) == 0.0
    _, *with_row = loss_and_gradients(Table(), whole, config)
    for got, *expected in zip(with_row, *parts, strict=True):
        torch.testing.assert_close(got, sum(expected))


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_an_unroll_of_reset_rows_alone_has_no_loss(correction: Correction) -> None:
    loss, logits, values = loss_and_gradients(Table(), table_unroll([0, 1], first=[1]), LossConfig(correction=correction))
    assert (float(loss.total.detach()), float(loss.entropy), float(loss.log_rho_abs)) == (0.0, 0.0, 0.0)
    assert float(logits.abs().sum() + values.abs().sum()) == 0.0


def test_a_terminated_step_is_worth_its_reward() -> None:
    loss, _, _ = loss_and_gradients(Table(), table_unroll([0, 1], terminated=[0], log_probs=[-9.0], rewards=[7.0]), LossConfig())
    assert float(loss.target_mean) == pytest.approx(7.0)


# Settings and metrics.


def test_rewards_are_clipped_to_one_where_that_is_asked_for() -> None:
    rewards = torch.tensor([5.0, -3.0, 0.5, 1.0])
    assert clip_rewards(rewards, LossConfig(reward_clip="unit")).tolist() == [1.0, -1.0, 0.5, 1.0]


def test_rewards_are_left_alone_otherwise() -> None:
    rewards = torch.tensor([5.0, -3.0, 0.5, 1.0])
    assert clip_rewards(rewards, LossConfig()).tolist() == rewards.tolist()


def test_the_loss_sees_the_rewards_that_the_configuration_asks_for() -> None:
    unroll, small = table_unroll([0, 1], rewards=[5.0]), table_unroll([0, 1], rewards=[1.0])
    clipped, true, one = (
        loss_and_gradients(Table(), rollout, LossConfig(reward_clip=clip))[0]  # type: ignore[arg-type]
        for rollout, clip in ((unroll, "unit"), (unroll, "none"), (small, "none"))
    )
    assert float(clipped.target_mean) == float(one.target_mean) != float(true.target_mean)


def test_rewards_are_scaled_after_they_are_clipped() -> None:
    config = LossConfig(reward_clip="unit", reward_scale=0.25)
    # Far above the clip of the ratio, and terminated: the target is the reward.
    unroll = table_unroll([0, 1], rewards=[5.0], terminated=[0], log_probs=[-9.0])
    assert float(loss_and_gradients(Table(), unroll, config)[0].target_mean) == pytest.approx(0.25)


@pytest.mark.parametrize("setting", ["rho_bar", "c_bar", "pg_rho_bar", "lambda_", "discount"])
def test_every_setting_of_v_trace_reaches_it(setting: str) -> None:
    base = LossConfig(rho_bar=2.0)
    changed = replace(base, **{setting: 1.2 if setting == "rho_bar" else 0.7})
    unroll = table_unroll([0, 1, 2, 3], log_probs=[-9.0, -9.0, -9.0])
    before, after = (loss_and_gradients(Table(), unroll, config)[0] for config in (base, changed))
    assert float(before.total.detach()) != float(after.total.detach())


def test_everything_but_the_total_is_detached() -> None:
    loss, _, _ = loss_and_gradients(Table(), table_unroll([0, 1, 2]), LossConfig())
    assert [name for name, tensor in vars(loss).items() if tensor.requires_grad] == ["total"]
    assert {name for name, tensor in vars(loss).items() if tensor.ndim} == {"vs", "valid", "log_ratios"}


def test_the_means_of_values_targets_and_ratios_are_over_the_rows_acted_in() -> None:
    network = Table()
    with torch.no_grad():
        network.logits.zero_()
        network.values[:] = torch.tensor([1.0, 100.0, 3.0, 7.0, 0.0, 0.0])
    third, half = math.log(1 / 3), math.log(1 / 2)
    # Row 1 is the reset; its ratio and value are far from those of the others. Row 2 ends by termination.
    unroll = table_unroll([0, 1, 2, 3], first=[2], terminated=[0, 2], rewards=[5.0, 0.0, 9.0], log_probs=[2 * third, -40.0, half])
    loss, _, _ = loss_and_gradients(network, unroll, LossConfig())
    assert float(loss.value_mean) == pytest.approx((1.0 + 3.0) / 2)
    # rho of row 0 is 3, clipped to 1; of row 2 it is 2/3.
    assert float(loss.target_mean) == pytest.approx((5.0 + (3.0 + 2 / 3 * (9.0 - 3.0))) / 2)
    assert float(loss.log_rho_abs) == pytest.approx((math.log(3.0) + math.log(1.5)) / 2)
    assert float(loss.clipped_fraction) == pytest.approx(1 / 2)
    assert float(loss.effective_sample_size) == pytest.approx((3.0 + 2 / 3) ** 2 / (2 * (9.0 + 4 / 9)))
    # In the network's units of value, for its statistics.
    assert loss.vs.flatten().tolist() == pytest.approx([5.0, 100.0, 7.0])
    assert loss.valid.flatten().tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("log_probs", "share"),
    [((-1.0, -1.0, -1.0, -1.0), 1.0), ((-500.0, -1.0, -1.0, -1.0), 1 / 4), ((-9.0, -9.0, 50.0, 50.0), 1 / 2)],
)
def test_the_effective_sample_size_is_the_share_of_rows_that_carry_weight(log_probs: tuple[float, ...], share: float) -> None:
    network = Table()
    with torch.no_grad():
        network.logits.zero_()
    loss, _, _ = loss_and_gradients(network, table_unroll([0, 1, 2, 3, 4], log_probs=log_probs), LossConfig())
    assert float(loss.effective_sample_size) == pytest.approx(share)


def test_without_a_column_of_lag_0_its_metric_is_not_a_number() -> None:
    loss, _, _ = loss_and_gradients(Table(), table_unroll([0, 1, 2], version=0), LossConfig())
    assert math.isnan(float(loss.log_rho_abs_lag_0))
    assert not math.isnan(float(loss.log_rho_abs))


def test_the_metric_of_lag_0_is_over_the_columns_of_the_current_weights() -> None:
    network = Table()
    with torch.no_grad():
        network.logits.zero_()
    third = math.log(1 / 3)
    current = table_unroll([0, 1, 2, 3], first=[2], log_probs=[third - 0.2, -40.0, third + 0.4], version=1)
    older = table_unroll([0, 1, 2, 3], log_probs=[-30.0, -30.0, -30.0], version=0)
    loss, _, _ = loss_and_gradients(network, side_by_side(current, older), LossConfig())
    assert float(loss.log_rho_abs_lag_0) == pytest.approx(0.3)


def test_the_network_that_acted_finds_its_own_log_probs_again() -> None:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(), SPEC.environment)
    unroll = sampled_unroll(environments=8)
    observations = unroll.observations["observation"]
    with torch.no_grad():
        network.get_parameter("policy_head.weight").mul_(100.0)  # a policy far from uniform
        # One step at a time, as an actor does.
        policy = torch.stack([network.act({"observation": observations[t]}, unroll.is_first[t], {})[0] for t in range(5)])
    log_probs = network.distribution.log_prob(policy, unroll.actions)
    loss = impala_loss(network, replace(unroll, behaviour_log_probs=log_probs), LossConfig(), parameter_version=1)
    assert float(loss.log_rho_abs_lag_0) < 1e-5
    assert float(log_probs.std()) > 0.1


# Real numbers, and values in units of their own.


def test_one_step_of_real_numbers_by_hand() -> None:
    network = Table(Gaussian(2))
    with torch.no_grad():
        network.logits[0] = torch.tensor([1.0, -1.0, math.log(0.5), math.log(2.0)])
        network.values[:2] = torch.tensor([1.0, 2.0])
    # Deviations from the means: 1 of 0.5, and -3 of 2. The density may exceed 1, and so may the behaviour's.
    log_density = -0.5 * (2.0**2 + 1.5**2) - math.log(2.0 * math.pi)
    unroll = replace(
        table_unroll([0, 1], rewards=[3.0], log_probs=[log_density + math.log(4.0)]),
        actions=torch.tensor([[[2.0, -4.0]]], dtype=torch.float64),
    )
    loss, policy, values = loss_and_gradients(network, unroll, LossConfig(discount=0.9, entropy_cost=0.2))
    advantage = 0.25 * (3.0 + 0.9 * 2.0 - 1.0)
    entropy = math.log(2.0 * math.pi * math.e)
    assert float(loss.log_rho_abs) == pytest.approx(math.log(4.0))
    assert float(loss.entropy) == pytest.approx(entropy)
    assert float(loss.total.detach()) == pytest.approx(-log_density * advantage + 0.25 * advantage**2 - 0.2 * entropy)
    # d log pi: (a - mean) / std^2 for the mean, ((a - mean) / std)^2 - 1 for log std, which the entropy pulls at as well.
    expected = [-advantage * 4.0, advantage * 0.75, -advantage * 3.0 - 0.2, -advantage * 1.25 - 0.2]
    assert policy[0].tolist() == pytest.approx(expected)
    assert float(values[0]) == pytest.approx(-0.5 * advantage)


def test_a_value_scale_divides_the_advantage_and_the_error_of_the_value_and_no_target() -> None:
    unroll = side_by_side(table_unroll([0, 1, 2, 3, 5], first=[2]), table_unroll([4, 1, 5, 0, 3], first=[2]))
    scales = torch.tensor([2.0, 1e9, 0.5, 3.0, 10.0, 1.0], dtype=torch.float64)
    config = LossConfig(entropy_cost=0.0, rho_bar=2.0)
    plain, logits, values = loss_and_gradients(Table(), unroll, config)
    scaled, scaled_logits, scaled_values = loss_and_gradients(Table(scales=scales), unroll, config)
    assert torch.equal(scaled.vs, plain.vs)
    assert float(scaled.value_mean) == float(plain.value_mean)
    # Each row of the table stands for one scale, and x_1, where both resets are, for none.
    torch.testing.assert_close(scaled_logits, logits / scales.unsqueeze(-1))
    torch.testing.assert_close(scaled_values, values / scales.square())
    assert bool((values[[0, 2, 3, 4]] != 0.0).all())


# The other corrections of the paper's section 5.2.2, literally.


def n_step_targets(unroll: Unroll[Tensor], values: Tensor, discount: float) -> Tensor:
    """Returns the rewards to come, row by row: to the termination, or with the value of the last observation that is known."""
    length, batch = unroll.rewards.shape
    reset = [[bool(unroll.is_first[t + 1, b]) and not bool(unroll.terminated[t, b]) for b in range(batch)] for t in range(length)]
    targets = values[:-1].clone()
    for b in range(batch):
        for start in range(length):
            if reset[start][b]:
                continue
            total, factor, t = 0.0, 1.0, start
            while t < length and not reset[t][b]:
                total += factor * float(unroll.rewards[t, b])
                factor *= 0.0 if unroll.terminated[t, b] else discount
                t += 1
            targets[start, b] = total + factor * float(values[t, b])
    return targets


def corrected_unroll() -> Unroll[Tensor]:
    """Returns trajectories with every boundary there is: none, truncated, terminated, restarted at once, at both ends."""
    random = np.random.default_rng(0)
    bounds: list[dict[str, Any]] = [
        {},
        {"first": [3]},
        {"first": [3], "terminated": [1]},
        {"first": [3], "terminated": [2]},
        {"first": [1, 6]},
        {"first": [6], "terminated": [5]},
        {"first": [5], "terminated": [1, 3]},
    ]
    return side_by_side(
        *[
            table_unroll(
                random.integers(0, STATES, 7).tolist(),
                actions=random.integers(0, ACTIONS, 6).tolist(),
                rewards=random.normal(size=6).tolist(),
                log_probs=np.log(random.uniform(0.02, 1.0, 6)).tolist(),
                **bound,
            )
            for bound in bounds
        ]
    )


@pytest.mark.parametrize("pg_rho_bar", [0.6, 1.0, 3.0])
@pytest.mark.parametrize("correction", ["one-step", "epsilon", "none"])
def test_the_other_corrections_are_the_literal_ones(correction: Correction, pg_rho_bar: float) -> None:
    network, unroll = Table(), corrected_unroll()
    with torch.no_grad():
        network.logits[2] = torch.tensor([0.0, -13.0, -16.0])  # of probabilities around epsilon
    # Clips far below 1, which must not touch the targets.
    config = LossConfig(
        correction=correction, discount=0.9, rho_bar=0.5, c_bar=0.25, pg_rho_bar=pg_rho_bar, baseline_cost=0.3, entropy_cost=0.0
    )
    loss, got_logits, got_values = loss_and_gradients(network, unroll, config)

    states, policy = unroll.observations["state"], network.logits.detach().softmax(-1)
    values = network.values.detach()[states]
    vs = n_step_targets(unroll, values, 0.9)
    torch.testing.assert_close(loss.vs, vs, rtol=0.0, atol=1e-12)
    expected_logits, expected_values = torch.zeros_like(got_logits), torch.zeros_like(got_values)
    total = 0.0
    next_vs = torch.cat([vs[1:], values[-1:]])
    for t, b in np.argwhere((~unroll.is_first[1:] | unroll.terminated).numpy()):
        s, action = int(states[t, b]), int(unroll.actions[t, b])
        probability = float(policy[s, action])
        worth_on = 0.0 if unroll.terminated[t, b] else 0.9
        advantage = float(unroll.rewards[t, b] + worth_on * next_vs[t, b] - values[t, b])
        chose = nn.functional.one_hot(torch.tensor(action), ACTIONS)
        if correction == "one-step":
            advantage *= min(pg_rho_bar, probability / math.exp(float(unroll.behaviour_log_probs[t, b])))
        epsilon = 1e-6 if correction == "epsilon" else 0.0
        total -= advantage * math.log(probability + epsilon)
        expected_logits[s] += advantage * probability / (probability + epsilon) * (policy[s] - chose)
        expected_values[s] += 0.3 * (values[t, b] - vs[t, b])
    assert float(loss.policy_gradient) == pytest.approx(total)
    torch.testing.assert_close(got_logits, expected_logits, rtol=0.0, atol=1e-10)
    torch.testing.assert_close(got_values, expected_values, rtol=0.0, atol=1e-10)


def test_without_lag_and_epsilon_all_corrections_are_one() -> None:
    network, unroll = Table(), corrected_unroll()
    policy = network.logits.detach().log_softmax(-1)[unroll.observations["state"][:-1]]
    on_policy = replace(unroll, behaviour_log_probs=policy.gather(-1, unroll.actions.unsqueeze(-1)).squeeze(-1))
    totals = [
        float(loss_and_gradients(network, on_policy, LossConfig(correction=correction, lambda_=0.8))[0].total.detach())
        for correction in CORRECTIONS
    ]
    vtrace_total, one_step, epsilon, none = totals
    assert [one_step, none] == pytest.approx([vtrace_total] * 2, abs=1e-9)
    # 1e-6 added to probabilities far above it.
    assert epsilon == pytest.approx(none, abs=1e-3)
    assert epsilon != none
