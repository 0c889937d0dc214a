"""The network fails and actors stop: how soon both sides notice, what it costs the others, and how soon all is as before.

    sudo python -m benchmarks.faults --seed 0 --output benchmarks/faults.json

Plays, each on a new learner (preset cartpole) behind a simulated link (benchmarks/link.py):

- black-hole-in-line, black-hole-idle: packets of one of two actors vanish, one that sends without a pause (its calls wait in
  line), and one that collects for 45 s, so that no call is open
- reset: every connection is reset, three times
- loss, reordering: 5% of packets lost; 20% up to 8 ms late; both beside a clean link of the same delay
- partition: the only actor is cut off for --partition-seconds
- stopped-collecting, stopped-half-sent: an actor stands still for --stop-seconds (SIGSTOP), and wakes
- stampede: the learner of --crowd actors is killed and started again

Needs Linux, root and iproute2. Exit code 1 where something asked for is missed: noticed within 30 s, a stopped actor's unroll
answered stale, everyone back, every step counted once. Speed is reported, not judged.
"""

import argparse
import json
import signal
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.stage import stage, wait_for
from protos import impala_pb2 as pb

_NOTICE_SECONDS = 30.0
_RATE_SECONDS = 8.0
_STEADY_SECONDS = 3.0


def black_hole(arguments: argparse.Namespace, *, pause: float) -> dict[str, Any]:
    """Cuts one of two actors off until both ends have noticed, and lets it come back."""
    with stage(seed=arguments.seed) as on:
        other = on.actor(on.link.learner, "other")
        victim = on.crowd(on.link.actors, "--name", "victim", "--environments", "32", "--pause", str(pause))
        wait_for(lambda: on.events(victim, "joined") and on.steps_of("other"), "both actors")
        time.sleep(_STEADY_SECONDS)
        descriptors, before, updates = on.descriptors(), on.rate("other", _RATE_SECONDS), on.last()["learner_updates"]
        on.link.break_off(broken=True)
        steps, cut = on.steps_of("other"), time.monotonic()
        noticed = _first_times(
            _NOTICE_SECONDS + 15.0,
            actor_has_let_go=lambda: not on.seen_from_actors(),
            learner_has_let_go=lambda: not on.seen_from_learner(),
            actor_not_counted=lambda: on.last()["actors"] == 1,
        )
        unnoticed = round((on.steps_of("other") - steps) / (time.monotonic() - cut))
        told = on.events(victim, "reached", reached=False)
        during, without = on.rate("other", _RATE_SECONDS), on.descriptors()
        back = time.monotonic()
        on.link.break_off(broken=False)
        result = {
            "seconds_until": noticed,
            "client_told_its_actor": bool(told),
            "learner_descriptors": {"before": descriptors, "cut_off": without},
            "other_steps_per_second": {"before": before, "until_noticed": unnoticed, "later": during},
            "longest_time_without_an_update": on.longest_pause(updates),
        }
        # Accepted or not: what was collected for long is stale by then on a machine that makes many versions meanwhile.
        first = wait_for(lambda: on.events(victim, "answered", since=back), "an answer to the victim")
        result["seconds_to_first_answer"] = round(first, 2)
        result["retries_answered_as_duplicates"] = len(on.events(victim, "answered", duplicate=True))
        assert other.poll() is None
        result["unbalanced"] = on.unbalanced()
        result["met"] = None not in [noticed["actor_has_let_go"], noticed["learner_has_let_go"]] and not result["unbalanced"]
        return result


def _first_times(patience: float, **conditions: Any) -> dict[str, float | None]:
    """Returns after how many seconds each condition was first seen to hold, None where it never was."""
    began = time.monotonic()
    times: dict[str, float | None] = dict.fromkeys(conditions)
    while None in times.values() and time.monotonic() - began < patience:
        for name, holds in conditions.items():
            if times[name] is None and holds():
                times[name] = round(time.monotonic() - began, 2)
        time.sleep(0.1)
    return times


def reset(arguments: argparse.Namespace) -> dict[str, Any]:
    """Resets every connection, again and again."""
    with stage(seed=arguments.seed) as on:
        crowd = on.crowd(on.link.actors, "--actors", "4", "--name", "reset", "--environments", "8")
        actor = on.actor(on.link.actors, "real")
        wait_for(lambda: len(on.events(crowd, "joined")) == 4 and on.steps_of("real"), "the actors")
        waits = []
        for _ in range(3):
            time.sleep(_STEADY_SECONDS)
            at, steps = time.monotonic(), on.steps_of("real")
            on.reset_connections()

            def all_are_back(at: float = at, steps: int = steps) -> bool:
                names = {each["actor"] for each in on.events(crowd, "answered", since=at, accepted=True)}
                return len(names) == 4 and on.steps_of("real") > steps

            waits.append(round(wait_for(all_are_back, "accepted unrolls of all five"), 2))
        assert actor.poll() is None
        answers = on.events(crowd, "answered")
        on.learner.send_signal(signal.SIGTERM)
        on.learner.wait()
        sent, counted = _steps_of_crowd(answers, 8), sum(on.steps_of(f"reset-{index}") for index in range(4))
        result = {
            "seconds_to_go_on": waits,
            "retries_answered_as_duplicates": sum(each["duplicate"] for each in answers),
            # What was accepted but not yet answered when the run was stopped: one unroll each at most.
            "steps_counted_beyond_those_answered": counted - sent,
            "unbalanced": on.unbalanced(),
        }
        result["met"] = not result["unbalanced"] and 0 <= counted - sent <= 4 * 8 * 20
        return result


def _steps_of_crowd(answers: list[dict[str, Any]], environments: int) -> int:
    return sum(each["accepted"] for each in answers) * environments * 20


def impairment(arguments: argparse.Namespace, **faults: float) -> dict[str, Any]:
    """Returns two actors' rate over a link with such faults, beside that over the same link without, in turn."""
    with stage("--max-in-flight", "2", "--max-on-the-way", "16", round_trip=0.02, seed=arguments.seed) as on:
        actors = [on.actor(on.link.actors, f"actor-{index}") for index in range(2)]
        wait_for(lambda: all(on.steps_of(f"actor-{index}") for index in range(2)), "the actors")
        time.sleep(_STEADY_SECONDS)
        rates: dict[str, list[float]] = {"clean": [], "faulty": []}
        for _ in range(3):
            for name, measured in rates.items():
                on.link.set_faults(**(faults if name == "faulty" else {}))
                time.sleep(1.0)
                first, began = on.last()["env_steps"], time.monotonic()
                time.sleep(_RATE_SECONDS)
                measured.append(round((on.last()["env_steps"] - first) / (time.monotonic() - began)))
        assert all(actor.poll() is None for actor in actors)
        ratio = round(statistics.median(rates["faulty"]) / statistics.median(rates["clean"]), 3)
        result = {"faults": faults, "round_trip_ms": 20, "steps_per_second": rates, "ratio": ratio, **on.link.traffic()}
        result["unbalanced"] = on.unbalanced()
        result["met"] = not result["unbalanced"] and min(rates["faulty"]) > 0
        return result


def partition(arguments: argparse.Namespace) -> dict[str, Any]:
    """Cuts the only actor off for long, so that nobody has anything to do, and watches memory on both sides."""
    with stage(seed=arguments.seed) as on:
        victim = on.actor(on.link.actors, "victim")
        wait_for(lambda: on.steps_of("victim"), "the actor")
        time.sleep(4 * _STEADY_SECONDS)

        def memory() -> dict[str, float]:
            return {"learner": on.mebibytes(on.learner), "actor": on.mebibytes(victim)}

        samples = [memory()]
        on.link.break_off(broken=True)
        ends = time.monotonic() + arguments.partition_seconds
        while (left := ends - time.monotonic()) > 0:
            time.sleep(min(left, max(5.0, arguments.partition_seconds / 20)))
            samples.append(memory())
        steps, back = on.steps_of("victim"), time.monotonic()
        on.link.break_off(broken=False)
        wait_for(lambda: on.steps_of("victim") > steps, "an accepted unroll of the victim")
        recovery = round(time.monotonic() - back, 2)
        time.sleep(4 * _STEADY_SECONDS)
        samples.append(memory())
        said = [line for line in on.processes.log(victim).splitlines() if "no answer" in line]
        result = {
            "partition_seconds": arguments.partition_seconds,
            "recovery_seconds": recovery,
            "mebibytes_before_during_after": samples,
            "complaints": len(said),
            "first_and_last_complaint": [said[0], said[-1]] if said else [],
            "unbalanced": on.unbalanced(),
        }
        result["met"] = not result["unbalanced"]
        return result


def stopped(arguments: argparse.Namespace, *, half_sent: bool) -> dict[str, Any]:
    """Stops an actor that collects while an unroll of its own is under way, or has half sent one, until its weights are old."""
    # 1,024 environments' unrolls of 100 steps take seconds on such a link, and are more than the kernel sends on its own.
    length, environments, megabits, pause = ("100", "1024", 4.0, "0") if half_sent else ("20", "32", 100.0, "0.05")
    flags = ["--environments", environments, "--pause", pause]
    limits = ["--max-policy-lag", "200", "--max-in-flight", "1" if half_sent else "2", "--unroll-length", length]
    with stage(*limits, megabits=megabits, seed=arguments.seed) as on:
        on.actor(on.link.learner, "other")
        on.bound_send_buffers(65_536)
        victim = on.crowd(on.link.actors, "--name", "victim", *flags)
        wait_for(lambda: on.events(victim, "answered", accepted=True) and on.steps_of("other"), "both actors")
        time.sleep(_STEADY_SECONDS)
        before, first = on.rate("other", _RATE_SECONDS), on.last()
        victim.send_signal(signal.SIGSTOP)
        at = time.monotonic()
        during = on.rate("other", _RATE_SECONDS)
        time.sleep(max(0.0, at + arguments.stop_seconds - time.monotonic()))
        held = {"connections": on.seen_from_learner(), "waiting_steps": on.last()["steps_waiting"]}
        stale = on.last()["dropped_by_rule"].get("stale", 0)
        pause = on.longest_pause(first["learner_updates"])
        victim.send_signal(signal.SIGCONT)
        woke = time.monotonic()
        accepted = wait_for(lambda: on.events(victim, "answered", since=woke, accepted=True, duplicate=False), "it goes on")
        time.sleep(1.0)
        answers = on.events(victim, "answered", since=woke)
        result = {
            "stopped_seconds": round(woke - at, 1),
            "other_steps_per_second": {"before": before, "stopped": during},
            "longest_time_without_an_update": pause,
            "held_when_it_woke": held,
            "first_answers": [{name: each[name] for name in ("accepted", "duplicate", "reason")} for each in answers[:3]],
            "seconds_to_first_accepted": round(accepted, 2),
            "stale_steps_counted": on.last()["dropped_by_rule"].get("stale", 0) - stale,
            "updates_meanwhile": on.last()["learner_updates"] - first["learner_updates"],
            "unbalanced": on.unbalanced(),
        }
        told_stale = any(each["reason"] == pb.REASON_STALE for each in answers)
        # One that was whole and in line was trained on, and is told so; what was half sent or being collected is the stale one.
        result["told_stale"] = told_stale
        result["met"] = told_stale and result["stale_steps_counted"] > 0 and not result["unbalanced"]
        return result


def stampede(arguments: argparse.Namespace) -> dict[str, Any]:
    """Kills a learner that has many actors, starts it again, and watches them return."""
    with stage("--max-in-flight", str(arguments.in_flight), seed=arguments.seed) as on:
        each = arguments.crowd // 2
        flags = ["--actors", str(each), "--environments", "1", "--pause", str(arguments.pause)]
        crowds = [on.crowd(on.link.learner, "--name", name, *flags) for name in ("a", "b")]

        def count(event: str, since: float, **fields: Any) -> int:
            return len({told["actor"] for crowd in crowds for told in on.events(crowd, event, since, **fields)})

        wait_for(lambda: count("answered", 0.0, accepted=True) == 2 * each, "everyone", 300.0)
        time.sleep(4 * _STEADY_SECONDS)
        first, began = on.last(), time.monotonic()
        time.sleep(_RATE_SECONDS)
        before = (on.last()["learner_updates"] - first["learner_updates"]) / (time.monotonic() - began)
        memory, descriptors, killed = on.mebibytes(on.learner), on.descriptors(), time.monotonic()
        on.kill_learner()
        on.start_learner()
        listens, learner_log = time.monotonic(), on.learner
        wait_for(lambda: count("answered", listens, accepted=True) == 2 * each, "everyone back", 300.0)
        joins = sorted(told["at"] - listens for crowd in crowds for told in on.events(crowd, "joined", killed))
        attempts = [told["at"] - listens for crowd in crowds for told in on.events(crowd, "join-attempt", killed)]
        back = _firsts([told for crowd in crowds for told in on.events(crowd, "answered", listens, accepted=True)], listens)
        peak = on.mebibytes(on.learner)
        time.sleep(4 * _STEADY_SECONDS)
        last, began = on.last(), time.monotonic()
        time.sleep(_RATE_SECONDS)
        after = (on.last()["learner_updates"] - last["learner_updates"]) / (time.monotonic() - began)
        return {
            "actors": 2 * each,
            "max_in_flight": arguments.in_flight,
            "seconds_to_collect": arguments.pause,
            "seconds_from_kill_to_listening": round(listens - killed, 2),
            "joins": len(joins),
            "join_attempts": len(attempts),
            "joins_by_half_second": _histogram(joins, 0.5),
            "most_joins_in_a_second": _most_within(joins, 1.0),
            "seconds_to_last_join": round(joins[-1], 2),
            "seconds_to_first_accepted": round(back[0], 2),
            "seconds_until_half_are_back": round(back[len(back) // 2], 2),
            "seconds_until_all_are_back": round(back[-1], 2),
            "learner_mebibytes": {"before": memory, "all_back": peak, "later": on.mebibytes(learner_log)},
            "learner_descriptors": {"before": descriptors, "later": on.descriptors()},
            "updates_per_second": {"before": round(before, 1), "after": round(after, 1)},
            "unbalanced": on.unbalanced(),
            "met": not on.unbalanced(),
        }


def _firsts(told: list[dict[str, Any]], since: float) -> list[float]:
    """Returns when each actor was first heard of, in order."""
    firsts: dict[str, float] = {}
    for each in told:
        firsts.setdefault(each["actor"], each["at"] - since)
    return sorted(firsts.values())


def _histogram(times: list[float], width: float) -> dict[str, int]:
    counts = Counter(int(each // width) for each in times)
    return {f"{index * width:g}": counts[index] for index in range(min(counts), max(counts) + 1)}


def _most_within(times: list[float], seconds: float) -> int:
    return max(sum(begin <= each < begin + seconds for each in times) for begin in times)


PLAYS: dict[str, Any] = {
    "black-hole-in-line": lambda arguments: black_hole(arguments, pause=0.0),
    "black-hole-idle": lambda arguments: black_hole(arguments, pause=45.0),
    "reset": reset,
    "loss": lambda arguments: impairment(arguments, loss=0.05),
    "reordering": lambda arguments: impairment(arguments, late=0.2, late_seconds=0.008),
    "stopped-collecting": lambda arguments: stopped(arguments, half_sent=False),
    "stopped-half-sent": lambda arguments: stopped(arguments, half_sent=True),
    "stampede": stampede,
    "partition": partition,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=PLAYS, default=list(PLAYS), help="which to play; the others' results stay")
    parser.add_argument("--partition-seconds", type=float, default=600.0)
    parser.add_argument("--stop-seconds", type=float, default=60.0)
    parser.add_argument("--crowd", type=int, default=1000, help="actors of the stampede")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds that each of them takes to collect an unroll")
    parser.add_argument("--in-flight", type=int, default=1, help="unrolls that each of them may have under way")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    # Namespaces and programs do not end by themselves.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results: dict[str, Any] = {}
    if arguments.output is not None and arguments.output.exists():
        results = json.loads(arguments.output.read_text())["results"]
    for name in arguments.only:
        results[name] = PLAYS[name](arguments)
        print(json.dumps({name: results[name]}), flush=True)
        if arguments.output is not None:
            record = {"command": f"python -m benchmarks.faults --seed {arguments.seed}", "machine": machine(), "results": results}
            arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(0 if all(results[name]["met"] for name in arguments.only) else 1)


if __name__ == "__main__":
    main()
