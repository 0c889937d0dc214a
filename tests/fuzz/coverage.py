"""Coverage-guided decoding: libFuzzer, through atheris, chooses what to mutate on."""

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

from tests.fuzz.decode import Campaign


def run_atheris(campaign: Campaign, seed: int, max_input: int, finish: Callable[[], int]) -> None:
    """Tries as many inputs as the campaign wants, then calls `finish` and ends the process with what that returns.

    The first byte of libFuzzer's inputs is the place of a target.
    """
    targets: list[Any] = campaign.weighted

    def one_input(data: bytes) -> None:
        if data:
            campaign.try_input(targets[data[0] % len(targets)], data[1:])
        if campaign.done:
            code = finish()
            shutil.rmtree(corpus, ignore_errors=True)
            campaign.close()
            sys.stdout.flush()
            os._exit(code)

    def mutate(data: bytes, max_size: int, mutation_seed: int) -> bytes:
        rng = random.Random(mutation_seed)
        if not data or rng.random() < 0.1:
            index = rng.randrange(len(targets))
            data = bytes([index]) + rng.choice(targets[index].seeds)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, max_size))
        changed = targets[data[0] % len(targets)].mutate(data[1:], rng)
        return (data[:1] + changed)[:max_size]

    corpus = Path(tempfile.mkdtemp(prefix="impala-fuzz-"))
    for index, target in enumerate(targets):
        for place, content in enumerate(target.seeds):
            if targets.index(target) == index:
                (corpus / f"{target.name}-{place}").write_bytes(bytes([index]) + content)
    # Slow inputs are findings by their own processor time; libFuzzer goes by the clock, and leaves a file for each.
    limits = ["-rss_limit_mb=4096", "-timeout=60", "-report_slow_units=60", f"-artifact_prefix={corpus}/"]
    flags = [f"-seed={seed + 1}", f"-max_len={max_input}", *limits, "-reload=0", "-verbosity=0"]
    # New inputs go to the first folder; the seeds are read from it too.
    atheris.Setup([sys.argv[0], *flags, str(corpus)], one_input, custom_mutator=mutate)
    atheris.Fuzz()
