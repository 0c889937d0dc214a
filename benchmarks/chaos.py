"""Chaos: one run under hundreds of faults at random times, which must solve its task with every step accounted for.

    python -m benchmarks.chaos --seed 0 --faults 200 --minutes 30 --output benchmarks/chaos.json

A learner and actors, each started again whenever it ends, as an orchestrator would; each actor calls through a proxy of its own.
Faults (`benchmarks.chaos_faults`) are drawn from the seed, at random times from the first update on: SIGKILL of the learner at any
time and in the midst of writing a checkpoint, SIGTERM, SIGKILL of actors, SIGSTOP of either, black holes, resets and delay. They
overlap as they may. Environments sleep (`benchmarks.slow_cartpole`), so that the processor is half idle; until the last fault is
over the run may not end, then the learner is started with the return at which CartPole counts as solved. Every line of metrics is
held against the one before, and every learner process against what was left to it (`benchmarks.chaos_accounts`). Exit code 1 if the
run is not solved, or anything does not add up, or a program ended that was not told to.
"""

import argparse
import asyncio
import json
import math
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos_accounts import Accounts, Tail
from benchmarks.chaos_faults import Fault, Kind, draw_faults
from benchmarks.chaos_proxy import Proxy
from benchmarks.processes import free_ports
from benchmarks.slow_cartpole import ENVIRONMENT, MODULE
from benchmarks.supervised import Life, Supervised
from benchmarks.witness import read_book
from impala.errors import CheckpointError
from run_directory.checkpoint import load_checkpoint
from run_directory.counters import read_counters
from run_directory.layout import RunDirectory

SOLVED_AT = 475.0
LOOK_SECONDS = 0.05
# A checkpoint is written every second; a learner that is stopped or just starting takes longer.
WRITING_SECONDS = 120.0
FIRST_UPDATE_SECONDS = 120.0


@dataclass
class Injected:
    """A fault that happened: from when to when by `time.monotonic`, and whether it found what it was meant for."""

    fault: Fault
    began: float
    ended: float
    hit: bool


@dataclass
class Recovery:
    """From a learner's SIGKILL to the first update that is newer than any before it."""

    killed: float
    updates: int
    updated: float = math.inf

    @property
    def seconds(self) -> float:
        """What it took; infinity while there is none."""
        return self.updated - self.killed


@dataclass
class Chaos:
    """One run with its programs, proxies and faults."""

    folder: Path
    seed: int
    actors: int
    sleep_seconds: float
    injected: list[Injected] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run = RunDirectory(self.folder / "run")
        self._one_writing = asyncio.Lock()
        self.accounts, self.tail = Accounts(), Tail(self.run.metrics)
        (self._port,) = free_ports(1)
        self.learner = Supervised("learner_server", self._flags(), self.folder / "learner.log", at_death=self._learner_died)
        self.proxies = [Proxy(self._port) for _ in range(self.actors)]
        self.clients: list[Supervised] = []

    def _flags(self, *more: str) -> list[str]:
        flags = ["--preset", "cartpole", "--env", ENVIRONMENT, "--allow-module", MODULE, "--seed", str(self.seed)]
        flags += ["--env-kwargs", json.dumps({"sleep_seconds": self.sleep_seconds}), "--total-steps", "5000000", "--envs", "8"]
        flags += ["--stop-at-return", "501", "--listen", f"127.0.0.1:{self._port}", "--run-dir", str(self.run.path)]
        return [*flags, "--checkpoint-seconds", "1", "--log-seconds", "0.2", *more]

    async def go(self, faults: Sequence[Fault], patience: float) -> dict[str, Any]:
        """Returns the report."""
        for proxy in self.proxies:
            await proxy.start()
        self.clients = [self._client(index, proxy.port) for index, proxy in enumerate(self.proxies)]
        began = time.monotonic()
        running = [asyncio.create_task(program.run()) for program in (self.learner, *self.clients)]
        watching = asyncio.create_task(self._watch())
        try:
            await self._until(lambda: bool(self.accounts.newest and self.accounts.newest["learner_updates"]), FIRST_UPDATE_SECONDS)
            await self._inject(faults)
            faults_over = time.monotonic()
            codes = await self._solve(running, patience)
        finally:
            await self._end(running, watching)
        self._look()
        return {
            "solved": bool(self.accounts.newest and self.accounts.newest.get("ended") == "solved"),
            "exit_codes": codes,
            "minutes": round((time.monotonic() - began) / 60, 2),
            "minutes_of_faults": round((faults_over - began) / 60, 2),
            **self._report(),
        }

    def _client(self, index: int, port: int) -> Supervised:
        arguments = ["--learner", f"127.0.0.1:{port}", "--name", f"actor-{index}", "--allow-module", MODULE]
        return Supervised("benchmarks.witness", [str(self._book(index)), *arguments], self.folder / f"actor-{index}.log")

    def _book(self, index: int) -> Path:
        return self.folder / f"book-{index}"

    async def _until(self, condition: Any, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not (met := condition()) and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
        return bool(met)

    # --- what is seen

    async def _watch(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self) -> None:
        now = time.monotonic()
        for line in self.tail.read():
            self.accounts.add(line)
            for recovery in self.recoveries:
                if recovery.updated == math.inf and line["learner_updates"] > recovery.updates:
                    recovery.updated = now

    def _learner_died(self, life: Life) -> None:
        self._look()
        newest = max(self.run.checkpoints.glob("version-*"), default=None)
        state = None
        if newest is not None:
            try:
                state = load_checkpoint(newest).state
            except CheckpointError as error:
                self.accounts.violations.append(f"after {self.accounts.lines} lines: the newest checkpoint is not whole: {error}")
        self.accounts.add_death(state, read_counters(self.run.counters))
        if signal.SIGKILL in life.told and life.ended is not None:
            self.recoveries.append(Recovery(killed=life.ended, updates=self.accounts.owed_updates))

    # --- what goes wrong

    async def _inject(self, faults: Sequence[Fault]) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, began + fault.at - time.monotonic()))
                group.create_task(self._happen(fault))

    async def _happen(self, fault: Fault) -> None:
        began = time.monotonic()
        hit = await self._strike(fault)
        self.injected.append(Injected(fault, began, time.monotonic(), hit))
        print(f"{len(self.injected):4} {fault.kind} {'' if hit else '(missed)'}", flush=True)

    async def _strike(self, fault: Fault) -> bool:
        """Returns whether the fault found its victim."""
        learner, actor, proxies = self.learner, self.clients[fault.actor], self.proxies
        match fault.kind:
            case Kind.KILL_LEARNER:
                hit = learner.life.send(signal.SIGKILL)
            case Kind.KILL_LEARNER_IN_CHECKPOINT:
                hit = await self._kill_in_checkpoint()
            case Kind.TERMINATE_LEARNER:
                hit = learner.life.send(signal.SIGTERM)
            case Kind.KILL_ACTOR:
                hit = actor.life.send(signal.SIGKILL)
            case Kind.STOP_LEARNER:
                hit = await _stop(learner.life, fault.seconds)
            case Kind.STOP_ACTOR:
                hit = await _stop(actor.life, fault.seconds)
            case Kind.BLACK_HOLE_ACTOR:
                hit = await _black_hole([proxies[fault.actor]], fault.seconds)
            case Kind.BLACK_HOLE_ALL:
                hit = await _black_hole(proxies, fault.seconds)
            case Kind.RESET_ALL:
                hit = sum(proxy.reset() for proxy in proxies) > 0
            case Kind.DELAY_ALL:
                hit = await _delay(proxies, fault)
        return hit

    async def _kill_in_checkpoint(self) -> bool:
        """Kills the learner as soon as it writes a checkpoint; returns whether it was still writing when it died."""
        async with self._one_writing:  # each has a checkpoint of its own to strike
            left_behind, deadline = self._being_written(), time.monotonic() + WRITING_SECONDS
            # What an earlier one left behind is there until the next checkpoint is begun.
            while not self._being_written() - left_behind and time.monotonic() < deadline:
                await asyncio.sleep(0.002)
            struck = self.learner.life.send(signal.SIGKILL)
            return struck and bool(self._being_written() - left_behind)

    def _being_written(self) -> set[tuple[str, int]]:
        found = set()
        for path in self.run.checkpoints.glob(".writing-*"):
            try:
                found.add((path.name, path.stat().st_ino))
            except OSError:
                continue
        return found

    # --- the end

    async def _solve(self, running: Sequence["asyncio.Task[int]"], patience: float) -> list[int]:
        """Lets the run end at the return at which its task is solved; returns the exit codes, -1 of what did not end in time."""
        self.learner.arguments = self._flags("--stop-at-return", str(SOLVED_AT))
        while self.learner.life.arguments != self.learner.arguments:
            self.learner.life.send(signal.SIGTERM)
            await asyncio.sleep(2.0)
        for program in (self.learner, *self.clients):
            program.finish()
        done, _ = await asyncio.wait(running, timeout=patience)
        return [task.result() if task in done else -1 for task in running]

    async def _end(self, running: Sequence["asyncio.Task[int]"], watching: "asyncio.Task[None]") -> None:
        for program in (self.learner, *self.clients):
            program.finish()
            if program.lives:
                program.life.send(signal.SIGKILL)
        await asyncio.gather(*running, return_exceptions=True)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        for proxy in self.proxies:
            await proxy.close()

    def _report(self) -> dict[str, Any]:
        newest = self.accounts.newest or {}
        acknowledged = sum(sum(read_book(self._book(index)).values()) for index in range(self.actors))
        self.accounts.close(acknowledged)
        programs = (self.learner, *self.clients)
        account = ("steps_received", "steps_trained", "steps_dropped", "dropped_by_rule", "steps_waiting", "steps_lost")
        figures = ("learner_updates", "episodes", "mean_return_100", "parameter_version", "refused")
        return {
            "faults": dict(Counter(str(each.fault.kind) for each in self.injected)),
            "missed": dict(Counter(str(each.fault.kind) for each in self.injected if not each.hit)),
            "recovery": recovery_report(self.recoveries, self.injected, self.learner.lives),
            "processes": {"learner": len(self.learner.lives), "actors": [len(client.lives) for client in self.clients]},
            "surprises": [surprise for program in programs for surprise in program.surprises],
            "violations": self.accounts.violations,
            "lines_of_metrics": self.accounts.lines,
            "torn_lines": self.tail.torn,
            "acknowledged_steps": acknowledged,
            **{name: newest.get(name) for name in (*account, *figures)},
        }


async def _stop(life: Life, seconds: float) -> bool:
    if not life.send(signal.SIGSTOP):
        return False
    await asyncio.sleep(seconds)
    life.send(signal.SIGCONT)
    return True


async def _black_hole(proxies: Sequence[Proxy], seconds: float) -> bool:
    for proxy in proxies:
        proxy.hold()
    await asyncio.sleep(seconds)
    for proxy in proxies:
        proxy.release()
    return True


async def _delay(proxies: Sequence[Proxy], fault: Fault) -> bool:
    for proxy in proxies:
        proxy.delay_seconds = fault.delay_seconds
    await asyncio.sleep(fault.seconds)
    for proxy in proxies:
        proxy.delay_seconds = 0.0
    return True


def recovery_report(recoveries: Sequence[Recovery], injected: Sequence[Injected], lives: Sequence[Life]) -> dict[str, Any]:
    """Returns seconds from a learner's death by SIGKILL to the first new update: of all, and of those that nothing else disturbed.

    Beside them what a learner process takes from its start until it listens.
    """
    whole = [each for each in recoveries if each.updated < math.inf]
    undisturbed = [each for each in whole if not _disturbed(each, injected, lives)]
    return {
        "kills": len(recoveries),
        "without_a_new_update": len(recoveries) - len(whole),
        "all": _spread([each.seconds for each in whole]),
        "undisturbed": _spread([each.seconds for each in undisturbed]),
        "undisturbed_from_listening": _spread([_from_listening(each, lives) for each in undisturbed]),
        "process_start": _spread([life.listens - life.began for life in lives if life.listens is not None]),
    }


def _disturbed(recovery: Recovery, injected: Sequence[Injected], lives: Sequence[Life]) -> bool:
    """Whether any other fault went on at some time between the kill and the first update after it."""
    others = [each for each in injected if each.ended > recovery.killed and each.began < recovery.updated]
    starts = [life for life in lives if recovery.killed <= life.began < recovery.updated]
    return bool(others) or len(starts) > 1


def _from_listening(recovery: Recovery, lives: Sequence[Life]) -> float:
    """Returns what is left of a recovery that one process made, its start taken off."""
    listening = [life.listens for life in lives if life.listens is not None]
    return recovery.updated - min(listens for listens in listening if listens > recovery.killed)


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {"count": 0}
    ordered = sorted(seconds)
    figures = {"median": statistics.median(ordered), "worst": ordered[-1], "p90": ordered[int(0.9 * (len(ordered) - 1))]}
    return {"count": len(ordered), **{name: round(value, 2) for name, value in figures.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30.0, help="that the faults are spread over")
    parser.add_argument("--actors", type=int, default=4)
    parser.add_argument("--sleep-seconds", type=float, default=0.02, help="that a step of an actor takes")
    parser.add_argument("--longest-seconds", type=float, default=60.0, help="that a fault lasts")
    parser.add_argument("--patience-minutes", type=float, default=15.0, help="to be solved in when the faults are over")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for logs and the run directory; default: a temporary one")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    seconds, longest = arguments.minutes * 60.0, arguments.longest_seconds
    faults = draw_faults(arguments.seed, arguments.faults, seconds, arguments.actors, longest=longest)
    chaos = Chaos(folder, arguments.seed, arguments.actors, arguments.sleep_seconds)
    report = asyncio.run(chaos.go(faults, arguments.patience_minutes * 60.0))
    print(json.dumps(report, indent=2))
    if arguments.output:
        command = f"python -m benchmarks.chaos {' '.join(sys.argv[1:])}"
        arguments.output.write_text(json.dumps({"command": command, **report}, indent=2) + "\n")
    sound = report["solved"] and not any(report["exit_codes"]) and not report["violations"] and not report["surprises"]
    print("sound" if sound else f"not sound: see {folder}", flush=True)
    if sound and not arguments.keep:
        shutil.rmtree(folder)
    sys.exit(not sound)


if __name__ == "__main__":
    main()
