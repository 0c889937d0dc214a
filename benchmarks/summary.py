"""All figures of benchmarks/*.json beside what was asked for, in one place.

    python -m benchmarks.summary

writes benchmarks/results.json and prints it as a table for docs/performance.md. `make bench` ends with it. A benchmark that has not
been run has no figure. Exit code 1 where a figure falls short or is missing.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_FOLDER = Path("benchmarks")
_GAMES = ("Breakout", "Pong", "Seaquest", "SpaceInvaders")


def figures(read: Callable[[str], Any]) -> Iterator[tuple[str, str, Callable[[], float], str, float]]:
    """Yields what is asked for: the file with the raw numbers, a name, how to get the figure, ">=" or "<=", and the bound.

    Args:
        read: returns a benchmark's record by the name of its file.
    """

    def compare(what: str, name: str) -> Callable[[], float]:
        return lambda: float(read("compare")["summary"][what][name])

    def median(name: str, field: str) -> Callable[[], float]:
        return lambda: statistics.median(run[field] for run in read(name)["runs"])

    yield "throughput", "CartPole-v1, steps/s", median("throughput", "steps_per_second"), ">=", 200_000
    yield "compare", "CartPole-v1, as a share of the computed limit", compare("CartPole-v1", "ours_to_limit"), ">=", 0.35
    yield "compare", "CartPole-v1, times the best peer's steps/s", compare("CartPole-v1", "ours_to_best_peer"), ">=", 10
    for precision in ("", "_bfloat16"):
        name = f"Breakout, Nature network{precision.replace('_', ' in ')}, times the best peer's steps/s"
        yield "compare", name, compare("Breakout", f"ours{precision}_to_best_peer"), ">=", 3
    for game in ("Breakout", "Pong"):
        of_limit = compare(f"{game}, shallow", "ours_to_limit")
        yield "compare", f"{game}, shallow network, as a share of the computed limit", of_limit, ">=", 0.8
    solve = lambda: float(read("solve")["summary"]["solve"]["median_seconds"]["ours"])  # noqa: E731
    of_peer = lambda: float(read("solve")["summary"]["solve"]["ours_to_best_peer"])  # noqa: E731
    yield "solve", "CartPole-v1, seconds until the mean of 100 is 475", solve, "<=", 4
    yield "solve", "CartPole-v1, the same as a share of the best peer's", of_peer, "<=", 0.25
    yield "ingest", "Ingest of Breakout, agent steps/s", median("ingest", "steps_per_second"), ">=", 250_000
    shaped = median("ingest-100-megabits", "steps_per_second")
    yield "ingest-100-megabits", "Ingest over 100 Mbit/s, agent steps/s", shaped, ">=", 62_500
    for game in _GAMES:

        def wire(field: str, game: str = game) -> float:
            return float(read("wire")["games"][f"ALE/{game}-v5"]["compressed"][field])

        def both_ends(wire: Callable[[str], float] = wire) -> float:
            return wire("encode_microseconds_per_step") + wire("decode_microseconds_per_step")

        yield "wire", f"{game}, bytes a step on the wire", lambda wire=wire: wire("bytes_per_step"), "<=", 141
        yield "wire", f"{game}, microseconds a step, both ends", both_ends, "<=", 5
    for index, size in enumerate(((20, 32), (80, 32), (100, 256), (1000, 1024))):

        def vtrace(field: str, index: int = index) -> float:
            return float(read("vtrace")["sizes"][index][field])

        yield "vtrace", f"V-trace at {size}, times the plain loop", lambda v=vtrace: v("plain_loop_over_vtrace"), ">=", 8
        yield "vtrace", f"V-trace at {size}, times rlax", lambda v=vtrace: v("rlax_over_vtrace"), ">=", 1

    def scale(field: str) -> Callable[[], float]:
        return lambda: float(read("scale")["summary"][field])

    yield "scale", "Updates/s with 512 actors to those with 4", scale("updates_many_to_few"), ">=", 0.95
    p99 = scale("worst_p99_with_room_seconds")
    yield "scale", "p99 of a submission with room, ms, median of rounds", lambda: 1e3 * p99(), "<=", 20
    yield "scale", "Memory an actor with room, kB", scale("kilobytes_per_actor_with_room"), "<=", 100
    yield "scale", "Memory an actor, all in line, kB", scale("kilobytes_per_actor_all_in_line"), "<=", 100
    yield "polls", "Slower beside 1,000 polls a second", lambda: float(read("polls")["slower"]), "<=", 0.05
    for limit in ("learner", "actor"):
        waits = median(f"waits-{limit}", f"{limit}_wait_fraction")
        yield f"waits-{limit}", f"Share of its time that the {limit} waits, where it is the limit", waits, "<=", 0.05


def main() -> None:
    records: dict[str, Mapping[str, Any]] = {}

    def read(name: str) -> Any:
        if name not in records:
            records[name] = json.loads((_FOLDER / f"{name}.json").read_text())
        return records[name]

    results = []
    for source, name, figure, sign, bound in figures(read):
        try:
            value: float | None = figure()
        except (FileNotFoundError, KeyError, TypeError):
            value = None  # not run, or not against everything
        met = value is not None and (value >= bound if sign == ">=" else value <= bound)
        results.append({"figure": name, "asked": f"{sign} {bound:g}", "value": value, "met": met, "source": f"{source}.json"})
    (_FOLDER / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print("| figure | asked | measured | met |\n|---|--:|--:|---|")
    for result in results:
        said = (
            "not run"
            if result["value"] is None
            else f"{result['value']:,.4g}"
            if result["value"] < 1e4
            else f"{result['value']:,.0f}"
        )
        print(f"| {result['figure']} | {result['asked']} | {said} | {'yes' if result['met'] else 'no'} |")
    sys.exit(0 if all(result["met"] for result in results) else 1)


if __name__ == "__main__":
    main()
