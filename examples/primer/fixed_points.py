"""What V-trace converges to, and how fast: a tabular problem solved exactly, and by V-trace. docs/primer.md, section 7.4.

python -m examples.primer.fixed_points
"""

from typing import NamedTuple

import numpy as np

DISCOUNT, LENGTH = 0.9, 20
Array = np.ndarray


class Problem(NamedTuple):
    """A tabular problem with both policies: x states, a actions, y next states."""

    transitions: Array  # [x, a, y] probabilities
    rewards: Array  # [x, a]
    mu: Array  # [x, a] the behaviour policy
    pi: Array  # [x, a] the learner policy


def random_problem(seed: int, states: int = 5, actions: int = 3) -> Problem:
    """Returns one in which pi and mu are far apart."""
    random = np.random.default_rng(seed)
    mu, pi = (random.dirichlet(np.ones(actions), size=states) for _ in range(2))
    transitions = random.dirichlet(np.full(states, 0.5), size=(states, actions))
    return Problem(transitions, random.normal(size=(states, actions)), 0.98 * mu + 0.02 / actions, pi)


def ring(states: int = 14) -> Problem:
    """Returns a ring round which mu walks one way and pi the other: there rho_bar below c_bar goes wrong."""
    places = np.arange(states)
    transitions = np.zeros((states, 2, states))
    transitions[places, 0, (places - 1) % states] = transitions[places, 1, (places + 1) % states] = 1.0
    rewards = np.zeros((states, 2))
    rewards[0] = 1.0
    mu = np.tile([0.95, 0.05], (states, 1))
    return Problem(transitions, rewards, mu, mu[:, ::-1])


def policy_value(problem: Problem, policy: Array) -> Array:
    """Returns V, [x], of a policy: the solution of V = r + gamma P V."""
    following = np.einsum("xa,xay->xy", policy, problem.transitions)
    return np.linalg.solve(np.eye(len(policy)) - DISCOUNT * following, (policy * problem.rewards).sum(1))


def policy_between(problem: Problem, rho_bar: float) -> Array:
    """Returns pi_rho_bar, [x, a]: min(rho_bar mu, pi), each row scaled to sum to 1 (docs/primer.md, section 7.4)."""
    least = np.minimum(rho_bar * problem.mu, problem.pi)
    return np.asarray(least / least.sum(1, keepdims=True))


def vtrace_operator(problem: Problem, values: Array, rho_bar: float, c_bar: float, length: int = LENGTH) -> Array:
    """Returns the mean V-trace target, [x], over all unrolls of `length` steps that mu may collect from each state.

    The recursion of `impala.vtrace`, with means in place of samples: e_t = E[delta] + gamma E[c e_{t+1}], and 0 beyond the unroll
    (docs/primer.md, section 7.4).
    """
    ratios = problem.pi / problem.mu
    rho, c = problem.mu * np.minimum(rho_bar, ratios), problem.mu * np.minimum(c_bar, ratios)
    one_step = problem.rewards + DISCOUNT * problem.transitions @ values - values[:, None]  # [x, a]
    deltas = (rho * one_step).sum(1)
    traces = DISCOUNT * np.einsum("xa,xay->xy", c, problem.transitions)
    errors = np.zeros_like(values)
    for _ in range(length):
        errors = deltas + traces @ errors
    return np.asarray(values + errors)


def iterate(problem: Problem, rho_bar: float, c_bar: float, *, tolerance: float = 1e-10, most: int = 100_000) -> tuple[Array, int]:
    """Returns where the operator leads from V = 0, and in how many sweeps no value moved by more than `tolerance`.

    docs/primer.md, section 7.4, on when it leads nowhere.

    Raises:
        ArithmeticError: it leads nowhere.
    """
    values = np.zeros(len(problem.mu))
    for sweep in range(1, most + 1):
        following = vtrace_operator(problem, values, rho_bar, c_bar)
        if np.abs(following).max() > 1e6:
            raise ArithmeticError(f"rho_bar {rho_bar}, c_bar {c_bar}: values beyond 1e6 after {sweep} sweeps")
        if np.abs(following - values).max() <= tolerance:
            return following, sweep
        values = following
    raise ArithmeticError(f"rho_bar {rho_bar}, c_bar {c_bar}: still moving after {most} sweeps")


def main() -> None:
    """Prints fixed points by V-trace and exactly, sweeps by c_bar, and what becomes of rho_bar below c_bar."""
    problem = random_problem(seed=0)
    acted, learns = (policy_value(problem, policy)[0] for policy in (problem.mu, problem.pi))
    print(f"state 0: value of mu {acted:.4f}, of pi {learns:.4f}")
    for rho_bar in (0.01, 0.1, 1.0, 10.0, 100.0):
        exact = policy_value(problem, policy_between(problem, rho_bar))
        got, _ = iterate(problem, rho_bar, min(1.0, rho_bar))
        agree = np.abs(got - exact).max() < 1e-6
        print(f"rho_bar {rho_bar:6}: V-trace {got[0]:.4f}, exactly {exact[0]:.4f}, all states within 1e-6: {agree}")
    for c_bar in (0.0, 0.1, 0.5, 1.0):
        print(f"rho_bar 1, c_bar {c_bar}: {iterate(problem, 1.0, c_bar)[1]} sweeps")
    for c_bar in (0.1, 20.0):
        try:
            print(f"ring, rho_bar 0.1, c_bar {c_bar}: {iterate(ring(), 0.1, c_bar)[1]} sweeps")
        except ArithmeticError as error:
            print(f"ring, {error}")


if __name__ == "__main__":
    main()
