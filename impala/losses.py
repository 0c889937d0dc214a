"""IMPALA's loss: policy gradient, value baseline and entropy, summed over time and batch as in the paper."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from impala.config import LossConfig
from impala.networks import Network, NetworkOutput
from impala.unroll import Unroll
from impala.vtrace import VTraceReturns, importance_ratios, vtrace

# Ratios of equal policies differ from 1 by rounding; those are not clipped in any sense that matters.
_RATIO_ROUNDING = 1e-5

# Of the paper's epsilon-correction: log(pi + 1e-6).
_LOG_EPSILON = math.log(1e-6)


def policy_gradient_loss(log_probs: Tensor, pg_advantages: Tensor) -> Tensor:
    """Returns - sum log pi(a_t|x_t) A_t (paper, section 4.2); A_t already carries its importance ratio.

    docs/primer.md, section 7.6.

    Args:
        log_probs: [T, B] log pi(a_t|x_t) of the learner policy; the gradient flows through it alone.
        pg_advantages: [T, B], detached here; 0 on reset rows.
    """
    return -(log_probs * pg_advantages.detach()).sum()


def baseline_loss(values: Tensor, vs: Tensor, valid: Tensor) -> Tensor:
    """Returns 0.5 sum (v_t - V(x_t))^2 over valid rows (paper, section 4.2).

    docs/primer.md, section 7.6.

    Args:
        values: [T, B] V(x_t); the gradient flows through it alone.
        vs: [T, B] targets, detached here.
        valid: [T, B] 1 where an environment acted, 0 on reset rows.
    """
    assert values.shape == vs.shape == valid.shape, (values.shape, vs.shape, valid.shape)
    return 0.5 * ((vs.detach() - values).square() * valid).sum()


@dataclass(frozen=True, kw_only=True)
class ImpalaLoss:
    """The loss of one batch and what to watch in it. All but `total` are detached, all but the last three scalars.

    Means are over valid rows.

    Attributes:
        total: policy_gradient + baseline_cost * baseline - entropy_cost * (sum of entropies).
        policy_gradient, baseline: the summed losses, before their weights; where the network has a value scale, in its units.
        entropy: mean entropy of the learner policy, nats; differential, and thus of either sign, for real numbers.
        value_mean, target_mean: mean of V(x_t) and of v_t.
        log_rho_abs: mean |log pi/mu|.
        log_rho_abs_lag_0: the same over columns that the current weights collected; NaN where there is none. 0 but for rounding:
            anything else says that actor and learner compute different policies from the same weights.
        clipped_fraction: share of rows whose ratio is above rho_bar.
        effective_sample_size: (sum w)^2 / (n sum w^2) of the unclipped ratios w of the n valid rows: 1 on-policy, near 1/n where
            one row outweighs all others. NaN without valid rows.
        vs: [T, B] targets v_t, in the units of V; V(x_t) on reset rows.
        valid: [T, B] 1 where an environment acted, 0 on reset rows.
        log_ratios: [T, B] log pi/mu; anything on reset rows.
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
    effective_sample_size: Tensor
    vs: Tensor
    valid: Tensor
    log_ratios: Tensor


def impala_loss(
    network: Network,
    unroll: Unroll[Tensor],
    config: LossConfig,
    *,
    parameter_version: int,
    forward: Callable[..., NetworkOutput] | None = None,
) -> ImpalaLoss:
    """Returns the loss of `network` on a batch of trajectories.

    The sum of its terms: docs/primer.md, section 7.6; the effective sample size: docs/primer.md, section 7.2.

    Where the network has a value scale, the baseline loss is of (v_t - V(x_t)) / scale and the advantages are divided by it, so
    that tasks of large and of small returns weigh alike (PopArt; Hessel et al. 2018, arXiv:1809.04474). V stays in true units.

    Args:
        network: the learner policy and baseline.
        unroll: [T, B] trajectories, on the network's device.
        config: correction, discount, clips and weights.
        parameter_version: the version of `network`'s weights, to tell the columns of lag 0.
        forward: what to call in `network`'s place, where something is wrapped around it.
    """
    output = (forward or network)(unroll.observations, unroll.is_first, unroll.initial_state)
    policy, values = output.policy[:-1], output.values[:-1]
    log_probs = network.distribution.log_prob(policy, unroll.actions)
    valid = (~unroll.reset_rows).to(values.dtype)
    log_ratios = log_probs.detach() - unroll.behaviour_log_probs
    vs, pg_advantages = corrected_targets(log_ratios, unroll, output.values.detach(), config)

    scale = network.value_scale(unroll.observations)
    unit = torch.ones_like(values) if scale is None else scale[:-1]
    chosen = torch.logaddexp(log_probs, torch.full_like(log_probs, _LOG_EPSILON)) if config.correction == "epsilon" else log_probs
    pg = policy_gradient_loss(chosen, pg_advantages / unit)
    baseline = baseline_loss(values / unit, vs / unit, valid)
    entropies = network.distribution.entropy(policy) * valid
    total = pg + config.baseline_cost * baseline - config.entropy_cost * entropies.sum()

    with torch.no_grad():
        count = valid.sum().clamp(min=1.0)
        log_rho_abs = log_ratios.abs() * valid
        lag_0 = (unroll.parameter_version == parameter_version).to(values.dtype)
        # Ratios enter relative to each other alone, so that none of them overflows.
        shares = log_ratios.masked_fill(unroll.reset_rows, -torch.inf).flatten().softmax(0)
        return ImpalaLoss(
            total=total,
            policy_gradient=pg.detach(),
            baseline=baseline.detach(),
            entropy=entropies.sum() / count,
            value_mean=(values * valid).sum() / count,
            target_mean=(vs * valid).sum() / count,
            log_rho_abs=log_rho_abs.sum() / count,
            log_rho_abs_lag_0=(log_rho_abs * lag_0).sum() / (valid * lag_0).sum(),
            clipped_fraction=((log_ratios.exp() > config.rho_bar + _RATIO_ROUNDING) * valid).sum() / count,
            effective_sample_size=1.0 / (count * shares.square().sum()),
            vs=vs,
            valid=valid,
            log_ratios=log_ratios,
        )


def corrected_targets(log_ratios: Tensor, unroll: Unroll[Tensor], values: Tensor, config: LossConfig) -> VTraceReturns:
    """Returns value targets and policy-gradient advantages, corrected for the lag as `config.correction` says.

    The corrections of the paper's section 5.2.2:

        vtrace          see `vtrace`
        one-step        targets are uncorrected n-step returns; advantages min(pg_rho_bar, pi/mu) (r_t + gamma_t v_{t+1} - V(x_t))
        epsilon, none   the same targets, advantages without a ratio

    Reset rows have v = V and no advantage in all of them (docs/primer.md, section 7.7), and `lambda_` shortens the returns.

    Args:
        log_ratios: [T, B] log pi(a_t|x_t) - log mu(a_t|x_t); anything finite on reset rows.
        unroll: [T, B] trajectories.
        values: [T+1, B] V(x_t).
    """
    rewards = config.reward_scale * clip_rewards(unroll.rewards, config)
    discounts = config.discount * (~unroll.terminated).to(values.dtype)
    corrects_values = config.correction == "vtrace"
    log_rhos = log_ratios if corrects_values else torch.zeros_like(log_ratios)
    targets = vtrace(
        log_rhos=log_rhos.masked_fill(unroll.reset_rows, -torch.inf),
        discounts=discounts,
        rewards=rewards,
        values=values[:-1],
        bootstrap_value=values[-1],
        # Clips below 1 would shrink the ratio of 1 that stands for none.
        rho_bar=config.rho_bar if corrects_values else 1.0,
        c_bar=config.c_bar if corrects_values else 1.0,
        pg_rho_bar=config.pg_rho_bar if corrects_values else 1.0,
        lambda_=config.lambda_,
    )
    if config.correction != "one-step":
        return targets
    rhos = importance_ratios(log_ratios).clamp(max=config.pg_rho_bar)
    return VTraceReturns(vs=targets.vs, pg_advantages=rhos * targets.pg_advantages)


def clip_rewards(rewards: Tensor, config: LossConfig) -> Tensor:
    """Returns the rewards as the loss sees them; the actors report true ones."""
    return rewards.clamp(-1.0, 1.0) if config.reward_clip == "unit" else rewards
