"""What a run's metrics owe whoever adds them up, from one line to the next and over every death of its learner."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NEVER_BACK = ("env_steps", "steps_trained", "steps_dropped", "parameter_version", "learner_updates", "episodes", "seconds")
_NOTHING: Mapping[str, Any] = {"env_steps": 0, "learner_updates": 0, "steps_received": 0, "dropped_by_rule": {}, "steps_lost": 0}


class Accounts:
    """Holds each line of metrics against the one before, and the first line of each learner process against what was left to it.

    Attributes:
        violations: what does not add up, in words.
        lines, deaths: seen so far.
        newest: the last line.
    """

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.lines = self.deaths = 0
        self.newest: Mapping[str, Any] | None = None
        # What the next process has to begin with, by name.
        self._owed: Mapping[str, Any] | None = None

    def add(self, line: Mapping[str, Any]) -> None:
        """Takes in the next line."""
        self.lines += 1
        self._balances(line)
        if self.newest is not None:
            self._goes_on(self.newest, line)
        if self._owed is not None:
            self._begins(self._owed, line)
            self._owed = None
        self.newest = line

    def add_death(self, kept: Mapping[str, Any] | None, counted: Mapping[str, Any] | None = None) -> None:
        """Takes in that the learner process has ended, all its lines having been added.

        Args:
            kept: the state of the newest checkpoint; None where there is none.
            counted: the counters that outlived the process (`run_directory.counters`); None where there are none.
        """
        self.deaths += 1
        checkpoint, shown = kept or _NOTHING, self.newest
        base = shown if shown is not None and _progress(shown) >= _progress(checkpoint) else checkpoint
        if counted is not None:
            steps = sum(counted["trained_by_task"])
            if steps + sum(counted["dropped_by_rule"].values()) >= base["env_steps"] + sum(base["dropped_by_rule"].values()):
                base = {**base, **counted, "env_steps": steps}
        dropped = dict(base["dropped_by_rule"])
        waited = base["steps_received"] - base["env_steps"] - sum(dropped.values())
        self._owed = {
            "env_steps": base["env_steps"],
            "learner_updates": base["learner_updates"],
            "restart": dropped.get("restart", 0) + waited,
            "steps_lost": checkpoint["steps_lost"] + base["env_steps"] - checkpoint["env_steps"],
            "steps_received": base["steps_received"],
        }

    @property
    def owed_updates(self) -> int:
        """Updates that the next process begins with: any more are new ones."""
        return 0 if self._owed is None else int(self._owed["learner_updates"])

    def close(self, acknowledged: int) -> None:
        """Takes in how many steps actors were told, once each, that the learner has them: it must know of as many."""
        received = 0 if self.newest is None else self.newest["steps_received"]
        if acknowledged > received:
            self.violations.append(f"at the end: {acknowledged} steps were acknowledged, and {received} are said to have come")

    def _balances(self, line: Mapping[str, Any]) -> None:
        if line["steps_received"] != line["steps_trained"] + line["steps_dropped"] + line["steps_waiting"]:
            self._note(line, "received is not trained + dropped + waiting")
        if line["steps_dropped"] != sum(line["dropped_by_rule"].values()):
            self._note(line, "dropped is not the sum over the rules")
        if line["env_steps"] != line["steps_trained"]:
            self._note(line, "env_steps is not steps_trained")
        if not 0 <= line["steps_lost"] <= line["steps_trained"]:
            self._note(line, "steps_lost is no part of steps_trained")
        if line["steps_waiting"] < 0:
            self._note(line, "fewer than none wait")

    def _goes_on(self, before: Mapping[str, Any], line: Mapping[str, Any]) -> None:
        for name in NEVER_BACK:
            if line[name] < before[name]:
                self._note(line, f"{name} went back from {before[name]} to {line[name]}")
        for rule, steps in before["dropped_by_rule"].items():
            if line["dropped_by_rule"].get(rule, 0) < steps:
                self._note(line, f"dropped by {rule} went back from {steps}")
        # A learner that stops in good order leaves callers in line their unrolls: they were never received.
        if line["steps_received"] < before["steps_received"] and line.get("ended") != "stopped":
            self._note(line, f"steps_received went back from {before['steps_received']} to {line['steps_received']}")

    def _begins(self, owed: Mapping[str, Any], line: Mapping[str, Any]) -> None:
        came = {**line, "restart": line["dropped_by_rule"].get("restart", 0)}
        for name in ("env_steps", "learner_updates", "restart", "steps_lost"):
            if came[name] != owed[name]:
                self._note(line, f"a new process began with {name} of {came[name]}, and {owed[name]} was left to it")
        if line["steps_received"] < owed["steps_received"]:
            self._note(line, f"a new process began with {line['steps_received']} received of {owed['steps_received']}")

    def _note(self, line: Mapping[str, Any], what: str) -> None:
        self.violations.append(f"line {self.lines}, at {line['seconds']} s: {what}")


def _progress(counters: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns what tells the later of a line and a checkpoint: steps never come back from where they went."""
    return counters["env_steps"], counters["steps_received"], sum(counters["dropped_by_rule"].values())


class Tail:
    """Reads a file of JSON lines as it grows. A line that is torn is passed over, and counted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.torn = 0

    def read(self) -> list[dict[str, Any]]:
        """Returns the lines that were completed since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        lines: list[dict[str, Any]] = []
        for text in whole.splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                self.torn += 1
        return lines
