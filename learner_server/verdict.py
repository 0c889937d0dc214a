"""The verdict on a run's speed: which side limits it, from what the sides have been waiting for, and what to try next."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

# Whoever waits for less than this share of its time is held up by nobody.
_EVEN = 0.2
# Actors that wait for as much as this share are held up by what lies between them and the learner.
_HELD_UP = 0.3
# A thread that could have run and had no core for as much as this share shares its cores with too many others.
_STARVED = 0.3
# A thread that takes messages in and is at work for as much as this share has no time left.
_BUSY = 0.7
# Calls that take less than this share of actors' time in all are not what holds them up.
_LONG = 0.5
# Versions of lag from which on late weights matter.
_LATE = 8.0
# The log intervals that a verdict looks back on.
_WINDOW_SECONDS = 10.0


class Limit(Enum):
    """What limits a run."""

    NOTHING_YET = "nothing yet"
    ACTORS = "actors"
    ENVIRONMENT = "environment"
    INFERENCE = "inference"
    NETWORK_IN = "network in"
    NETWORK_OUT = "network out"
    INGEST = "ingest"
    QUEUE = "queue"
    LEARNER = "learner"
    PROCESSOR = "processor"
    BALANCED = "balanced"


_NEXT = {
    Limit.NOTHING_YET: "wait for updates by actors that say how they spend their time",
    Limit.ACTORS: "start actors, or look in their logs for why they do not come",
    Limit.ENVIRONMENT: "more actors on cores that have nothing else to do, or a faster --vectorization",
    Limit.INFERENCE: "more environments an actor (--envs), --acting-precision bfloat16, or a smaller network",
    Limit.NETWORK_IN: "a faster link to the learner, or fewer bytes a step: compression, smaller observations",
    Limit.NETWORK_OUT: "a faster link from the learner, a smaller network, or fewer versions: larger batches",
    Limit.INGEST: "fewer and larger unrolls (--envs, --unroll-length), or several learners",
    Limit.QUEUE: "unrolls collected ahead (--max-in-flight 2), a longer queue (--queue-batches), or more environments an actor",
    Limit.LEARNER: "a faster learner: a GPU, more --threads, --precision bfloat16; or fewer actors, for they cannot be used",
    Limit.PROCESSOR: "actors on other machines, or fewer of them: there are more busy programs than cores",
    Limit.BALANCED: "nothing: neither side holds up the other",
}


@dataclass(frozen=True)
class Verdict:
    """What limits a run, what shows it, and what to try next."""

    limit: Limit
    evidence: str

    @property
    def advice(self) -> str:
        """What to try next."""
        return _NEXT[self.limit]

    @property
    def sentence(self) -> str:
        """All of it."""
        return f"{self.limit.value}: {self.evidence}. Next: {self.advice}."


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Shares of time, 0 to 1 but for those of calls, which may overlap; and how many versions old unrolls are.

    Attributes:
        learner: that training waited for batches.
        actor: that actors waited for a place, for weights or for answers.
        environment, inference: that actors stepped environments, and chose actions.
        line, sending, fetching: of actors' calls, see `ActorTimes`.
        learner_starved, actor_starved: that a thread could have run and had no core.
        ingest: that the thread which takes messages in was at work.
        lag: mean policy lag.
    """

    learner: float
    actor: float
    environment: float
    inference: float
    line: float
    sending: float
    fetching: float
    learner_starved: float
    actor_starved: float
    ingest: float
    lag: float


_FIGURES = {
    "learner": "learner_wait_fraction",
    "actor": "actor_wait_fraction",
    "environment": "actor_environment_fraction",
    "inference": "actor_inference_fraction",
    "line": "actor_line_fraction",
    "sending": "actor_sending_fraction",
    "fetching": "actor_fetching_fraction",
    "learner_starved": "learner_starved_fraction",
    "actor_starved": "actor_starved_fraction",
    "ingest": "ingest_fraction",
    "lag": "policy_lag_mean",
}
# Of those, what the learner has from its actors alone.
_OF_ACTORS = {name for name, figure in _FIGURES.items() if figure.startswith("actor_")}


def judge(waits: Waits) -> Verdict:
    """Returns the verdict on what was measured.

    The learner's own wait says on which side to look. If it hardly waits, it is the limit, or nothing is. If it waits, actors are
    too slow unless they wait as well: then it is what lies between the two.
    """
    if waits.lag >= _LATE and waits.fetching >= _LONG and waits.fetching > waits.sending:
        said = f"actors fetch weights for {_percent(waits.fetching)} of their time and act on weights {waits.lag:.0f} versions old"
        return Verdict(Limit.NETWORK_OUT, said)
    limit, evidence = _of_waits(waits)
    busy = limit in {Limit.LEARNER, Limit.BALANCED}
    starved = max(waits.learner_starved, 0.0 if busy else waits.actor_starved)
    if starved >= _STARVED:
        return Verdict(
            Limit.PROCESSOR,
            f"the learner could run and had no core for {_percent(waits.learner_starved)} of its time, actors for "
            f"{_percent(waits.actor_starved)} of theirs",
        )
    return Verdict(limit, evidence)


def _of_waits(waits: Waits) -> tuple[Limit, str]:
    """Returns the limit by what waits for what, and what shows it, as if cores were plenty."""
    learner, actor = _percent(waits.learner), _percent(waits.actor)
    if waits.learner < _EVEN:
        if waits.actor < _EVEN:
            return Limit.BALANCED, f"the learner waits {learner} of its time, actors {actor}"
        return Limit.LEARNER, f"actors wait {actor} of their time, the learner {learner}"
    said = f"the learner waits {learner} of its time"
    if waits.actor < _HELD_UP:
        if waits.environment >= waits.inference:
            return Limit.ENVIRONMENT, f"{said}, actors step environments for {_percent(waits.environment)} of theirs"
        return Limit.INFERENCE, f"{said}, actors choose actions for {_percent(waits.inference)} of theirs"
    return _between(waits, f"{said} and actors {actor} of theirs")


def _between(waits: Waits, said: str) -> tuple[Limit, str]:
    """Returns what of the way between both sides is the limit, where both wait."""
    longest = max(waits.sending, waits.fetching)
    if waits.line >= longest:
        return Limit.QUEUE, f"{said}: unrolls stand in line for {_percent(waits.line)}"
    if longest < _LONG:
        return Limit.QUEUE, f"{said}, though no call takes long: too little is under way"
    if waits.fetching >= waits.sending:
        return Limit.NETWORK_OUT, f"{said}: fetching weights takes {_percent(waits.fetching)}"
    if waits.ingest >= _BUSY:
        return Limit.INGEST, f"{said}: the thread that takes unrolls in is at work {_percent(waits.ingest)} of the time"
    return Limit.NETWORK_IN, f"{said}: sending unrolls takes {_percent(waits.sending)}"


def _percent(share: float) -> str:
    return f"{share:.0%}"


class VerdictWindow:
    """Looks back on the log intervals of the last ten seconds: a single one is too short to tell."""

    def __init__(self) -> None:
        self._lines: deque[tuple[float, Mapping[str, Any]]] = deque()

    def update(self, now: float, figures: Mapping[str, Any]) -> Verdict:
        """Returns the verdict, having seen an interval's figures at `now`, seconds of any clock."""
        self._lines.append((now, figures))
        while now - self._lines[0][0] > _WINDOW_SECONDS:
            self._lines.popleft()
        if not figures["actors"]:
            return Verdict(Limit.ACTORS, "no actor has called within the last ten seconds")
        means = {name: _mean([line.get(figure) for _, line in self._lines]) for name, figure in _FIGURES.items()}
        missing = {name for name, mean in means.items() if mean is None}
        if missing - _OF_ACTORS:
            return Verdict(Limit.NOTHING_YET, "there have been no updates within the last ten seconds")
        if missing:  # the .proto lets actors leave it out
            return Verdict(Limit.NOTHING_YET, "actors do not say what they spend their time on")
        return judge(Waits(**{name: mean or 0.0 for name, mean in means.items()}))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
