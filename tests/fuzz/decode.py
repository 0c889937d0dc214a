"""Fuzzes everything that reads messages and files, within this process.

    python -m tests.fuzz.decode --messages 1000000 --seed 0
    python -m tests.fuzz.decode --engine random          without coverage; needs nothing but the project

With atheris (dependency group `fuzz`) inputs that reach new lines of the project's code are kept and mutated further, two thirds of
the time as `tests.fuzz.mutations` does, else as libFuzzer does. Ends with code 1 where there is a finding, each shown once, or
where memory grew by more than 50 MB.
"""

import argparse
import base64
import importlib.util
import json
import logging
import random
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.observe import memory_megabytes
from tests.fuzz.results import current_commit, write_part

# A bomb that goes off is a MemoryError, which no target documents.
_SPARE_BYTES = 1 << 30
_SLOW_SECONDS = 2.0
_WARM_SHARE = 0.1
_MAX_INPUT = 1 << 16
# Instrumented for coverage: what reads.
_WATCHED = [
    "impala.wire",
    "impala.config",
    "impala.specs",
    "learner_server.servicer",
    "learner_server.actor_registry",
    "run_directory",
]


class Campaign:
    """Counts inputs, and keeps one of each kind of finding."""

    def __init__(self, messages: int) -> None:
        from tests.fuzz.targets import make_targets

        self.messages = messages
        self.targets = make_targets()
        self.weighted = [target for target in self.targets for _ in range(target.weight)]
        self.inputs, self.taken = Counter[str](), Counter[str]()
        self.findings: dict[str, dict[str, Any]] = {}
        self.started = time.monotonic()
        self.warm_megabytes: float | None = None

    @property
    def done(self) -> bool:
        return self.inputs.total() >= self.messages

    def try_input(self, target: Any, data: bytes) -> None:
        """Hands an input to its target."""
        self.inputs[target.name] += 1
        began = time.thread_time()
        try:
            self.taken[target.name] += target.check(data)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._keep(f"{target.name}: {type(error).__name__} at {Path(where.filename).name}:{where.lineno}", error, data)
        if time.thread_time() - began > _SLOW_SECONDS:
            self._keep(f"{target.name}: slow", TimeoutError(f"{time.thread_time() - began:.1f} s"), data)
        if self.warm_megabytes is None and self.inputs.total() >= _WARM_SHARE * self.messages:
            self.warm_megabytes = memory_megabytes()

    def _keep(self, kind: str, error: Exception, data: bytes) -> None:
        if kind in self.findings:
            self.findings[kind]["times"] += 1
            return
        text = "".join(traceback.format_exception(error))[-2000:]
        self.findings[kind] = {"error": repr(error)[:300], "times": 1, "input_base64": base64.b64encode(data[:4096]).decode()}
        print(f"FINDING {kind}\n{text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Removes what the targets wrote."""
        from tests.fuzz.targets import remove_folders

        remove_folders()

    def report(self, engine: str) -> dict[str, Any]:
        """Returns what was done and found."""
        end = memory_megabytes()
        return {
            "engine": engine,
            "messages": self.inputs.total(),
            "taken": self.taken.total(),
            "by_target": {name: {"messages": count, "taken": self.taken[name]} for name, count in sorted(self.inputs.items())},
            "seconds": round(time.monotonic() - self.started, 1),
            "resident_megabytes": {
                "start": self.warm_megabytes,
                "end": end,
                "growth": round(end - (self.warm_megabytes or end), 1),
            },
            "start_is_taken_after_messages": int(_WARM_SHARE * self.messages),
            "findings": self.findings,
        }


def run_random(campaign: Campaign, seed: int) -> None:
    """Mutates seeds, and what came of them a few times over."""
    rng = random.Random(seed)
    while not campaign.done:
        target = rng.choice(campaign.weighted)
        data = rng.choice(target.seeds)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            data = target.mutate(data, rng)
        campaign.try_input(target, data)


def _engine(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    return "atheris" if importlib.util.find_spec("atheris") else "random"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("auto", "atheris", "random"), default="auto")
    parser.add_argument("--output", type=Path, help="where to write the figures, under `decode`")
    chosen = parser.parse_args(arguments)
    chosen.commit = current_commit()
    engine = _engine(chosen.engine)
    if engine == "atheris":
        import atheris

        # All of these are imported late, here, so that they can be instrumented; torch and NumPy are not.
        with atheris.instrument_imports(include=_WATCHED):
            import tests.fuzz.targets  # noqa: F401
    # A learner's log of refused calls; faults of its own come to us as INTERNAL.
    logging.disable(logging.CRITICAL)
    campaign = Campaign(chosen.messages)
    _limit_memory()
    if engine == "random":
        run_random(campaign, chosen.seed)
        campaign.close()
        return _finish(campaign, engine, chosen)
    from tests.fuzz.coverage import run_atheris

    run_atheris(campaign, chosen.seed, _MAX_INPUT, lambda: _finish(campaign, engine, chosen))
    raise AssertionError("libFuzzer ends the process")


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _finish(campaign: Campaign, engine: str, chosen: argparse.Namespace) -> int:
    figures = {"seed": chosen.seed, **campaign.report(engine)}
    print(json.dumps({name: value for name, value in figures.items() if name != "findings"}, indent=2))
    print(f"{len(campaign.findings)} findings: {list(campaign.findings)}", flush=True)
    if chosen.output:
        write_part(chosen.output, "decode", figures, chosen.commit)
    return 1 if campaign.findings or figures["resident_megabytes"]["growth"] > 50 else 0


if __name__ == "__main__":
    sys.exit(main())
