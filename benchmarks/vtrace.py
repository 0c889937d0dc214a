"""How long V-trace takes: the plain loop in PyTorch, ours compiled and in torch, and rlax under jit, in one process, taking turns.

    python -m benchmarks.vtrace --output benchmarks/vtrace.json

rlax is timed where it can be imported (`pip install jax rlax`; it is no dependency). It is given ratios where the others are given
their logarithms, and arrays that are on its device already. Each figure is the median over the rounds, each round a mean over many
calls. Exit code 1 where the compiled loop is not at least 8 times as fast as the plain loop, is slower than rlax, or differs from
the recursion in float64 by more than 1e-5 of the targets.

With `--device cuda` there is no compiled loop, `vtrace` is the scan, and calls are timed until the device is done with them.

`--as-a-learner` prepares the process as impala-learner does: freed memory stays with it, which spares the plain loop the page
faults of large tensors.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import machine
from impala.processor import prepare_processor
from impala.vtrace import VTraceReturns, prepare_vtrace, vtrace, vtrace_in_torch

_SIZES = [(20, 32), (80, 32), (100, 256), (1000, 1024)]
_CLIPS = {"rho_bar": 1.0, "c_bar": 1.0, "pg_rho_bar": 1.0, "lambda_": 1.0}
_ROUND_SECONDS = 0.1
_AT_LEAST, _TOLERANCE = 8.0, 1e-5


@torch.no_grad()
def plain_loop(*, log_rhos: Tensor, discounts: Tensor, rewards: Tensor, values: Tensor, bootstrap_value: Tensor) -> VTraceReturns:
    """Returns what `vtrace` does, with all clips 1, by T small operators: what torchbeast does, and what this project did."""
    rhos = log_rhos.clamp(max=20.0).exp()
    next_values = torch.cat([values[1:], bootstrap_value.unsqueeze(0)])
    deltas = rhos.clamp(max=1.0) * (rewards + discounts * next_values - values)
    traces = discounts * rhos.clamp(max=1.0)
    error = torch.zeros_like(bootstrap_value)
    errors = []
    for delta, trace in zip(reversed(deltas.unbind()), reversed(traces.unbind()), strict=True):
        error = torch.addcmul(delta, trace, error)
        errors.append(error)
    vs = values + torch.stack(errors[::-1])
    next_vs = torch.cat([vs[1:], bootstrap_value.unsqueeze(0)])
    return VTraceReturns(vs=vs, pg_advantages=rhos.clamp(max=1.0) * (rewards + discounts * next_vs - values))


def make_case(length: int, columns: int, device: torch.device) -> dict[str, Tensor]:
    """Returns float32 arguments, [T, B], a twentieth of the rows ending an episode, half of those with a reset row behind."""
    generator = torch.Generator().manual_seed(length + columns)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    ends = torch.rand(length, columns, generator=generator)
    case = {
        "log_rhos": normal(length, columns).masked_fill(ends > 0.975, -torch.inf),
        "discounts": torch.full((length, columns), 0.99).masked_fill(ends < 0.025, 0.0),
        "rewards": normal(length, columns),
        "values": normal(length, columns),
        "bootstrap_value": normal(columns),
    }
    return {name: tensor.to(device) for name, tensor in case.items()}


def rlax_call(case: dict[str, Tensor]) -> Callable[[], Any] | None:
    """Returns a call of rlax on the case, or None where rlax is not installed."""
    if find_spec("rlax") is None:
        return None
    jax, rlax = importlib.import_module("jax"), importlib.import_module("rlax")
    function = jax.jit(jax.vmap(rlax.vtrace_td_error_and_advantage, in_axes=1, out_axes=1))
    next_values = torch.cat([case["values"][1:], case["bootstrap_value"].unsqueeze(0)])
    tensors = (case["values"], next_values, case["rewards"], case["discounts"], case["log_rhos"].exp())
    arguments = [jax.numpy.asarray(tensor.cpu().numpy()) for tensor in tensors]
    return lambda: jax.block_until_ready(function(*arguments))


def time_in_turns(
    calls: dict[str, Callable[[], Any]], repeats: int, finish: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Returns microseconds a call of each, a figure for each round; `finish` waits for what calls have only asked for."""
    counts = {}
    for name, call in calls.items():
        call()  # compiles
        finish()
        started = time.perf_counter()
        call()
        finish()
        counts[name] = max(3, round(_ROUND_SECONDS / (time.perf_counter() - started)))
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(counts[name]):
                call()
            finish()
            rounds[name].append(1e6 * (time.perf_counter() - started) / counts[name])
    return rounds


def worst_difference(got: VTraceReturns, case: dict[str, Tensor]) -> float:
    """Returns the largest |x - y| / (1 + |y|), y being what the recursion gives in float64."""
    expected = plain_loop(**{name: tensor.double() for name, tensor in case.items()})
    pairs = zip(got, expected, strict=True)
    return max(float(((ours.double() - theirs).abs() / (1.0 + theirs.abs())).max()) for ours, theirs in pairs)


def measure(length: int, columns: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Returns the figures at one size."""
    case = make_case(length, columns, device)
    calls: dict[str, Callable[[], Any]] = {
        "plain_loop": lambda: plain_loop(**case),
        "vtrace": lambda: vtrace(**case),
        "scan": lambda: vtrace_in_torch(**case, **_CLIPS),
    }
    rlax = rlax_call(case)
    if rlax is not None:
        calls["rlax"] = rlax
    rounds = time_in_turns(calls, repeats, torch.cuda.synchronize if device.type == "cuda" else lambda: None)
    medians = {name: statistics.median(figures) for name, figures in rounds.items()}
    return {
        "size": [length, columns],
        "median_microseconds": {name: round(median, 1) for name, median in medians.items()},
        "least_microseconds": {name: round(min(figures), 1) for name, figures in rounds.items()},
        "plain_loop_over_vtrace": round(medians["plain_loop"] / medians["vtrace"], 1),
        "plain_loop_over_scan": round(medians["plain_loop"] / medians["scan"], 1),
        "rlax_over_vtrace": None if rlax is None else round(medians["rlax"] / medians["vtrace"], 1),
        "vtrace_difference": worst_difference(vtrace(**case), case),
        "scan_difference": worst_difference(vtrace_in_torch(**case, **_CLIPS), case),
    }


def shortfalls(result: dict[str, Any]) -> list[str]:
    """Returns what a size misses, a line each."""
    lines = []
    if result["plain_loop_over_vtrace"] < _AT_LEAST:
        lines.append(f"expected {_AT_LEAST:g} times the plain loop's speed, came {result['plain_loop_over_vtrace']}")
    if result["rlax_over_vtrace"] is not None and result["rlax_over_vtrace"] < 1.0:
        lines.append(f"expected rlax's speed, came {result['rlax_over_vtrace']} of it")
    lines += [
        f"{name}: expected at most {_TOLERANCE:g}, came {result[name]:.2g}"
        for name in ("vtrace_difference", "scan_difference")
        if not result[name] <= _TOLERANCE
    ]
    return [f"{tuple(result['size'])}: {line}" for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch; only the plain loop and the scan have any use for more")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--as-a-learner", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cpu" and find_spec("numba") is None:
        parser.error("numba is not installed: pip install 'impala-grpc[learner]'")
    torch.set_num_threads(arguments.threads)
    if arguments.as_a_learner:
        prepare_processor(arguments.threads)
    started = time.perf_counter()
    prepare_vtrace(device)
    prepare_seconds = time.perf_counter() - started
    results = []
    print(f"{'T, B':>12} {'plain loop':>10} {'vtrace':>9} {'scan':>9} {'rlax':>9} us  loop/vtrace  loop/scan  rlax/vtrace")
    for size in _SIZES:
        result = measure(*size, arguments.repeats, device)
        results.append(result)
        medians = result["median_microseconds"]
        columns = [f"{medians[name]:{width},.1f}" for name, width in (("plain_loop", 10), ("vtrace", 9), ("scan", 9))]
        rlax = f"{medians['rlax']:9,.1f}" if "rlax" in medians else f"{'-':>9}"
        ratios = f"{result['plain_loop_over_vtrace']:13} {result['plain_loop_over_scan']:10} {result['rlax_over_vtrace']!s:>14}"
        print(f"{size!s:>12} {' '.join(columns)} {rlax}    {ratios}", flush=True)
    missed = [line for result in results for line in shortfalls(result)]
    print("\n".join(missed) or "nothing missed")
    if arguments.output:
        report = {
            "command": f"python -m benchmarks.vtrace {' '.join(sys.argv[1:])}",
            "machine": machine(),
            "prepare_seconds": round(prepare_seconds, 2),
            "sizes": results,
            "missed": missed,
        }
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
