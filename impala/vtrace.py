"""V-trace: value targets and advantages for data that an older policy collected (paper, section 4.1)."""

from typing import NamedTuple

import torch
from torch import Tensor

# exp(20) is 5e8: far above any clip in use, far below what overflows float32, so that an unclipped product of ratios and
# rewards stays finite too.
_MAX_LOG_RHO = 20.0


def importance_ratios(log_rhos: Tensor) -> Tensor:
    """Returns pi/mu, [...], from its logarithm, clamped at 20 before exp."""
    return log_rhos.clamp(max=_MAX_LOG_RHO).exp()


class VTraceReturns(NamedTuple):
    """What `vtrace` returns; both detached, of the shape and dtype of `values`."""

    vs: Tensor
    pg_advantages: Tensor


def vtrace(
    *,
    log_rhos: Tensor,
    discounts: Tensor,
    rewards: Tensor,
    values: Tensor,
    bootstrap_value: Tensor,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    pg_rho_bar: float = 1.0,
    lambda_: float = 1.0,
) -> VTraceReturns:
    """Returns the V-trace targets v_t and the policy-gradient advantages, one for each step.

    With rho_t = min(rho_bar, pi/mu) and c_t = lambda min(c_bar, pi/mu), backwards from v_T = V(x_T):

        delta_t = rho_t (r_t + gamma_t V(x_{t+1}) - V(x_t))
        v_t     = V(x_t) + delta_t + gamma_t c_t (v_{t+1} - V(x_{t+1}))
        A_t     = min(pg_rho_bar, pi/mu) (r_t + gamma_t v_{t+1} - V(x_t))

    which is the paper's eq. (1) and the advantage under eq. (4), whose target is v_{t+1} and not V(x_{t+1}). rho_bar decides
    what is learnt (the value of a policy between mu and pi), c_bar only how fast; hence rho_bar >= c_bar.

    A reset row, the transition between two episodes, is given log_rho = -inf: its delta, trace and advantage are then 0, so that
    v = V there, nothing leaks from one episode into the one before, and a truncated episode bootstraps from the value of its
    final observation.

    Args:
        log_rhos: [T, ...] log pi(a_t|x_t) - log mu(a_t|x_t); -inf on reset rows. Clamped at 20 before exp.
        discounts: [T, ...] gamma_t: the discount, or 0 where the environment terminated at x_{t+1}.
        rewards: [T, ...] r_t.
        values: [T, ...] V(x_t).
        bootstrap_value: [...] V(x_T).
        rho_bar: clip of the ratio in delta.
        c_bar: clip of the ratio in the trace.
        pg_rho_bar: clip of the ratio on the policy gradient.
        lambda_: multiplies the trace only.

    Raises:
        ValueError: shapes that do not agree, no steps, or rho_bar < c_bar.
    """
    _check_shapes(log_rhos, discounts, rewards, values, bootstrap_value)
    if rho_bar < c_bar:
        raise ValueError(f"rho_bar: expected at least c_bar ({c_bar}), came {rho_bar}")
    with torch.no_grad():
        rhos = importance_ratios(log_rhos)
        next_values = torch.cat([values[1:], bootstrap_value.unsqueeze(0)])
        deltas = rhos.clamp(max=rho_bar) * (rewards + discounts * next_values - values)
        traces = discounts * rhos.clamp(max=c_bar) * lambda_

        # The recursion runs on v_t - V(x_t), which is 0 beyond the unroll: v_T = V(x_T).
        error = torch.zeros_like(bootstrap_value)
        errors = []
        for delta, trace in zip(reversed(deltas.unbind()), reversed(traces.unbind()), strict=True):
            error = torch.addcmul(delta, trace, error)
            errors.append(error)
        vs = values + torch.stack(errors[::-1])

        next_vs = torch.cat([vs[1:], bootstrap_value.unsqueeze(0)])
        pg_advantages = rhos.clamp(max=pg_rho_bar) * (rewards + discounts * next_vs - values)
        return VTraceReturns(vs=vs, pg_advantages=pg_advantages)


def _check_shapes(log_rhos: Tensor, discounts: Tensor, rewards: Tensor, values: Tensor, bootstrap_value: Tensor) -> None:
    if values.ndim < 1 or values.shape[0] < 1:
        raise ValueError(f"values: expected [T, ...] with T of at least 1, came {list(values.shape)}")
    for name, tensor in (("log_rhos", log_rhos), ("discounts", discounts), ("rewards", rewards)):
        if tensor.shape != values.shape:
            raise ValueError(f"{name}: expected the shape of values, {list(values.shape)}, came {list(tensor.shape)}")
    if bootstrap_value.shape != values.shape[1:]:
        raise ValueError(f"bootstrap_value: expected {list(values.shape[1:])}, came {list(bootstrap_value.shape)}")
