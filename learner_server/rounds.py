"""When several learners take a step together, decided by each of them alike from what all of them say."""

import enum
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

# A rank is waited for at least this long, once another has a batch, and at most so long.
LEAST_PATIENCE_SECONDS = 1.0
MOST_PATIENCE_SECONDS = 30.0

# And as many times as long as the last step took in which all had one.
_PATIENCE_STEPS = 3.0


class End(enum.StrEnum):
    """Why a run, or this process's part of it, ended."""

    SOLVED = "solved"
    TOTAL_STEPS = "total_steps"
    STOPPED = "stopped"
    FAILED = "failed"


# What counts where ranks have different reasons: the first of these.
_ENDS = (End.FAILED, End.SOLVED, End.TOTAL_STEPS, End.STOPPED)
_GOES_ON = len(_ENDS)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a rank stands between two steps.

    Attributes:
        now: its clock, seconds. Only rank 0's counts, as with rate_scale, log and save.
        ready: has a batch.
        env_steps: agent steps of that batch.
        end: why it wants to end; None if it does not.
        rate_scale: what the learning rate is multiplied by.
        log, save: metrics, a checkpoint are due.
    """

    now: float
    ready: bool
    env_steps: int = 0
    end: End | None = None
    rate_scale: float = 1.0
    log: bool = False
    save: bool = False

    def numbers(self) -> list[float]:
        """Returns it as numbers, in the order of its fields."""
        values = [_ENDS.index(value) if isinstance(value, End) else value for value in astuple(self)]
        return [float(_GOES_ON if value is None else value) for value in values]

    @classmethod
    def of_numbers(cls, numbers: Sequence[float]) -> "Standing":
        """Returns the standing that `numbers` wrote down."""
        values = dict(zip((field.name for field in fields(cls)), numbers, strict=True))
        end = int(values["end"])
        return cls(
            now=values["now"],
            ready=bool(values["ready"]),
            env_steps=int(values["env_steps"]),
            end=None if end == _GOES_ON else _ENDS[end],
            rate_scale=values["rate_scale"],
            log=bool(values["log"]),
            save=bool(values["save"]),
        )


@dataclass(frozen=True, kw_only=True)
class Round:
    """What all ranks do now.

    Attributes:
        step: train, those without a batch on nothing.
        env_steps: agent steps of all batches.
        end: stop, and why; None to go on.
        rate_scale, log, save: see `Standing`.
    """

    step: bool
    env_steps: int
    end: End | None
    rate_scale: float
    log: bool
    save: bool


class Rounds:
    """Decides, round by round. All ranks see the same standings, and so come to the same decisions.

    A step is taken when every rank has a batch. A rank that has none is waited for three times as long as the last whole step took,
    a second at least; then it is passed over, from then on at once, until it has a batch again.

    Args:
        size: number of ranks.
    """

    def __init__(self, size: int) -> None:
        self._passed_over: set[int] = set()
        self._size = size
        self._waiting_since: float | None = None
        self._last_step: float | None = None
        self._patience = LEAST_PATIENCE_SECONDS

    def passes_over(self, rank: int) -> bool:
        """Returns whether steps are taken without waiting for this rank."""
        return rank in self._passed_over

    def decide(self, standings: Sequence[Standing]) -> Round:
        """Returns what is to be done, given every rank's standing, in their order."""
        first, ready = standings[0], {rank for rank, standing in enumerate(standings) if standing.ready}
        step = bool(ready) and self._waited_enough(first.now, ready)
        if step:
            self._note_step(first.now, ready)
        ends = [standing.end for standing in standings if standing.end is not None]
        return Round(
            step=step,
            env_steps=sum(standing.env_steps for standing in standings if standing.ready),
            end=min(ends, key=_ENDS.index, default=None),
            rate_scale=first.rate_scale,
            log=first.log,
            save=first.save,
        )

    def _waited_enough(self, now: float, ready: set[int]) -> bool:
        if self._waiting_since is None:
            self._waiting_since = now
        missing = set(range(self._size)) - ready - self._passed_over
        return not missing or now - self._waiting_since >= self._patience

    def _note_step(self, now: float, ready: set[int]) -> None:
        self._passed_over = set(range(self._size)) - ready
        if not self._passed_over and self._last_step is not None:
            took = _PATIENCE_STEPS * (now - self._last_step)
            self._patience = min(max(took, LEAST_PATIENCE_SECONDS), MOST_PATIENCE_SECONDS)
        self._waiting_since, self._last_step = None, now
