"""V-trace as one compiled loop: what `impala.vtrace` runs on the CPU, where numba is installed.

At the sizes of one learner a call of any operator of torch costs more than its arithmetic, and at large ones memory is what limits.
So everything is one pass, and each number is read once and written once.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}


def suits_the_loop(*tensors: Tensor) -> bool:
    """Returns whether `vtrace_loop` takes these tensors: all on the CPU, all float32 or all float64."""
    dtype = tensors[0].dtype
    return dtype in _DTYPES and all(tensor.is_cpu and tensor.dtype is dtype for tensor in tensors)


def vtrace_loop(
    log_rhos: Tensor,
    discounts: Tensor,
    rewards: Tensor,
    values: Tensor,
    bootstrap_value: Tensor,
    *,
    max_log_rho: float,
    rho_bar: float,
    c_bar: float,
    pg_rho_bar: float,
    lambda_: float,
) -> tuple[Tensor, Tensor]:
    """Returns v_t and A_t of `impala.vtrace.vtrace`, [T, ...] each, detached and in memory of their own.

    The recursion: docs/primer.md, section 7.3. Other threads run meanwhile. The first call for a dtype compiles, which takes a
    second.

    Args:
        log_rhos, discounts, rewards, values: [T, ...], of shapes that agree and such that `suits_the_loop`.
        bootstrap_value: [...], likewise.
        max_log_rho: where log_rhos are clamped.
        rho_bar, c_bar, pg_rho_bar, lambda_: see `vtrace`.
    """
    # Contiguous, [T, ...] is [T, B] whatever its axes. The names keep alive what the addresses are of.
    log_rhos, discounts, rewards = log_rhos.contiguous(), discounts.contiguous(), rewards.contiguous()
    values, bootstrap_value = values.contiguous(), bootstrap_value.contiguous()
    vs, pg_advantages = torch.empty_like(values), torch.empty_like(values)
    length, columns = values.shape[0], bootstrap_value.numel()
    # What the loop takes on trust, and would write beyond.
    assert log_rhos.numel() == discounts.numel() == rewards.numel() == values.numel() == length * columns
    # Addresses: to make seven arrays of seven tensors takes longer than the loop does at the sizes of one learner.
    _compiled(values.dtype)(
        length,
        columns,
        log_rhos.data_ptr(),
        discounts.data_ptr(),
        rewards.data_ptr(),
        values.data_ptr(),
        bootstrap_value.data_ptr(),
        vs.data_ptr(),
        pg_advantages.data_ptr(),
        max_log_rho,
        rho_bar,
        c_bar,
        pg_rho_bar,
        lambda_,
    )
    return vs, pg_advantages


# exp in float32 (Cephes, expf.c): 2^n times a polynomial in what is left when n log 2 is taken off, in two parts. numba's own is a
# call for each number; this is two dozen instructions for sixteen. The constants have a dtype, or the arithmetic would be float64.
_LOWEST, _ZERO, _ONE, _LOG2_E = np.float32(-87.0), np.float32(0.0), np.float32(1.0), np.float32(1.44269504088896341)
_LOG_2_HIGH, _LOG_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_C2, _C3, _C4 = np.float32(5.0000001201e-1), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
_C5, _C6, _C7 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)
# Added and taken off again, it rounds to an integer.
_ROUNDS = np.float32(1.5 * 2**23)
_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)


def _exp_float32(x: Any) -> Any:
    """Returns e^x, to 1e-7 relative for x from -87 to 88; 0 below, where float32 loses its precision; NaN for NaN."""
    above = x if x > _LOWEST else _LOWEST
    n = (above * _LOG2_E + _ROUNDS) - _ROUNDS
    r = above - n * _LOG_2_HIGH - n * _LOG_2_LOW
    polynomial = (((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2) * (r * r) + r + _ONE
    power = np.int32((np.int32(n) + _BIAS) << _MANTISSA_BITS).view(np.float32)
    normal = polynomial * power if x >= _LOWEST else _ZERO
    return x if x != x else normal  # noqa: PLR0124 - NaN alone differs from itself


@functools.cache
def _compiled(dtype: torch.dtype) -> Callable[..., None]:
    """Returns the loop for addresses of C-contiguous [T, B] and [B] of a dtype.

    Not kept on disk: to read it back takes nearly half as long, and the folder may be read-only. No `fastmath`, which
    would assume that nothing is infinite or NaN. "numpy" stands for no checks that raise.
    """
    element = _DTYPES[dtype]
    exp = numba.njit(inline="always", error_model="numpy")(_exp_float32) if dtype is torch.float32 else math.exp

    def row(  # noqa: PLR0917 - a compiled function takes no keywords
        log_rhos: np.ndarray,
        discounts: np.ndarray,
        rewards: np.ndarray,
        values: np.ndarray,
        next_values: np.ndarray,
        next_vs: np.ndarray,
        errors: np.ndarray,
        vs: np.ndarray,
        pg_advantages: np.ndarray,
        max_log_rho: float,
        rho_bar: float,
        c_bar: float,
        pg_rho_bar: float,
        lambda_: float,
    ) -> None:
        """Computes one row, [B], from the one behind it; `errors` holds v - V of that one before and of this one after."""
        for b in range(log_rhos.size):
            # In this form, and not as `min`, a NaN stays: it is above nothing.
            ratio = exp(max_log_rho if log_rhos[b] > max_log_rho else log_rhos[b])
            rho = rho_bar if ratio > rho_bar else ratio
            c = c_bar if ratio > c_bar else ratio
            pg_rho = pg_rho_bar if ratio > pg_rho_bar else ratio
            error = rho * (rewards[b] + discounts[b] * next_values[b] - values[b]) + discounts[b] * c * lambda_ * errors[b]
            pg_advantages[b] = pg_rho * (rewards[b] + discounts[b] * next_vs[b] - values[b])
            errors[b] = error
            vs[b] = values[b] + error

    # A function apart from the loop over rows: with its arrays as arguments, the compiler makes vector instructions of it, and
    # within that loop it does not (three times as slow at 256 columns).
    compiled_row = numba.njit(error_model="numpy")(row)

    def rows(  # noqa: PLR0917 - as above
        length: int,
        columns: int,
        log_rhos_at: int,
        discounts_at: int,
        rewards_at: int,
        values_at: int,
        bootstrap_value_at: int,
        vs_at: int,
        pg_advantages_at: int,
        max_log_rho: float,
        rho_bar: float,
        c_bar: float,
        pg_rho_bar: float,
        lambda_: float,
    ) -> None:
        """Computes all rows, from the last."""
        shape = (length, columns)
        log_rhos = numba.carray(log_rhos_at, shape, element)
        discounts = numba.carray(discounts_at, shape, element)
        rewards = numba.carray(rewards_at, shape, element)
        values = numba.carray(values_at, shape, element)
        vs = numba.carray(vs_at, shape, element)
        pg_advantages = numba.carray(pg_advantages_at, shape, element)
        # v_T = V(x_T): beyond the unroll v - V is 0.
        next_values = next_vs = numba.carray(bootstrap_value_at, columns, element)
        errors = np.zeros(columns, element)
        for t in range(length - 1, -1, -1):
            compiled_row(
                log_rhos[t],
                discounts[t],
                rewards[t],
                values[t],
                next_values,
                next_vs,
                errors,
                vs[t],
                pg_advantages[t],
                max_log_rho,
                rho_bar,
                c_bar,
                pg_rho_bar,
                lambda_,
            )
            next_values, next_vs = values[t], vs[t]

    count, address, scalar = numba.types.intp, numba.types.voidptr, numba.from_dtype(np.dtype(element))
    signature = numba.void(*[count] * 2, *[address] * 7, *[scalar] * 5)
    function: Callable[..., None] = numba.cfunc(signature, error_model="numpy")(rows).ctypes
    return function
