"""The toys of docs/primer.md: their numbers are exact ones, and the project's own."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from examples.primer import fixed_points, timeline, two_states
from impala.vtrace import importance_ratios, vtrace

RHO_BARS = [0.01, 0.1, 0.5, 1.0, 2.0, 10.0, 100.0]
ONE = Fraction(1)


def test_actors_begin_with_the_newest_weights_and_keep_them_for_a_whole_unroll() -> None:
    spans = timeline.simulate()
    published = {span.end: version + 1 for version, span in enumerate(span for span in spans if span.doing == "train")}
    for span in spans:
        if span.doing == "act":
            assert span.version == max([0, *(version for tick, version in published.items() if tick <= span.start)])


def test_the_queue_keeps_the_quick_actor_two_versions_behind_and_the_slow_one_is_eleven_behind() -> None:
    trained = [span for span in timeline.simulate() if span.doing == "train"]
    lags = [version - span.version for version, span in enumerate(trained)]
    assert lags[2:11] == [2] * 9
    assert lags[11] == 11
    assert [span.end - span.start for span in trained] == [timeline.UPDATE] * len(trained)


def test_the_slow_actor_goes_from_version_0_to_version_10_in_one_step() -> None:
    slow = [(span.doing, span.version) for span in timeline.simulate() if span.who == "slow"]
    assert slow == [("act", 0), ("wait", 0), ("act", 10)]


def test_the_two_states_are_worth_what_the_text_says() -> None:
    assert two_states.value_of(two_states.MU) == (1, 1)
    assert two_states.value_of(two_states.PI) == (Fraction(5, 2), 3)
    assert two_states.value_of(two_states.between(ONE)) == (Fraction(5, 3), 2)
    assert two_states.between(Fraction(3)) == two_states.PI


def test_sweeps_over_the_two_states_arrive_at_the_policy_between() -> None:
    values = two_states.value_of(two_states.MU)
    for _ in range(60):
        values = two_states.expected(values, ONE)
    assert [float(value) for value in values] == pytest.approx([5 / 3, 2.0], abs=1e-12)


@pytest.mark.parametrize("actions", [("stop",), ("go", "cash"), ("go", "fail")])
@pytest.mark.parametrize("bar", [Fraction(1, 2), ONE, Fraction(2)])
def test_the_targets_by_hand_are_those_of_the_project_s_v_trace(actions: tuple[str, ...], bar: Fraction) -> None:
    pairs = list(zip("AB", actions, strict=False))
    values = two_states.Values(A=Fraction(1, 3), B=Fraction(2))
    returns = vtrace(
        log_rhos=torch.tensor([float(two_states.PI[pair] / two_states.MU[pair]) for pair in pairs]).double().log(),
        discounts=torch.tensor([1.0] * (len(pairs) - 1) + [0.0]).double(),
        rewards=torch.tensor([float(two_states.REWARDS[pair]) for pair in pairs]).double(),
        values=torch.tensor([float(value) for value in values[: len(pairs)]]).double(),
        bootstrap_value=torch.tensor(7.0).double(),
        rho_bar=float(bar),
        c_bar=float(bar),
    )
    assert returns.vs.tolist() == pytest.approx([float(v) for v in two_states.targets(actions, values, bar)], abs=1e-6)


@pytest.mark.parametrize(("state", "mean"), [("A", 0.25), ("B", 3.0)])
def test_reweighting_by_the_project_s_ratios_gives_the_mean_under_pi(state: str, mean: float) -> None:
    pairs = [pair for pair in two_states.REWARDS if pair[0] == state]
    mu, pi = (torch.tensor([float(policy[pair]) for pair in pairs]).double() for policy in (two_states.MU, two_states.PI))
    rewards = torch.tensor([float(two_states.REWARDS[pair]) for pair in pairs]).double()
    assert float((mu * importance_ratios(pi.log() - mu.log()) * rewards).sum()) == pytest.approx(mean)


def test_the_second_moment_of_a_product_of_ratios_is_a_power() -> None:
    ratios = {pair[1]: two_states.PI[pair] / two_states.MU[pair] for pair in two_states.REWARDS if pair[0] == "B"}
    mean = Fraction()
    for actions in itertools.product(ratios, repeat=3):
        probability = square = ONE
        for action in actions:
            probability *= two_states.MU["B", action]
            square *= ratios[action] ** 2
        mean += probability * square
    assert mean == two_states.second_moment("B") ** 3 == Fraction(7, 3) ** 3


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rho_bar", RHO_BARS)
def test_v_trace_arrives_at_the_exact_value_of_the_policy_between(seed: int, rho_bar: float) -> None:
    problem = fixed_points.random_problem(seed)
    exact = fixed_points.policy_value(problem, fixed_points.policy_between(problem, rho_bar))
    found, _ = fixed_points.iterate(problem, rho_bar, min(1.0, rho_bar))
    np.testing.assert_allclose(found, exact, rtol=0.0, atol=1e-6)


def test_the_value_of_a_policy_is_what_its_returns_add_up_to() -> None:
    problem = fixed_points.random_problem(seed=3)
    place, total = np.eye(len(problem.pi)), np.zeros(len(problem.pi))
    for step in range(400):
        total += fixed_points.DISCOUNT**step * place @ (problem.pi * problem.rewards).sum(1)
        place = place @ np.einsum("xa,xay->xy", problem.pi, problem.transitions)
    np.testing.assert_allclose(fixed_points.policy_value(problem, problem.pi), total, atol=1e-10)


def test_the_ends_of_rho_bar_are_the_values_of_both_policies() -> None:
    problem = fixed_points.random_problem(seed=0)
    for rho_bar, policy in ((1e-6, problem.mu), (1e6, problem.pi)):
        between = fixed_points.policy_value(problem, fixed_points.policy_between(problem, rho_bar))
        np.testing.assert_allclose(between, fixed_points.policy_value(problem, policy), atol=1e-4)
    assert np.abs(fixed_points.policy_value(problem, problem.mu) - fixed_points.policy_value(problem, problem.pi)).min() > 0.1


def test_c_bar_decides_how_fast_and_not_what() -> None:
    problem = fixed_points.random_problem(seed=0)
    runs = [fixed_points.iterate(problem, 1.0, c_bar) for c_bar in (0.0, 0.5, 1.0)]
    for values, _ in runs[1:]:
        np.testing.assert_allclose(values, runs[0][0], atol=1e-7)
    assert runs[0][1] > runs[1][1] > runs[2][1]


def test_with_c_bar_above_rho_bar_values_run_away() -> None:
    ring = fixed_points.ring()
    with pytest.raises(ArithmeticError, match="beyond 1e6"):
        fixed_points.iterate(ring, 0.1, 20.0)
    values, _ = fixed_points.iterate(ring, 0.1, 0.1)
    np.testing.assert_allclose(values, fixed_points.policy_value(ring, fixed_points.policy_between(ring, 0.1)), atol=1e-6)


@pytest.mark.parametrize(("rho_bar", "c_bar"), [(1.0, 1.0), (2.0, 0.5), (20.0, 20.0)])
def test_the_operator_is_the_mean_of_the_project_s_v_trace_over_every_unroll(rho_bar: float, c_bar: float) -> None:
    problem, length = fixed_points.random_problem(seed=4, states=2, actions=2), 3
    values = np.array([0.7, -1.3])
    ratios = problem.pi / problem.mu
    for start in range(2):
        weights, unrolls = [], []
        for steps in itertools.product(itertools.product(range(2), range(2)), repeat=length):
            places, weight = [start], 1.0
            for action, following in steps:
                weight *= problem.mu[places[-1], action] * problem.transitions[places[-1], action, following]
                places.append(following)
            weights.append(weight)
            chosen = (places[:-1], [action for action, _ in steps])
            unrolls.append((np.log(ratios[chosen]), problem.rewards[chosen], values[places[:-1]], values[places[-1]]))
        log_rhos, rewards, at, last = (torch.tensor(np.stack(part, axis=-1)) for part in zip(*unrolls, strict=True))
        returns = vtrace(
            log_rhos=log_rhos,
            discounts=torch.full_like(rewards, fixed_points.DISCOUNT),
            rewards=rewards,
            values=at,
            bootstrap_value=last,
            rho_bar=rho_bar,
            c_bar=c_bar,
        )
        mean = float(returns.vs[0].numpy() @ np.array(weights))
        expected = fixed_points.vtrace_operator(problem, values, rho_bar, c_bar, length)
        assert mean == pytest.approx(expected[start], abs=1e-12)
        assert sum(weights) == pytest.approx(1.0)
