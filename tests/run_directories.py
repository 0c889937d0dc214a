"""Run directories as a learner leaves them, made without one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learner_server.config import LearnerConfig

Row = tuple[int, float, Sequence[float | None]]

ROWS: list[Row] = [(0, 0.0, [None]), (100, 1.0, [10.0]), (200, 3.0, [30.0])]


def write_run(path: Path, rows: Sequence[Row] = ROWS, *, env: tuple[str, ...] = ("CartPole-v1",), **config: Any) -> Path:
    """Writes a run directory whose metrics are (steps, seconds, mean return by task); returns its path."""
    learner = LearnerConfig(env=env, **config)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({**learner.identity(), "learner": learner.to_json()}))
    lines = [
        {
            "env_steps": steps,
            "seconds": seconds,
            "mean_return_100": returns[0] if len(env) == 1 else None,
            "mean_return_100_by_task": returns,
        }
        for steps, seconds, returns in rows
    ]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path
