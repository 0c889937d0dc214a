"""Soak: hours of training with actors that come and go every few seconds, and what learner and a long-lived actor hold meanwhile.

    python -m benchmarks.soak --hours 2 --seed 0 --output benchmarks/soak.json

Environments sleep, so that it leaves the processor to others: see `benchmarks.slow_cartpole`. Half of the actors that come leave
by SIGTERM, half by SIGKILL; every fifth comes under the name of one that has gone. The learner writes checkpoints every few
seconds and answers Prometheus. What both hold is read every 10 s and appended to OUTPUT with the ending .jsonl. Exit code 1 if
memory grew by 2% or more after the first 10 minutes, descriptors or threads did not stay flat, an account does not balance, or an
actor ended otherwise than it was told to.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.passers_by import PassersBy
from benchmarks.processes import Reading, end, free_ports, start, wait_until_listening
from benchmarks.slow_cartpole import ENVIRONMENT, MODULE
from run_directory.journal import read_metrics
from run_directory.layout import RunDirectory

READ_SECONDS = 10.0
WARM_UP_SECONDS = 600.0
MOST_GROWTH = 0.02
# Figures of a moment are noisy: connections come and go. Medians of these many seconds are compared.
WINDOW_SECONDS = 300.0
# A descriptor or two a connection, and those that come and go vary.
MOST_MORE = 2


def learner_flags(run: Path, address: str, metrics: str, seed: int) -> list[str]:
    # Two unrolls of four environments are a batch: a few batches a second.
    flags = ["--env", ENVIRONMENT, "--allow-module", MODULE, "--env-kwargs", '{"sleep_seconds": 0.025}', "--envs", "4"]
    flags += ["--batch-size", "8", "--total-steps", "1000000000", "--seed", str(seed), "--run-dir", str(run)]
    return [*flags, "--listen", address, "--metrics", metrics, "--checkpoint-seconds", "10", "--actors", "0"]


def growth(readings: Sequence[Mapping[str, Any]], who: str, warm_up: float, window: float) -> dict[str, Any]:
    """Returns how memory, descriptors and threads of one process changed from the end of the warm-up to the end.

    Each is the median of the readings of a window: the first after the warm-up, and the last.
    """
    last_at = readings[-1]["seconds"]
    first = [line[who] for line in readings if warm_up <= line["seconds"] < warm_up + window]
    last = [line[who] for line in readings if line["seconds"] > last_at - window]
    figures: dict[str, Any] = {}
    for name in ("resident_kib", "anonymous_kib", "descriptors", "threads"):
        before, after = (statistics.median(reading[name] for reading in readings) for readings in (first, last))
        figures[name] = {"after_warm_up": before, "at_the_end": after, "most": max(line[who][name] for line in readings)}
    figures["processor_share"] = round(readings[-1][who]["cpu_seconds"] / last_at, 4)
    resident = figures["resident_kib"]
    figures["growth"] = round(resident["at_the_end"] / resident["after_warm_up"] - 1.0, 5)
    return figures


def faults_of(report: Mapping[str, Any]) -> list[str]:
    """Returns what is not as it must be."""
    faults = []
    for who in ("learner", "actor"):
        figures = report[who]
        if figures["growth"] >= MOST_GROWTH:
            faults.append(f"{who}: memory grew by {figures['growth']:.1%}")
        for name in ("descriptors", "threads"):
            more = figures[name]["at_the_end"] - figures[name]["after_warm_up"]
            if more > MOST_MORE:
                faults.append(f"{who}: {more:g} more {name}")
    if report["seconds"] < report["seconds_asked_for"]:
        faults.append(f"a program ended after {report['seconds']} s")
    if report["scrapes_without_an_answer"]:
        faults.append(f"{report['scrapes_without_an_answer']} scrapes without an answer")
    faults += [f"{name} ended with {code}" for name, code in report["ended_badly"]]
    if not report["accounts_balance"]:
        faults.append("a line of metrics does not balance")
    faults += [f"{who} ended with {code}" for who, code in report["exit_codes"].items() if code]
    return faults


def soak(seconds: float, seed: int, mean_gap: float, folder: Path, journal: Path) -> dict[str, Any]:
    """Returns the report of a soak; readings are appended to `journal` as it goes."""
    run, (port, metrics_port) = folder / "run", free_ports(2)
    address, metrics = f"127.0.0.1:{port}", f"127.0.0.1:{metrics_port}"
    programs = {"learner": start("learner_server", *learner_flags(run, address, metrics, seed), output=folder / "learner.log")}
    readings: list[dict[str, Any]] = []
    arguments = ["--learner", address, "--allow-module", MODULE]
    passers_by = PassersBy(arguments, seed=seed, mean_gap=mean_gap)
    began = time.monotonic()
    try:
        wait_until_listening(programs["learner"], folder / "learner.log")
        programs["actor"] = start("actor_client", *arguments, "--name", "long-lived", output=folder / "actor.log")
        began = time.monotonic()
        next_reading = began + READ_SECONDS
        while (now := time.monotonic()) < began + seconds and all(process.poll() is None for process in programs.values()):
            passers_by.look_after()
            if now >= next_reading:
                next_reading += READ_SECONDS
                line = {"seconds": round(now - began, 1), "joined": passers_by.joined}
                line |= {who: Reading.of(process.pid).to_json() for who, process in programs.items()}
                line["scraped"] = scrape(metrics)
                readings.append(line)
                with journal.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            time.sleep(0.1)
    finally:
        passers_by.close()
        codes = {who: end(programs[who]) for who in ("actor", "learner") if who in programs}
    report = summary(readings, passers_by, RunDirectory(run))
    return {**report, "exit_codes": codes, "seconds": round(now - began), "seconds_asked_for": round(seconds)}


def scrape(address: str) -> float | None:
    """Returns the learner's updates as Prometheus is told them, or None where it did not answer."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30.0) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return None
    return sum(float(line.split()[1]) for line in lines if line.startswith("impala_learner_updates_total "))


def summary(readings: Sequence[Mapping[str, Any]], passers_by: PassersBy, run: RunDirectory) -> dict[str, Any]:
    lines, last_at = read_metrics(run.metrics), readings[-1]["seconds"]
    # Of a trial that is too short for a warm-up: what it has.
    warm_up, window = min(WARM_UP_SECONDS, last_at / 3), min(WINDOW_SECONDS, last_at / 3)
    balance = all(line["steps_received"] == line["steps_trained"] + line["steps_dropped"] + line["steps_waiting"] for line in lines)
    return {
        **{who: growth(readings, who, warm_up, window) for who in ("learner", "actor")},
        "warm_up_seconds": warm_up,
        "growth_is_of": f"medians of {window:.0f} s",
        "joined": passers_by.joined,
        "came_back": passers_by.came_back,
        "terminated": passers_by.terminated,
        "killed": passers_by.killed,
        "ended_badly": passers_by.ended_badly,
        "updates": lines[-1]["learner_updates"],
        "env_steps": lines[-1]["env_steps"],
        "refused": lines[-1]["refused"],
        "scrapes_without_an_answer": sum(line["scraped"] is None for line in readings),
        "lines_of_metrics": len(lines),
        "accounts_balance": balance,
        "ended": lines[-1].get("ended"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mean-gap", type=float, default=5.0, help="seconds between two actors that come")
    parser.add_argument("--output", type=Path, default=Path("soak.json"))
    parser.add_argument("--keep", type=Path, help="folder for logs and the run directory; default: a temporary one")
    arguments = parser.parse_args()
    journal = arguments.output.with_suffix(".jsonl")
    journal.unlink(missing_ok=True)
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"readings: {journal}; logs and run: {folder}", flush=True)
    report = soak(arguments.hours * 3600.0, arguments.seed, arguments.mean_gap, folder, journal)
    faults = faults_of(report)
    command = f"python -m benchmarks.soak {' '.join(sys.argv[1:])}"
    arguments.output.write_text(json.dumps({"command": command, **report, "faults": faults}, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    print("\n".join(faults) or "sound", flush=True)
    if not arguments.keep and not faults:
        shutil.rmtree(folder)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
