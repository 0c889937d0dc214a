"""Fuzzes a learner process over the network while it trains.

    python -m tests.fuzz.live --messages 100000 --seed 0

A learner with a token on loopback, one real actor, and beside it mutated messages to all three methods (some compressed by gRPC,
some with broken metadata), methods that do not exist, health checks and reflection with bytes that are none, calls with no message
or several, and bytes on the port that are not HTTP/2. Ends with code 1 where the learner ended, answered with a fault of its own,
logged a traceback, stopped training, lost count, or grew.
"""

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from run_directory.checkpoint import load_newest_checkpoint
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory
from tests.fuzz.attack import Attack
from tests.fuzz.observe import descriptors, memory_megabytes, threads
from tests.fuzz.results import current_commit, write_part
from tests.programs import ENDLESS, Programs, accounts_balance, last

_MOST_GROWTH_MEGABYTES = 50.0
# Of all messages, sent before memory is first read: pools, caches and the ledgers of the attack's actors have then filled.
_WARM_SHARE = 0.1
_UPDATES_BEFORE = 200


class Observed:
    """What the learner process is like at one moment."""

    def __init__(self, pid: int, run_dir: Path) -> None:
        self.megabytes = memory_megabytes(pid)
        self.descriptors = descriptors(pid)
        self.threads = threads(pid)
        self.updates = last(run_dir).get("learner_updates", 0)

    def figures(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("megabytes", "descriptors", "threads", "updates")}


def run_live(folder: Path, *, messages: int, seed: int) -> dict[str, Any]:
    """Returns what was sent, answered and found."""
    programs, run_dir = Programs(folder), folder / "run"
    token = folder / "token"
    token.write_text("fuzz-token-0123456789\n")
    token.chmod(0o600)
    access = ("--token-file", str(token))
    try:
        # Of a machine that has other work.
        programs.patience_seconds = 600.0
        learner = programs.learner(
            run_dir,
            "--actors",
            "0",
            "--listen",
            "127.0.0.1:0",
            "--stop-at-return",
            "None",
            "--checkpoint-seconds",
            "5",
            *access,
            *ENDLESS,
        )
        address = programs.address(learner)
        actor = programs.actor(address, *access)
        programs.wait_until(lambda: last(run_dir).get("learner_updates", 0) >= _UPDATES_BEFORE, learner, actor)
        attack = Attack(address, token.read_text().strip(), seed)
        cold, began = Observed(learner.pid, run_dir), time.monotonic()
        asyncio.run(attack.run(int(_WARM_SHARE * messages)))
        before = Observed(learner.pid, run_dir)
        asyncio.run(attack.run(messages - attack.messages))
        seconds = time.monotonic() - began
        findings = [*attack.findings.values()]
        if learner.poll() is not None:
            return _figures(attack, seconds, [cold, before], [*findings, f"the learner ended: {programs.text(learner)[-2000:]}"])
        # Connections that were cut off are closed, and one more line of metrics is written.
        updates = last(run_dir)["learner_updates"]
        programs.wait_until(lambda: last(run_dir)["learner_updates"] > updates + 20, learner, actor)
        after = Observed(learner.pid, run_dir)
        learner.terminate()
        learner.wait(60)
        findings += judge(before, after, run_dir, programs.text(learner))
        if "Traceback" in programs.text(actor):
            findings.append(f"the actor's log: {programs.text(actor)[-2000:]}")
        return _figures(attack, seconds, [cold, before, after], findings)
    finally:
        programs.end()


def judge(before: Observed, after: Observed, run_dir: Path, log: str) -> list[str]:
    """Returns what is wrong with the learner after the attack."""
    # The last one: a line that a caller made up.
    signs = [re.search(sign, log, re.MULTILINE) for sign in ("Traceback", "Exception ", "FATAL", r"^\s*INJECTED")]
    faults = [f"the learner's log: {log[max(0, found.start() - 300) : found.start() + 1500]}" for found in signs if found]
    if after.updates <= before.updates:
        faults.append(f"training stood still: {before.updates} updates, then {after.updates}")
    if not accounts_balance(run_dir):
        faults.append("a line of metrics does not balance")
    if after.megabytes - before.megabytes > _MOST_GROWTH_MEGABYTES:
        faults.append(f"memory grew from {before.megabytes} to {after.megabytes} MB")
    if after.descriptors > before.descriptors + 8 or after.threads > before.threads + 4:
        faults.append(f"descriptors and threads: {before.figures()}, then {after.figures()}")
    checkpoint = load_newest_checkpoint(RunDirectory(run_dir).checkpoints)
    if checkpoint is None or not all(bool(torch.isfinite(tensor).all()) for tensor in checkpoint.parameters.values()):
        faults.append("weights that are not finite, or none")
    if not read_metrics(run_dir / "metrics.jsonl"):
        faults.append("no metrics")
    return faults


def _figures(attack: Attack, seconds: float, moments: Sequence[Observed], findings: list[str]) -> dict[str, Any]:
    seen = [moment.figures() for moment in moments]
    return {
        "seed": attack.seed,
        "messages": attack.messages,
        "kinds": dict(sorted(attack.kinds.items())),
        "answers": {name: dict(sorted(counts.items())) for name, counts in sorted(attack.answers.items())},
        "garbage_connections": attack.connections,
        "seconds": round(seconds, 1),
        "before_the_first_message": seen[0],
        "start": seen[1],
        "start_is_taken_after_messages": int(_WARM_SHARE * attack.messages),
        "end": seen[2] if len(seen) > 2 else None,
        "growth_megabytes": round(seen[-1]["megabytes"] - seen[1]["megabytes"], 1),
        "findings": findings,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where to write the figures, under `live`")
    chosen = parser.parse_args(arguments)
    commit = current_commit()
    with tempfile.TemporaryDirectory(prefix="impala-fuzz-") as folder:
        figures = run_live(Path(folder), messages=chosen.messages, seed=chosen.seed)
    print(json.dumps({name: value for name, value in figures.items() if name != "findings"}, indent=2))
    print("\n".join(figures["findings"]))
    print(f"{len(figures['findings'])} findings", flush=True)
    if chosen.output:
        write_part(chosen.output, "live", figures, commit)
    return 1 if figures["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
