"""What goes wrong in a chaos run, and when: drawn from a seed."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What goes wrong."""

    KILL_LEARNER = "kill_learner"
    KILL_LEARNER_IN_CHECKPOINT = "kill_learner_in_checkpoint"
    TERMINATE_LEARNER = "terminate_learner"
    STOP_LEARNER = "stop_learner"
    KILL_ACTOR = "kill_actor"
    STOP_ACTOR = "stop_actor"
    BLACK_HOLE_ACTOR = "black_hole_actor"
    BLACK_HOLE_ALL = "black_hole_all"
    RESET_ALL = "reset_all"
    DELAY_ALL = "delay_all"


# Twenty cards: decks are shuffled and dealt one after the other, so that every kind comes in its share.
_DECK: Sequence[Kind] = (
    *(Kind.KILL_LEARNER,) * 3,
    *(Kind.KILL_LEARNER_IN_CHECKPOINT,) * 3,
    Kind.TERMINATE_LEARNER,
    Kind.STOP_LEARNER,
    *(Kind.KILL_ACTOR,) * 4,
    *(Kind.STOP_ACTOR,) * 2,
    *(Kind.BLACK_HOLE_ACTOR,) * 2,
    Kind.BLACK_HOLE_ALL,
    *(Kind.RESET_ALL,) * 2,
    Kind.DELAY_ALL,
)
# Most are short; every tenth lasts as long as they get.
_SHORTEST_SECONDS, _LONGEST_SECONDS, _LONGEST_SHARE = 1.0, 60.0, 0.1
LASTING = frozenset(
    {Kind.STOP_LEARNER, Kind.STOP_ACTOR, Kind.BLACK_HOLE_ACTOR, Kind.BLACK_HOLE_ALL, Kind.DELAY_ALL},
)
MOST_DELAY_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        at: seconds after the first update.
        actor: which one, where it is an actor's.
        seconds: how long it lasts; 0 for those that are over at once.
        delay_seconds: added to whatever passes, for `DELAY_ALL`.
    """

    at: float
    kind: Kind
    actor: int
    seconds: float
    delay_seconds: float


def draw_faults(seed: int, count: int, within_seconds: float, actors: int, *, longest: float = _LONGEST_SECONDS) -> list[Fault]:
    """Returns the faults of a seed, the earliest first: at random times, whatever else goes wrong then."""
    dice = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    kinds: list[Kind] = []
    while len(kinds) < count:
        kinds += dice.sample(_DECK, len(_DECK))
    times = sorted(dice.uniform(0.0, within_seconds) for _ in range(count))
    return [_draw(dice, at, kind, actors, longest) for at, kind in zip(times, kinds, strict=False)]


def _draw(dice: random.Random, at: float, kind: Kind, actors: int, longest: float) -> Fault:
    actor, is_longest = dice.randrange(actors), dice.random() < _LONGEST_SHARE
    seconds = longest if is_longest else math.exp(dice.uniform(math.log(_SHORTEST_SECONDS), math.log(longest / 3)))
    delay = dice.uniform(0.01, MOST_DELAY_SECONDS)
    return Fault(
        at=at,
        kind=kind,
        actor=actor,
        seconds=seconds if kind in LASTING else 0.0,
        delay_seconds=delay if kind is Kind.DELAY_ALL else 0.0,
    )
