"""Torn checkpoints: kills a writer with SIGKILL at random instants and looks whether a whole checkpoint is found, each time.

    python -m benchmarks.torn --kills 500 --seed 0 --output benchmarks/torn.json

A process writes one checkpoint after the other with `save_checkpoint`, each of a higher version, and reports each that is finished.
It is killed at an instant drawn uniformly over one whole save after the first that it reported. Then `load_newest_checkpoint` must
return one whose every tensor is that of its version, the last that was reported or the one after, and pass over none. What the
writer was at when it died is read from what it left. The next writer goes on in the same folder. Exit code 1 if a checkpoint is not
found, or if less than a third of the kills fell while one was being written.
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from impala.errors import CheckpointError
from run_directory.checkpoint import Checkpoint, load_newest_checkpoint, save_checkpoint

# Saves of the first writer that are timed, and how much longer than one of them the instants are drawn over.
_TIMED_SAVES = 10
_STRETCH = 1.1
_REPORT_SECONDS = 60.0
_LEAST_SHARE = 1 / 3

_PARTS = ("parameters", "optimiser", "random")
_FILES = 5
_WRITING = ".writing-version-"


class PassedOver(logging.Handler):
    """Counts what the log says of checkpoints that are not whole."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def make_checkpoint(version: int, mebibytes: float) -> Checkpoint:
    """Returns a checkpoint of that size, every tensor of which says its version."""
    floats = int(mebibytes * 2**20 / 4 / 3)
    parameters = {"weight": torch.full((floats,), float(version))}
    optimiser = {f"0.{name}": torch.full((floats,), float(version)) for name in ("exp_avg", "exp_avg_sq")}
    state = {"env_steps": version, "actors": {f"actor-{index}": version for index in range(100)}}
    return Checkpoint(
        version=version,
        parameters=parameters,
        optimiser=optimiser,
        random={"cpu": torch.full((5056,), float(version))},
        state=state,
    )


def is_its_own(checkpoint: Checkpoint) -> bool:
    """Whether every part is of the checkpoint's version."""
    tensors = [tensor for part in _PARTS for tensor in getattr(checkpoint, part).values()]
    return len(tensors) == 4 and all(bool((tensor == checkpoint.version).all()) for tensor in tensors)


def write_for_ever(folder: Path, version: int, mebibytes: float, keep: int, reports: Connection) -> None:
    """Writes checkpoints from version + 1 on and reports each once it is finished: what the writing process does until it dies."""
    torch.set_num_threads(1)
    while True:
        version += 1
        save_checkpoint(folder, make_checkpoint(version, mebibytes), keep=keep)
        reports.send(version)


class Writer:
    """A process that writes checkpoints."""

    def __init__(self, folder: Path, version: int, *, mebibytes: float, keep: int) -> None:
        # Processes forked from a server that has torch imported and does nothing else: started in milliseconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["run_directory.checkpoint"])
        self._reports, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=write_for_ever, args=(folder, version, mebibytes, keep, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def wait_for_report(self) -> int:
        """Returns the next version that was finished."""
        if not self._reports.poll(_REPORT_SECONDS):
            raise TimeoutError(f"no checkpoint within {_REPORT_SECONDS:.0f} s")
        return int(self._reports.recv())

    def kill(self) -> list[int]:
        """Kills it with SIGKILL; returns the versions that it had reported besides."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()
        rest = []
        try:
            while True:
                rest.append(int(self._reports.recv()))
        except EOFError:
            return rest


def phase(folder: Path, keep: int) -> str:
    """Returns what the writer was at when it died, by what it left."""
    if writing := list(folder.glob(f"{_WRITING}*")):
        files = list(writing[0].iterdir())
        return f"writing, {len(files)} of {_FILES} files begun"
    versions = list(folder.glob("version-*"))
    if len(versions) > keep or any(len(list(version.iterdir())) < _FILES for version in versions):
        return "deleting an old one"
    return "between two"


def torn(folder: Path, *, kills: int, seed: int, mebibytes: float, keep: int) -> dict[str, Any]:
    """Kills so many writers; returns what was found."""
    draw, passed_over = random.Random(seed), PassedOver()  # noqa: S311 - instants, not secrets
    logging.getLogger("run_directory.checkpoint").addHandler(passed_over)
    version, phases, faults = 0, Counter[str](), list[str]()
    first = Writer(folder, version, mebibytes=mebibytes, keep=keep)
    first.wait_for_report()
    started = time.monotonic()
    for _ in range(_TIMED_SAVES):
        version = first.wait_for_report()
    save_seconds = (time.monotonic() - started) / _TIMED_SAVES
    version = [version, *first.kill()][-1]
    for kill in range(kills):
        writer = Writer(folder, version + 1, mebibytes=mebibytes, keep=keep)
        reported = writer.wait_for_report()
        time.sleep(draw.uniform(0.0, _STRETCH * save_seconds))
        reported = [reported, *writer.kill()][-1]
        phases[phase(folder, keep)] += 1
        try:
            found = load_newest_checkpoint(folder)
        except CheckpointError as error:
            found = None
            faults.append(f"kill {kill}: {error}")
        if found is None:
            return {"faults": [*faults, f"kill {kill}: nothing found"]}
        # The kill may fall between the renaming of a checkpoint and the report of it.
        if found.version not in (reported, reported + 1) or not is_its_own(found):
            faults.append(f"kill {kill}: {reported} was reported, {found.version} was found")
        version = found.version
    within = sum(count for name, count in phases.items() if name.startswith("writing"))
    return {
        "kills": kills,
        "seed": seed,
        "mebibytes": mebibytes,
        "keep": keep,
        "save_seconds": round(save_seconds, 4),
        "phases": dict(sorted(phases.items())),
        "killed_while_writing": within,
        "whole_found": kills - len(faults),
        "passed_over": passed_over.count,
        "faults": faults,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mebibytes", type=float, default=6.0, help="of one checkpoint")
    parser.add_argument("--keep", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = torn(Path(folder), kills=arguments.kills, seed=arguments.seed, mebibytes=arguments.mebibytes, keep=arguments.keep)
    record = {
        "command": f"python -m benchmarks.torn {' '.join(sys.argv[1:])}",
        "seconds": round(time.monotonic() - started),
        **found,
    }
    print(json.dumps(record, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(record, indent=2) + "\n")
    sys.exit(bool(found["faults"]) or found["passed_over"] > 0 or found["killed_while_writing"] < _LEAST_SHARE * arguments.kills)


if __name__ == "__main__":
    main()
