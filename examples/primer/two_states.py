"""Two states, by hand and in fractions: what lag does to a value, and what V-trace makes of it. docs/primer.md, section 6.1.

    python -m examples.primer.two_states

In A one may stop, for a reward of 1, or go on to B for nothing. In B one may cash, for 4, or fail, for 0. Either ends the episode.
"""

from fractions import Fraction
from typing import NamedTuple

REWARDS = {("A", "stop"): 1, ("A", "go"): 0, ("B", "cash"): 4, ("B", "fail"): 0}
NEXT = {("A", "go"): "B"}  # all else ends the episode; the discount is 1
Policy = dict[tuple[str, str], Fraction]
MU: Policy = dict(zip(REWARDS, map(Fraction, ("1/2", "1/2", "1/4", "3/4")), strict=True))  # acted
PI: Policy = dict(zip(REWARDS, map(Fraction, ("1/4", "3/4", "3/4", "1/4")), strict=True))  # learns


class Values(NamedTuple):
    """V(A) and V(B)."""

    A: Fraction
    B: Fraction


def value_of(policy: Policy) -> Values:
    """Returns what following the policy earns, from its end to its start."""
    b = sum((policy["B", action] * REWARDS["B", action] for action in ("cash", "fail")), Fraction())
    return Values(A=policy["A", "stop"] * 1 + policy["A", "go"] * b, B=b)


def second_moment(state: str) -> Fraction:
    """Returns the mean, under mu, of the square of pi/mu in a state; its n-th power for n steps (docs/primer.md, section 7.2)."""
    return sum((PI[pair] ** 2 / MU[pair] for pair in REWARDS if pair[0] == state), Fraction())


def between(rho_bar: Fraction) -> Policy:
    """Returns pi_rho_bar, the policy between mu and pi: min(rho_bar mu, pi), scaled (docs/primer.md, section 7.4)."""
    least = {pair: min(rho_bar * MU[pair], PI[pair]) for pair in REWARDS}
    return {pair: share / sum(least[other] for other in REWARDS if other[0] == pair[0]) for pair, share in least.items()}


def targets(actions: tuple[str, ...], values: Values, bar: Fraction) -> list[Fraction]:
    """Returns v of each state of one episode, rho_bar and c_bar both `bar`: the recursion, backwards from the end."""
    pairs = list(zip("AB", actions, strict=False))
    error, following, vs = Fraction(), Fraction(), list[Fraction]()
    for pair in reversed(pairs):
        weight = min(bar, PI[pair] / MU[pair])
        value = getattr(values, pair[0])
        error = weight * (REWARDS[pair] + following - value) + weight * error
        following = value
        vs.append(value + error)
    return vs[::-1]


def expected(values: Values, bar: Fraction) -> Values:
    """Returns the mean of the targets of A and B over all that mu may do from each."""
    in_b = {action: targets(("go", action), values, bar)[1] for action in ("cash", "fail")}
    from_a = MU["A", "stop"] * targets(("stop",), values, bar)[0]
    for action in ("cash", "fail"):
        from_a += MU["A", "go"] * MU["B", action] * targets(("go", action), values, bar)[0]
    return Values(A=from_a, B=sum((MU["B", action] * v for action, v in in_b.items()), Fraction()))


def main() -> None:
    """Prints the numbers of the primer's section 6.1."""
    print("value of mu:", *value_of(MU), "  of pi:", *value_of(PI))
    for pair in REWARDS:
        print(f"{pair[0]} {pair[1]:4}  mu {MU[pair]!s:4} pi {PI[pair]!s:4} ratio {PI[pair] / MU[pair]!s}")
    one, values = Fraction(1), value_of(MU)
    for actions in (("stop",), ("go", "cash"), ("go", "fail")):
        print(f"{' '.join(actions):8}  targets", *targets(actions, values, one))
    for sweep in range(1, 5):
        values = expected(values, one)
        print(f"after {sweep} sweeps: V(A) {values.A!s:8} V(B) {values.B}")
    for bar in (Fraction(1, 100), Fraction(1), Fraction(2), Fraction(3)):
        policy = between(bar)
        print(f"rho_bar {bar!s:6} value of pi_rho_bar:", *value_of(policy))


if __name__ == "__main__":
    main()
