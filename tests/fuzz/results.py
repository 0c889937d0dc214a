"""`results/fuzz.json`: what the last runs of both commands did."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any


def write_part(path: Path, part: str, figures: dict[str, Any], commit: str) -> None:
    """Replaces one part of the file, and leaves the other."""
    try:
        parts = json.loads(path.read_text())
    except FileNotFoundError:
        parts = {}
    parts[part] = {"commit": commit, "command": shlex.join(["python", "-m", f"tests.fuzz.{part}", *sys.argv[1:]]), **figures}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(parts.items())), indent=2) + "\n")


def current_commit() -> str:
    """Returns what is being fuzzed, asked at the start: a run is longer than it takes to commit something else."""
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.strip() or "unknown"
