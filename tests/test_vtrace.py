"""V-trace against the paper's sums, by hand, and at the ends of episodes: in the compiled loop and in torch."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from impala import vtrace_loop
from impala.vtrace import VTraceReturns, vtrace

DISCOUNT = 0.9

# What a learner's batches are like, small to large: [T, B].
SIZES = [(20, 32), (80, 32), (100, 256), (1000, 1024)]


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here runs in both."""
    monkeypatch.setattr("impala.vtrace._compiled_loop", lambda: vtrace_loop if request.param == "compiled" else None)
    return str(request.param)


def make_case(random: np.random.Generator, length: int, *batch: int) -> dict[str, Tensor]:
    """Returns arguments of `vtrace` in float64: ratios log-uniform from 1e-3 to 1e3, a tenth of the rows ending an episode, half
    of those by termination and half by a time limit, each followed by its reset row.
    """
    shape = (length, *batch)
    log_rhos = random.uniform(np.log(1e-3), np.log(1e3), size=shape)
    discounts = np.full(shape, random.uniform(0.9, 1.0))
    reset = np.zeros(batch, dtype=np.bool_)
    for t in range(length):
        log_rhos[t] = np.where(reset, -np.inf, log_rhos[t])
        ends = ~reset & (random.uniform(size=batch) < 0.1)
        discounts[t] *= ~(ends & (random.uniform(size=batch) < 0.5))
        reset = ends
    arrays = {
        "log_rhos": log_rhos,
        "discounts": discounts,
        "rewards": random.normal(size=shape),
        "values": random.normal(size=shape),
        "bootstrap_value": random.normal(size=batch),
    }
    return {name: torch.as_tensor(array) for name, array in arrays.items()}


def literal_sum(case: dict[str, Tensor], *, rho_bar: float, c_bar: float, pg_rho_bar: float, lambda_: float) -> VTraceReturns:
    """Returns the paper's eq. (1) as it is written, and the advantage under its eq. (4), one column and one row at a time."""
    length, batch = case["values"].shape
    vs = np.zeros((length, batch))
    advantages = np.zeros((length, batch))
    for b in range(batch):
        ratio = [np.exp(log_rho) for log_rho in case["log_rhos"][:, b].tolist()]
        gamma, reward = case["discounts"][:, b].tolist(), case["rewards"][:, b].tolist()
        value = [*case["values"][:, b].tolist(), float(case["bootstrap_value"][b])]
        rho = [min(rho_bar, one) for one in ratio]
        c = [lambda_ * min(c_bar, one) for one in ratio]
        for s in range(length):
            vs[s, b] = value[s]
            product = 1.0  # of gamma_i c_i, i from s to t-1
            for t in range(s, length):
                vs[s, b] += product * rho[t] * (reward[t] + gamma[t] * value[t + 1] - value[t])
                product *= gamma[t] * c[t]
        for s in range(length):
            next_target = vs[s + 1, b] if s + 1 < length else value[length]
            advantages[s, b] = min(pg_rho_bar, ratio[s]) * (reward[s] + gamma[s] * next_target - value[s])
    return VTraceReturns(vs=torch.as_tensor(vs), pg_advantages=torch.as_tensor(advantages))


def row_by_row(case: dict[str, Tensor], *, rho_bar: float = 1.0, c_bar: float = 1.0) -> VTraceReturns:
    """Returns targets and advantages by the recursion, in numpy and float64: for sizes at which the sum itself takes too long."""
    log_rhos, discounts, rewards, values, last = (case[name].double().numpy() for name in case)
    ratios = np.exp(np.minimum(log_rhos, 20.0))
    next_values = np.concatenate([values[1:], last[None]])
    deltas = np.minimum(rho_bar, ratios) * (rewards + discounts * next_values - values)
    vs, error = np.empty_like(values), np.zeros_like(last)
    for t in reversed(range(len(values))):
        error = deltas[t] + discounts[t] * np.minimum(c_bar, ratios[t]) * error
        vs[t] = values[t] + error
    advantages = np.minimum(1.0, ratios) * (rewards + discounts * np.concatenate([vs[1:], last[None]]) - values)
    return VTraceReturns(vs=torch.as_tensor(vs), pg_advantages=torch.as_tensor(advantages))


def column(**replaced: list[float] | float) -> dict[str, Any]:
    """Returns arguments for one trajectory of three steps, on-policy unless replaced."""
    arguments: dict[str, list[float] | float] = {
        "log_rhos": [0.0, 0.0, 0.0],
        "discounts": [DISCOUNT] * 3,
        "rewards": [1.0, 2.0, 3.0],
        "values": [0.5, -1.0, 4.0],
        "bootstrap_value": 10.0,
    }
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in {**arguments, **replaced}.items()}


def test_equals_the_literal_sum() -> None:
    # Clips up to 4: a product of a hundred ratios of up to 1e3 is far beyond what an absolute 1e-10 can be asked of.
    random = np.random.default_rng(1)
    worst = 0.0
    for index in range(200):
        case = make_case(random, int(random.integers(1, 101)), int(random.integers(1, 17)))
        settings = {"rho_bar": 1.0, "c_bar": 1.0, "pg_rho_bar": 1.0, "lambda_": 1.0}
        if index % 4:
            c_bar, rho_bar = sorted(random.uniform(0.0, 4.0, size=2).tolist())
            settings = {"rho_bar": rho_bar, "c_bar": c_bar, "pg_rho_bar": random.uniform(0.0, 4.0), "lambda_": random.uniform()}
        got, expected = vtrace(**case, **(settings if index % 4 else {})), literal_sum(case, **settings)
        worst = max(
            worst,
            float((got.vs - expected.vs).abs().max()),
            float((got.pg_advantages - expected.pg_advantages).abs().max()),
        )
    assert worst <= 1e-10


def test_on_policy_the_target_is_the_n_step_return() -> None:
    random = np.random.default_rng(2)
    case = {**make_case(random, 30, 4), "log_rhos": torch.zeros(30, 4, dtype=torch.float64)}
    expected = case["bootstrap_value"].clone()
    returns = []
    for t in reversed(range(30)):
        expected = case["rewards"][t] + case["discounts"][t] * expected
        returns.append(expected)
    torch.testing.assert_close(vtrace(**case).vs, torch.stack(returns[::-1]), rtol=0.0, atol=1e-12)


def test_the_bootstrap_value_counts_once() -> None:
    # A recursion seeded with V_T instead of 0 gives 3 + 0.9 * 10 + 0.9 * 10.
    case = {name: tensor[-1:] if tensor.ndim else tensor for name, tensor in column().items()}
    assert vtrace(**case).vs.tolist() == pytest.approx([3.0 + DISCOUNT * 10.0])


def test_the_advantage_uses_the_next_target_and_not_the_next_value() -> None:
    case = column(rewards=[0.0, 0.0, 100.0], values=[0.0, 0.0, 0.0], bootstrap_value=0.0)
    # Every V(x_{t+1}) is 0: only v_{t+1} knows of the reward.
    assert vtrace(**case).pg_advantages.tolist() == pytest.approx([100.0 * DISCOUNT**2, 100.0 * DISCOUNT, 100.0])


def test_the_last_advantage_uses_the_bootstrap_value() -> None:
    assert float(vtrace(**column()).pg_advantages[-1]) == pytest.approx(3.0 + DISCOUNT * 10.0 - 4.0)


def test_the_policy_gradient_ratio_has_its_own_clip() -> None:
    case = column(log_rhos=np.log([0.25, 2.0, 8.0]).tolist())
    one, four = vtrace(**case), vtrace(**case, pg_rho_bar=4.0)
    assert four.vs.tolist() == one.vs.tolist()
    assert (four.pg_advantages / one.pg_advantages).tolist() == pytest.approx([1.0, 2.0, 4.0])


def test_the_trace_is_clipped_apart_from_rho() -> None:
    case = column(log_rhos=[np.log(3.0)] * 3, rewards=[0.0, 1.0, 0.0], values=[0.0, 0.0, 0.0], bootstrap_value=0.0)
    # v_1 = 2 * 1, clipped by rho_bar; v_0 = gamma * 0.5 * v_1, clipped by c_bar.
    assert vtrace(**case, rho_bar=2.0, c_bar=0.5).vs.tolist() == pytest.approx([DISCOUNT * 0.5 * 2.0, 2.0, 0.0])


def test_lambda_multiplies_the_trace_only() -> None:
    case = column(rewards=[0.0, 0.0, 1.0], values=[0.0, 0.0, 0.0], bootstrap_value=0.0)
    halved = vtrace(**case, lambda_=0.5)
    assert halved.vs.tolist() == pytest.approx([(0.5 * DISCOUNT) ** 2, 0.5 * DISCOUNT, 1.0])
    assert halved.pg_advantages.tolist() == pytest.approx([0.5 * DISCOUNT**2, DISCOUNT, 1.0])


def test_lambda_of_zero_leaves_the_one_step_target() -> None:
    expected = [1.0 + DISCOUNT * -1.0, 2.0 + DISCOUNT * 4.0, 3.0 + DISCOUNT * 10.0]
    assert vtrace(**column(), lambda_=0.0).vs.tolist() == pytest.approx(expected)


def test_no_gradient_flows_through_the_outputs() -> None:
    case = {name: tensor.requires_grad_() for name, tensor in column().items()}
    returns = vtrace(**case)
    assert not returns.vs.requires_grad
    assert not returns.pg_advantages.requires_grad


def test_the_arguments_are_left_as_they_were() -> None:
    case = make_case(np.random.default_rng(3), 20, 3)
    before = {name: tensor.clone() for name, tensor in case.items()}
    vtrace(**case)
    assert all(torch.equal(case[name], before[name]) for name in case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_outputs_have_the_dtype_of_the_values(dtype: torch.dtype) -> None:
    returns = vtrace(**{name: tensor.to(dtype) for name, tensor in make_case(np.random.default_rng(4), 5, 2).items()})
    assert (returns.vs.dtype, returns.pg_advantages.dtype) == (dtype, dtype)


@pytest.mark.parametrize("batch", [(), (1,), (6,), (2, 3), (3, 1, 2), (0,)], ids=str)
def test_any_trailing_shape_is_a_batch_of_independent_columns(batch: tuple[int, ...]) -> None:
    case = make_case(np.random.default_rng(5), 12, *batch)
    returns = vtrace(**case)
    assert returns.vs.shape == returns.pg_advantages.shape == (12, *batch)
    for index in np.ndindex(*batch):
        alone = vtrace(**{name: tensor[(..., *index)] for name, tensor in case.items()})
        assert torch.equal(returns.vs[(..., *index)], alone.vs)
        assert torch.equal(returns.pg_advantages[(..., *index)], alone.pg_advantages)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_reset_row_has_its_own_value_as_target_and_no_advantage(dtype: torch.dtype) -> None:
    returns = vtrace(**{name: tensor.to(dtype) for name, tensor in column(log_rhos=[0.0, -np.inf, 0.0]).items()})
    assert float(returns.vs[1]) == -1.0
    assert float(returns.pg_advantages[1]) == 0.0


def test_nothing_leaks_over_a_reset_row_into_the_episode_before() -> None:
    random = np.random.default_rng(6)
    case, other = make_case(random, 20, 8), make_case(random, 20, 8)
    case["log_rhos"][12] = -torch.inf
    later = {name: torch.cat([case[name][:13], other[name][13:]]) for name in ("log_rhos", "discounts", "rewards", "values")}
    changed = {**later, "bootstrap_value": other["bootstrap_value"]}
    # The reset row's own reward and discount are nobody's either.
    changed["rewards"][12], changed["discounts"][12] = 1e6, 0.5
    returns, after = vtrace(**case), vtrace(**changed)
    assert torch.equal(after.vs[:13], returns.vs[:13])
    assert torch.equal(after.pg_advantages[:13], returns.pg_advantages[:13])
    assert not torch.equal(after.vs[13:], returns.vs[13:])


def test_a_truncated_episode_bootstraps_from_the_value_of_its_final_observation() -> None:
    # Row 0 ends the episode by a time limit: x_1 is its final observation, worth -1; row 1 is the reset.
    returns = vtrace(**column(log_rhos=[0.0, -np.inf, 0.0]))
    assert float(returns.vs[0]) == pytest.approx(1.0 + DISCOUNT * -1.0)
    assert float(returns.pg_advantages[0]) == pytest.approx(1.0 + DISCOUNT * -1.0 - 0.5)


def test_a_terminated_episode_is_worth_nothing_from_its_final_observation_on() -> None:
    returns = vtrace(**column(log_rhos=[0.0, -np.inf, 0.0], discounts=[0.0, DISCOUNT, DISCOUNT]))
    assert float(returns.vs[0]) == 1.0
    assert float(returns.pg_advantages[0]) == 1.0 - 0.5


def test_termination_alone_cuts_the_trace() -> None:
    # A discount of 0 without a reset row behind it, as where a lost life ends the return but not the game.
    returns = vtrace(**column(discounts=[DISCOUNT, 0.0, DISCOUNT]))
    assert returns.vs.tolist() == pytest.approx([1.0 + DISCOUNT * 2.0, 2.0, 3.0 + DISCOUNT * 10.0])


@pytest.mark.parametrize("clip", [1.0, float("inf")], ids=["clipped", "unclipped"])
def test_extreme_log_ratios_stay_finite(clip: float) -> None:
    log_rhos = torch.tensor([1e4, -1e4, 89.0, -104.0, 3e38, -torch.inf, torch.inf, 0.0])
    returns = vtrace(
        log_rhos=log_rhos,
        discounts=torch.full((8,), DISCOUNT),
        rewards=torch.full((8,), 1e3),
        values=torch.full((8,), -1e3),
        bootstrap_value=torch.tensor(1e3),
        rho_bar=clip,
        pg_rho_bar=clip,
    )
    assert bool(returns.vs.isfinite().all())
    assert bool(returns.pg_advantages.isfinite().all())


@pytest.mark.parametrize("name", ["log_rhos", "discounts", "rewards", "bootstrap_value"])
@pytest.mark.parametrize("change", ["trailing one", "one more", "one axis less"])
def test_a_wrong_shape_raises_and_names_the_argument(name: str, change: str) -> None:
    case = make_case(np.random.default_rng(7), 5, 3)
    tensor = case[name]
    changes = {"trailing one": tensor.unsqueeze(-1), "one more": torch.cat([tensor, tensor[:1]]), "one axis less": tensor[0]}
    case[name] = changes[change]
    with pytest.raises(ValueError, match=f"^{name}: expected .*, came "):
        vtrace(**case)


@pytest.mark.parametrize("shape", [(0, 3), ()], ids=str)
def test_an_unroll_without_steps_raises(shape: tuple[int, ...]) -> None:
    empty = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"^values: expected \[T, \.\.\.\]"):
        vtrace(log_rhos=empty, discounts=empty, rewards=empty, values=empty, bootstrap_value=torch.zeros(shape[1:]))


def test_a_rho_bar_below_c_bar_raises() -> None:
    with pytest.raises(ValueError, match=r"^rho_bar: expected at least c_bar \(1\.0\), came 0\.9$"):
        vtrace(**column(), rho_bar=0.9, c_bar=1.0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_float32_on_any_device_is_near_the_float64_sum(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    case = make_case(np.random.default_rng(8), 100, 16)
    expected = literal_sum(case, rho_bar=1.0, c_bar=1.0, pg_rho_bar=1.0, lambda_=1.0)
    got = vtrace(**{name: tensor.to(device, torch.float32) for name, tensor in case.items()})
    assert got.vs.device.type == got.pg_advantages.device.type == device
    torch.testing.assert_close(got.vs.cpu().double(), expected.vs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.pg_advantages.cpu().double(), expected.pg_advantages, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float32_is_within_1e_5_of_the_recursion_in_float64_at_every_size(size: tuple[int, int]) -> None:
    case = {name: tensor.float() for name, tensor in make_case(np.random.default_rng(9), *size).items()}
    got, expected = vtrace(**case), row_by_row(case)
    torch.testing.assert_close(got.vs.double(), expected.vs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.pg_advantages.double(), expected.pg_advantages, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("length", "bar"), [(20, 3.0), (200, 3.0), (12, float("inf"))], ids=str)
def test_traces_above_one_are_as_exact(length: int, bar: float) -> None:
    case = make_case(np.random.default_rng(10), length, 32)
    # Half the ratios above 1, a twentieth above 3: what grows does not overflow in float32.
    case["log_rhos"] = case["log_rhos"].clamp(max=1.5)
    case = {name: tensor.float() for name, tensor in case.items()}
    got, expected = vtrace(**case, rho_bar=bar, c_bar=bar), row_by_row(case, rho_bar=bar, c_bar=bar)
    # Relative to the largest term: sums of such terms cancel.
    scale = float(expected.vs.abs().max())
    torch.testing.assert_close(got.vs.double(), expected.vs, rtol=1e-5, atol=1e-6 * scale)
    torch.testing.assert_close(got.pg_advantages.double(), expected.pg_advantages, rtol=1e-5, atol=1e-6 * scale)


def test_a_product_of_traces_that_overflows_stays_away_from_what_is_zero() -> None:
    # Ratios of e^20 over twenty rows whose errors are all 0: their product is infinite in float32, and infinite times 0 is NaN.
    case = {name: torch.zeros(20, 2) for name in ("log_rhos", "discounts", "rewards", "values")}
    case["log_rhos"] += 30.0
    case["discounts"] += 1.0
    returns = vtrace(**case, bootstrap_value=torch.zeros(2), rho_bar=torch.inf, c_bar=torch.inf)
    assert returns.vs.tolist() == returns.pg_advantages.tolist() == [[0.0, 0.0]] * 20


@pytest.mark.parametrize("log_rho", np.linspace(-86.0, 20.0, 23).tolist())
def test_ratios_are_exact_over_the_whole_range_of_float32(log_rho: float) -> None:
    # Unclipped and with nothing behind them, advantages are the ratios.
    log_rhos = torch.linspace(log_rho - 1.0, log_rho, 100).unsqueeze(0)
    zeros, ones = torch.zeros(1, 100), torch.ones(1, 100)
    returns = vtrace(log_rhos=log_rhos, discounts=zeros, rewards=ones, values=zeros, bootstrap_value=zeros[0], pg_rho_bar=torch.inf)
    torch.testing.assert_close(returns.pg_advantages.double(), log_rhos.double().exp(), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("name", ["log_rhos", "discounts", "rewards", "values"])
def test_what_is_not_finite_comes_out_where_the_recursion_says(name: str, value: float) -> None:
    case = {name: tensor.float() for name, tensor in make_case(np.random.default_rng(11), 10, 150).items()}
    # In all columns alike: some are computed sixteen at once, the rest one by one.
    case[name][5] = value
    with np.errstate(invalid="ignore"):
        expected = row_by_row(case)
    returns = vtrace(**case)
    assert torch.equal(returns.vs.isfinite(), expected.vs.isfinite())
    assert torch.equal(returns.pg_advantages.isfinite(), expected.pg_advantages.isfinite())


@pytest.mark.parametrize("name", ["log_rhos", "discounts", "rewards", "values", "bootstrap_value"])
def test_an_argument_may_lie_in_memory_as_it_likes(name: str) -> None:
    case = {name: tensor.float() for name, tensor in make_case(np.random.default_rng(12), 7, 5).items()}
    expected = vtrace(**case)
    scattered = torch.zeros([2 * length for length in case[name].shape])[(slice(None, None, 2),) * case[name].ndim]
    case[name] = scattered.copy_(case[name])
    assert not case[name].is_contiguous()
    assert torch.equal(vtrace(**case).vs, expected.vs)
    assert torch.equal(vtrace(**case).pg_advantages, expected.pg_advantages)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["log_rhos", "discounts", "rewards", "bootstrap_value"])
def test_dtypes_may_differ(name: str, dtype: torch.dtype) -> None:
    case = {name: tensor.float() for name, tensor in make_case(np.random.default_rng(13), 7, 5).items()}
    expected = vtrace(**{**case, name: case[name].to(dtype).float()})
    torch.testing.assert_close(vtrace(**{**case, name: case[name].to(dtype)}).vs.float(), expected.vs, rtol=1e-2, atol=1e-2)
