"""`metrics.jsonl` read back: what a run had counted when its last process ended, however it ended."""

import json
from pathlib import Path
from typing import Any

# More than a line of metrics is ever long, so that the last whole line lies within this many bytes of the end.
_TAIL_BYTES = 64 * 1024


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns every whole line of a run's metrics, in order; a line torn by a crash is passed over."""
    if not path.exists():
        return []
    return [line for line in map(_parse, path.read_bytes().splitlines()) if line is not None]


def read_last_metrics(path: Path) -> dict[str, Any] | None:
    """Returns the last whole line, or None where there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        for text in reversed(file.read().splitlines()):
            line = _parse(text)
            if line is not None:
                return line
    return None


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
