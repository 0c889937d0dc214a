"""Journeys and batches as a Chrome trace: what chrome://tracing and Perfetto draw.

Learner and actors are processes with their threads in rows. Besides, each unroll has a row of its own under `unrolls`, with its
stages side by side, and arrows from its last step of the environment to where it was decoded and to the gradient that it was in.
All moments are the learner's, in microseconds since the recording began; those of actors are brought to its clock, and
`otherData.clocks` says by how much and how surely.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from impala.unroll_trace import STEP_PARTS, ClockLimits
from learner_server.journeys import BACKWARD, BEFORE_STEP, PUBLISHING, Batch, Journey, Stage, ahead_of, common_limits

Event = dict[str, Any]

_LEARNER, _UNROLLS, _FIRST_ACTOR = 1, 2, 10
_TRAINING, _EVENT_LOOP, _MAIN = 1, 2, 1
# Unrolls are told of by actors that were told of the recording, so none began before it, but for what clocks may be wrong by.
_SLACK_SECONDS = 1.0


def chrome_trace(
    journeys: Sequence[Journey], batches: Sequence[Batch], *, began: float, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the trace as JSON values.

    Args:
        journeys: unrolls that were followed, however far they got.
        batches: those that were trained on, in order.
        began: when the recording did, by the learner's clock.
        about: goes into `otherData`.
    """
    drawing = _Drawing(began)
    drawing.learner(batches)
    by_actor: dict[tuple[str, int], list[Journey]] = {}
    for journey in journeys:
        by_actor.setdefault(journey.actor, []).append(journey)
    clocks, impossible = {}, 0
    for pid, (actor, theirs) in enumerate(sorted(by_actor.items()), start=_FIRST_ACTOR):
        limits = common_limits(theirs)
        possible = [journey for journey in theirs if _is_possible(journey, limits, began)]
        impossible += len(theirs) - len(possible)
        drawing.actor(pid, actor[0], sorted(possible, key=lambda journey: journey.sequence), limits)
        clocks["{} {}".format(*actor)] = {
            "learner_ahead_seconds": ahead_of(limits),
            "uncertainty_seconds": limits.uncertainty_seconds,
        }
    other = {**about, "clocks": clocks, "unrolls_that_cannot_have_been": impossible}
    return {"traceEvents": drawing.events, "displayTimeUnit": "ms", "otherData": other}


def _is_possible(journey: Journey, limits: ClockLimits, began: float) -> bool:
    return journey.began(ahead_of(limits)) >= began - _SLACK_SECONDS


class _Drawing:
    def __init__(self, began: float) -> None:
        self._began = began
        self.events: list[Event] = []
        self._flows = 0
        for pid, name in ((_LEARNER, "learner"), (_UNROLLS, "unrolls, from the first step to the gradient")):
            self._name(pid, None, name, sort=pid)
        self._name(_LEARNER, _TRAINING, "training", sort=_TRAINING)
        self._name(_LEARNER, _EVENT_LOOP, "grpc-loop", sort=_EVENT_LOOP)

    def learner(self, batches: Sequence[Batch]) -> None:
        """Draws the training thread's row. A batch waits for its step in no row: the step before may not have ended."""
        for batch in batches:
            if batch.step:
                whole = Stage("learner step", batch.step[0].begin, batch.step[-1].end)
                self._slice(_LEARNER, _TRAINING, whole, version=batch.version, unrolls=batch.unrolls)
            for stage in batch.stages:
                if stage.name != BEFORE_STEP:
                    self._slice(_LEARNER, _TRAINING, stage)

    def actor(self, pid: int, name: str, journeys: Sequence[Journey], limits: ClockLimits) -> None:
        """Draws one actor's row, and those of its unrolls."""
        ahead = ahead_of(limits)
        label = f"clock sure to {limits.uncertainty_seconds * 1e3:.3f} ms"
        self._name(pid, None, f"actor {name}", sort=pid)
        self._event("M", pid, name="process_labels", args={"labels": label})
        self._name(pid, _MAIN, "main", sort=_MAIN)
        for journey, after in zip(journeys, [*journeys, None][1:], strict=True):
            self._collecting(pid, journey, ahead)
            if after is not None and after.sequence == journey.sequence + 1:
                until = max(after.trace.waited, journey.trace.encoded)
                self._slice(pid, _MAIN, Stage("submitting", journey.trace.encoded + ahead, until + ahead))
            self._slice(_LEARNER, _EVENT_LOOP, Stage("decoding", journey.received, journey.decoded), sequence=journey.sequence)
            self._journey(pid, journey, ahead, limits)

    def _collecting(self, pid: int, journey: Journey, ahead: float) -> None:
        trace = journey.trace
        waited, began, collected, encoded = (
            moment + ahead for moment in (trace.waited, trace.began, trace.collected, trace.encoded)
        )
        # What it waited for before the recording is of no interest, and may be anything.
        self._slice(pid, _MAIN, Stage("waiting", max(waited, min(self._began, began)), began))
        self._slice(pid, _MAIN, Stage("collecting", began, collected), sequence=journey.sequence, version=journey.version)
        for part in _steps(trace.step_micros, began):
            self._slice(pid, _MAIN, part)
        self._slice(pid, _MAIN, Stage("encoding", collected, encoded))

    def _journey(self, pid: int, journey: Journey, ahead: float, limits: ClockLimits) -> None:
        stages = journey.stages(ahead)
        way = [stage for stage in stages if stage.name != PUBLISHING]
        name = f"{journey.actor_id} {journey.incarnation} {journey.sequence}"
        trained = None if journey.batch is None else journey.batch.trained
        about = {
            "unroll": name,
            "trajectories": journey.trajectories,
            "version_that_acted": journey.version,
            "version_that_came_of_it": None if journey.batch is None else journey.batch.version,
            "age_seconds": None if trained is None else trained - way[0].begin,
            "clock_uncertainty_seconds": limits.uncertainty_seconds,
        }
        self._async(name, Stage("unroll", way[0].begin, way[-1].end), about)
        for stage in stages:
            self._async(name, stage, {})
        if trained is not None and journey.batch is not None:
            # Between innermost slices: what lies around others viewers do not agree on.
            *_, begin = way[0], *_steps(journey.trace.step_micros, way[0].begin)
            step = {stage.name: stage for stage in journey.batch.step}
            self._arrow(
                (pid, _MAIN, begin),
                (_LEARNER, _EVENT_LOOP, Stage("", journey.received, journey.decoded)),
                (_LEARNER, _TRAINING, step.get(BACKWARD) or journey.batch.step[0]),
            )

    def _arrow(self, *through: tuple[int, int, Stage]) -> None:
        self._flows += 1
        for phase, (pid, tid, stage) in zip("stf", through, strict=True):
            # In the middle: at its ends a slice may be taken for its neighbour.
            middle = self._micros((stage.begin + stage.end) / 2)
            self._event(phase, pid, tid=tid, name="unroll", cat="unroll", id=self._flows, ts=middle, bp="e")

    def _slice(self, pid: int, tid: int, stage: Stage, **args: Any) -> None:
        begin = self._micros(stage.begin)
        self._event(
            "X",
            pid,
            tid=tid,
            name=stage.name,
            ts=begin,
            dur=round(self._micros(stage.end) - begin, 3),
            **({"args": args} if args else {}),
        )

    def _async(self, name: str, stage: Stage, args: Mapping[str, Any]) -> None:
        # Local to the process, which viewers else leave it out of.
        common = {"name": stage.name, "cat": "unroll", "id2": {"local": name}, "tid": _MAIN}
        self._event("b", _UNROLLS, ts=self._micros(stage.begin), args=args, **common)
        self._event("e", _UNROLLS, ts=self._micros(stage.end), **common)

    def _name(self, pid: int, tid: int | None, name: str, *, sort: int) -> None:
        of, where = ("process", {}) if tid is None else ("thread", {"tid": tid})
        self._event("M", pid, name=f"{of}_name", args={"name": name}, **where)
        self._event("M", pid, name=f"{of}_sort_index", args={"sort_index": sort}, **where)

    def _event(self, phase: str, pid: int, **fields: Any) -> None:
        self.events.append({"ph": phase, "pid": pid, **fields})

    def _micros(self, moment: float) -> float:
        return round((moment - self._began) * 1e6, 3)


def _steps(step_micros: Sequence[int], began: float) -> Iterator[Stage]:
    """Yields what steps spent on inference and on the environment."""
    at = 0
    for index, micros in enumerate(step_micros):
        part = STEP_PARTS[index % len(STEP_PARTS)]
        if part != "rest":
            yield Stage(part, began + at * 1e-6, began + (at + micros) * 1e-6)
        at += micros
