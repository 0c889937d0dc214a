"""V-trace: value targets and advantages for data that an older policy collected (paper, section 4.1).

docs/primer.md, section 7, derives it.
"""

import functools
import math
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

# exp(20) is 5e8: far above any clip in use, far below what overflows float32, so that an unclipped product of ratios and
# rewards stays finite too.
_MAX_LOG_RHO = 20.0

# The logarithm of the largest product of traces that the scan may form: far from overflow in float32.
_MAX_LOG_PRODUCT = 40.0


def importance_ratios(log_rhos: Tensor) -> Tensor:
    """Returns pi/mu, [...], from its logarithm, clamped at 20 before exp (docs/primer.md, section 7.2)."""
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
    what is learnt (the value of a policy between mu and pi), c_bar only how fast; hence rho_bar >= c_bar. On-policy v is the n-step
    return (docs/primer.md, section 7.1); the clips and the definition as a sum: docs/primer.md, section 7.3.

    A reset row, the transition between two episodes, is given log_rho = -inf: its delta, trace and advantage are then 0, so that
    v = V there, nothing leaks from one episode into the one before, and a truncated episode bootstraps from the value of its
    final observation.

    Where it runs: on the CPU float32 and float64 go through one compiled loop (`impala.vtrace_loop`), if numba is installed.
    Everything else goes through a scan of about log2 T steps in torch, or through T steps where traces above 1 could overflow in
    a product. They differ by rounding. What is NaN or infinite makes what depends on it so too, in each of them.

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
    tensors = (log_rhos, discounts, rewards, values, bootstrap_value)
    compiled = _compiled_loop() if values.is_cpu else None
    if compiled is None or not compiled.suits_the_loop(*tensors):
        return vtrace_in_torch(*tensors, rho_bar=rho_bar, c_bar=c_bar, pg_rho_bar=pg_rho_bar, lambda_=lambda_)
    vs, pg_advantages = compiled.vtrace_loop(
        *tensors, max_log_rho=_MAX_LOG_RHO, rho_bar=rho_bar, c_bar=c_bar, pg_rho_bar=pg_rho_bar, lambda_=lambda_
    )
    return VTraceReturns(vs=vs, pg_advantages=pg_advantages)


def prepare_vtrace(device: torch.device) -> None:
    """Has the first `vtrace` on a device take no longer than others: on the CPU, compiles float32's, which takes a second."""
    one = torch.zeros(1, 1, device=device)
    vtrace(log_rhos=one, discounts=one, rewards=one, values=one, bootstrap_value=one[0])


@functools.cache
def _compiled_loop() -> ModuleType | None:
    """Returns `impala.vtrace_loop`, or None where numba is not installed."""
    try:
        # Late: it loads a compiler, 135 MB that actors and learners on other devices do without.
        from impala import vtrace_loop
    except ImportError:
        return None
    return vtrace_loop


@torch.no_grad()
def vtrace_in_torch(
    log_rhos: Tensor,
    discounts: Tensor,
    rewards: Tensor,
    values: Tensor,
    bootstrap_value: Tensor,
    *,
    rho_bar: float,
    c_bar: float,
    pg_rho_bar: float,
    lambda_: float,
) -> VTraceReturns:
    """Returns what `vtrace` does, unchecked, by operators of torch: on any device, of any dtype.

    The recursion: docs/primer.md, section 7.3; the advantages: docs/primer.md, section 7.5.
    """
    rhos = importance_ratios(log_rhos)
    next_values = torch.cat([values[1:], bootstrap_value.unsqueeze(0)])
    deltas = rhos.clamp(max=rho_bar) * (rewards + discounts * next_values - values)
    traces = discounts * rhos.clamp(max=c_bar) * lambda_

    # The recursion runs on v_t - V(x_t), which is 0 beyond the unroll: v_T = V(x_T).
    largest_trace = min(c_bar, math.exp(_MAX_LOG_RHO)) * lambda_
    overflows = len(values) * math.log(max(1.0, largest_trace)) > _MAX_LOG_PRODUCT
    vs = values + (_step_by_step if overflows else _scan)(deltas, traces)

    next_vs = torch.cat([vs[1:], bootstrap_value.unsqueeze(0)])
    pg_advantages = rhos.clamp(max=pg_rho_bar) * (rewards + discounts * next_vs - values)
    return VTraceReturns(vs=vs, pg_advantages=pg_advantages)


def _scan(deltas: Tensor, traces: Tensor) -> Tensor:
    """Returns e_t = delta_t + trace_t e_{t+1}, [T, ...], with e_T = 0, in ceil(log2 T) steps (Hillis and Steele 1986).

    After the step of span s row t holds the sum over rows t to t + 2s - 1, and beside it, while a later step needs it, the product
    of their traces.
    """
    length, span = len(deltas), 1
    errors = deltas
    while span < length:
        errors = torch.cat([torch.addcmul(errors[:-span], traces[: length - span], errors[span:]), errors[-span:]])
        # A row whose sum reaches the end of the unroll needs no product any more.
        traces = traces[: length - 2 * span] * traces[span : length - span] if 2 * span < length else traces
        span *= 2
    return errors


def _step_by_step(deltas: Tensor, traces: Tensor) -> Tensor:
    """Returns what `_scan` does, row by row: in T steps, but without products of traces, which overflow where no sum does."""
    error = torch.zeros_like(deltas[0])
    errors = []
    for delta, trace in zip(reversed(deltas.unbind()), reversed(traces.unbind()), strict=True):
        error = torch.addcmul(delta, trace, error)
        errors.append(error)
    return torch.stack(errors[::-1])


def _check_shapes(log_rhos: Tensor, discounts: Tensor, rewards: Tensor, values: Tensor, bootstrap_value: Tensor) -> None:
    shape = values.shape
    if not shape or shape[0] < 1:
        raise ValueError(f"values: expected [T, ...] with T of at least 1, came {list(shape)}")
    for name, tensor in (("log_rhos", log_rhos), ("discounts", discounts), ("rewards", rewards)):
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected the shape of values, {list(shape)}, came {list(tensor.shape)}")
    if bootstrap_value.shape != shape[1:]:
        raise ValueError(f"bootstrap_value: expected {list(shape[1:])}, came {list(bootstrap_value.shape)}")
