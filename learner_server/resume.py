"""Where a run stands when a learner process starts: at the beginning, or where the last process left it.

Weights come from the newest whole checkpoint. Counters come from whichever is further on, that checkpoint or the last line of
metrics.jsonl, for a process that was killed went on after its last checkpoint, and nothing that was once shown may go back. So
do versions: actors still hold weights that the killed process published. Where steps are was counted on after that line, too: see
`run_directory.counters`.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import safetensors.torch

from learner_server.group import Group
from run_directory.checkpoint import Checkpoint, load_newest_checkpoint
from run_directory.counters import read_counters
from run_directory.journal import read_last_metrics
from run_directory.layout import RunDirectory

# A running learner writes a line of metrics before it has published this many versions since the last one, so a version this far
# beyond the last line is one that no earlier process used.
VERSIONS_BETWEEN_LINES = 1000


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """Counters to go on from; the defaults are those of a new run.

    Attributes:
        checkpoint: weights, optimiser, random states and actors to take over; None for a new run.
        version: the first parameter version to publish.
        steps_lost: steps among `steps_trained` that no weights remember, trained on after the checkpoint.
        trained_by_task, episodes, recent_returns: task by task.
    """

    checkpoint: Checkpoint | None = None
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    version: int = 1
    learner_updates: int = 0
    skipped_updates: int = 0
    steps_received: int = 0
    steps_trained: int = 0
    steps_dropped: Mapping[str, int] = field(default_factory=dict)
    steps_lost: int = 0
    trained_by_task: Sequence[int] = (0,)
    episodes: Sequence[int] = (0,)
    recent_returns: Sequence[Sequence[float]] = ((),)
    seconds: float = 0.0


def find_starting_point(directory: RunDirectory, tasks: int = 1) -> StartingPoint:
    """Returns where the run of so many tasks in `directory` stands.

    Raises:
        CheckpointError: it has checkpoints, and not one is whole.
    """
    checkpoint = load_newest_checkpoint(directory.checkpoints)
    shown = read_last_metrics(directory.metrics) or {}
    # Metrics without a checkpoint: not one could be written. The weights begin anew, versions and counters do not.
    version, kept = (checkpoint.version, checkpoint.state) if checkpoint else (0, _nothing(tasks))
    newest = shown if shown and _progress(shown) >= _progress(kept) else kept
    counted = _with_env_steps(read_counters(directory.counters), tasks)
    # They are as new as any line or checkpoint of a learner by itself, in which steps received may be more: of callers that left.
    if counted is not None and _settled(counted) >= _settled(newest):
        newest = {**newest, **counted}
    return StartingPoint(
        checkpoint=checkpoint,
        run_id=kept["run_id"],
        version=_next_version(version, shown) if checkpoint or shown else 1,
        learner_updates=newest["learner_updates"],
        skipped_updates=newest["skipped_updates"],
        steps_received=newest["steps_received"],
        steps_trained=newest["env_steps"],
        steps_dropped=_with_waiting_dropped(newest),
        steps_lost=kept["steps_lost"] + newest["env_steps"] - kept["env_steps"],
        trained_by_task=newest["trained_by_task"],
        episodes=[max(pair) for pair in zip(kept["episodes_by_task"], newest["episodes_by_task"], strict=True)],
        recent_returns=kept["recent_returns"],
        seconds=max(kept["seconds"], newest["seconds"]),
    )


def _nothing(tasks: int) -> dict[str, Any]:
    return {
        "run_id": uuid.uuid4().hex[:12],
        "env_steps": 0,
        "learner_updates": 0,
        "skipped_updates": 0,
        "steps_received": 0,
        "dropped_by_rule": {},
        "steps_lost": 0,
        "trained_by_task": [0] * tasks,
        "episodes_by_task": [0] * tasks,
        "recent_returns": [()] * tasks,
        "seconds": 0.0,
    }


def _progress(counters: Mapping[str, Any]) -> tuple[int, int, int]:
    """What tells the later of two: a step is received, and trained on or dropped, for good. Not `seconds`, which are rounded."""
    return counters["env_steps"], counters["steps_received"], sum(counters["dropped_by_rule"].values())


def _settled(counters: Mapping[str, Any]) -> int:
    """Returns the steps that have come to their end, which never go back."""
    return int(counters["env_steps"]) + sum(map(int, counters["dropped_by_rule"].values()))


def _with_env_steps(counted: Mapping[str, Any] | None, tasks: int) -> dict[str, Any] | None:
    if counted is None or len(counted["trained_by_task"]) != tasks:
        return None
    return {**counted, "env_steps": sum(counted["trained_by_task"])}


def _next_version(checkpoint_version: int, shown: Mapping[str, Any]) -> int:
    if shown.get("ended") and shown["parameter_version"] == checkpoint_version:
        return checkpoint_version  # ended in good order: nothing was published beyond its last checkpoint
    return max(checkpoint_version, int(shown.get("parameter_version", 0))) + VERSIONS_BETWEEN_LINES


def _with_waiting_dropped(newest: Mapping[str, Any]) -> dict[str, int]:
    """What waited when the process ended has gone with its memory."""
    dropped = dict(newest["dropped_by_rule"])
    waiting = newest["steps_received"] - newest["env_steps"] - sum(dropped.values())
    if waiting:
        dropped["restart"] = dropped.get("restart", 0) + waiting
    return dropped


def share_starting_point(group: Group, tasks: int, start: StartingPoint | None = None) -> StartingPoint:
    """Returns where each learner of a group begins.

    That is where the run stands, for rank 0; the others have the same weights, version and schedule, and accounts of their own.

    Args:
        start: where the run stands; rank 0 gives it, and no other.
    """
    said = json.dumps(_without_tensors(start)).encode() if start is not None else b""
    counters = json.loads(group.share(said))
    tensors = group.share(_tensors(start.checkpoint) if start is not None and start.checkpoint is not None else b"")
    if start is not None:
        return start
    return replace(
        StartingPoint(**{**counters, "checkpoint": _checkpoint(counters["checkpoint"], tensors)}),
        steps_received=0,
        steps_dropped={},
        trained_by_task=[0] * tasks,
        episodes=[0] * tasks,
        recent_returns=[()] * tasks,
        seconds=0.0,
    )


def _without_tensors(start: StartingPoint) -> dict[str, Any]:
    values = {each.name: getattr(start, each.name) for each in fields(start)}
    checkpoint = start.checkpoint
    values["checkpoint"] = None if checkpoint is None else {"version": checkpoint.version, "state": checkpoint.state}
    return values


def _tensors(checkpoint: Checkpoint) -> bytes:
    parts = {"parameters": checkpoint.parameters, "optimiser": checkpoint.optimiser, "random": checkpoint.random}
    return safetensors.torch.save({f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()})


def _checkpoint(values: Mapping[str, Any] | None, data: bytes) -> Checkpoint | None:
    if values is None:
        return None
    parts: dict[str, dict[str, Any]] = {"parameters": {}, "optimiser": {}, "random": {}}
    for key, tensor in safetensors.torch.load(data).items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    return Checkpoint(version=values["version"], state=values["state"], **parts)
