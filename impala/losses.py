"""IMPALA's loss: policy gradient, value baseline and entropy, summed over time and batch as in the paper."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from impala.config import LossConfig
from impala.networks import Network
from impala.unroll import Unroll
from impala.vtrace import vtrace


def policy_gradient_loss(log_probs: Tensor, pg_advantages: Tensor) -> Tensor:
    """Returns - sum log pi(a_t|x_t) A_t (paper, section 4.2); A_t already carries its importance ratio.

    Args:
        log_probs: [T, B] log pi(a_t|x_t) of the learner policy; the gradient flows through it alone.
        pg_advantages: [T, B], detached here; 0 on reset rows.
    """
    return -(log_probs * pg_advantages.detach()).sum()


def baseline_loss(values: Tensor, vs: Tensor, valid: Tensor) -> Tensor:
    """Returns 0.5 sum (v_t - V(x_t))^2 over valid rows (paper, section 4.2).

    Args:
        values: [T, B] V(x_t); the gradient flows through it alone.
        vs: [T, B] targets, detached here.
        valid: [T, B] 1 where an environment acted, 0 on reset rows.
    """
    assert values.shape == vs.shape == valid.shape, (values.shape, vs.shape, valid.shape)
    return 0.5 * ((vs.detach() - values).square() * valid).sum()


def categorical_entropy(log_probs: Tensor) -> Tensor:
    """Returns the entropy in nats, [...], of categorical policies with these normalised log-probabilities, [..., A]."""
    return -(log_probs.exp() * log_probs).sum(-1)


# Ratios of equal policies differ from 1 by rounding; those are not clipped in any sense that matters.
_RATIO_ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True)
class ImpalaLoss:
    """The loss of one batch and what to watch in it. All but `total` are detached scalars; means are over valid rows.

    Attributes:
        total: policy_gradient + baseline_cost * baseline - entropy_cost * (sum of entropies).
        policy_gradient, baseline: the summed losses, before their weights.
        entropy: mean entropy of the learner policy, nats.
        value_mean, target_mean: mean of V(x_t) and of v_t.
        log_rho_abs: mean |log pi/mu|.
        log_rho_abs_lag_0: the same over columns that the current weights collected; NaN where there is none. 0 but for rounding:
            anything else says that actor and learner compute different policies from the same weights.
        clipped_fraction: share of rows whose ratio is above rho_bar.
    """

    total: Tensor
    policy_gradient: Tensor
    baseline: Tensor
    entropy: Tensor
    value_mean: Tensor
    target_mean: Tensor
    log_rho_abs: Tensor
    log_rho_abs_lag_0: Tensor
    clipped_fraction: Tensor


def impala_loss(network: Network, unroll: Unroll[Tensor], config: LossConfig, *, parameter_version: int) -> ImpalaLoss:
    """Returns the loss of `network` on a batch of trajectories.

    Args:
        network: the learner policy and baseline.
        unroll: [T, B] trajectories, on the network's device.
        config: discount, clips and weights.
        parameter_version: the version of `network`'s weights, to tell the columns of lag 0.
    """
    output = network(unroll.observations, unroll.is_first, unroll.initial_state)
    logits, values = output.policy_logits[:-1], output.values
    all_log_probs = functional.log_softmax(logits, dim=-1)
    log_probs = all_log_probs.gather(-1, unroll.actions.unsqueeze(-1)).squeeze(-1)

    reset_rows = unroll.is_first[1:]
    valid = (~reset_rows).to(values.dtype)
    log_ratios = log_probs.detach() - unroll.behaviour_log_probs
    targets = vtrace(
        log_rhos=log_ratios.masked_fill(reset_rows, -torch.inf),
        discounts=config.discount * (~unroll.terminated).to(values.dtype),
        rewards=config.reward_scale * clip_rewards(unroll.rewards, config),
        values=values[:-1].detach(),
        bootstrap_value=values[-1].detach(),
        rho_bar=config.rho_bar,
        c_bar=config.c_bar,
        pg_rho_bar=config.pg_rho_bar,
        lambda_=config.lambda_,
    )

    pg = policy_gradient_loss(log_probs, targets.pg_advantages)
    baseline = baseline_loss(values[:-1], targets.vs, valid)
    entropies = categorical_entropy(all_log_probs) * valid
    total = pg + config.baseline_cost * baseline - config.entropy_cost * entropies.sum()

    with torch.no_grad():
        count = valid.sum().clamp(min=1.0)
        log_rho_abs = log_ratios.abs() * valid
        lag_0 = (unroll.parameter_version == parameter_version).to(values.dtype)
        return ImpalaLoss(
            total=total,
            policy_gradient=pg.detach(),
            baseline=baseline.detach(),
            entropy=entropies.sum() / count,
            value_mean=(values[:-1] * valid).sum() / count,
            target_mean=(targets.vs * valid).sum() / count,
            log_rho_abs=log_rho_abs.sum() / count,
            log_rho_abs_lag_0=(log_rho_abs * lag_0).sum() / (valid * lag_0).sum(),
            clipped_fraction=((log_ratios.exp() > config.rho_bar + _RATIO_ROUNDING) * valid).sum() / count,
        )


def clip_rewards(rewards: Tensor, config: LossConfig) -> Tensor:
    """Returns the rewards as the loss sees them; the actors report true ones."""
    return rewards.clamp(-1.0, 1.0) if config.reward_clip == "unit" else rewards
