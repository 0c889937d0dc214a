"""The figures of docs/primer.md: fixed points, importance ratios by lag, the timeline, throughput against actors."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from examples.primer import fixed_points, timeline

# Okabe and Ito's, told apart by the colour-blind; line styles and markers tell them apart in black and white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_DOING = {"act": ("#56b4e9", ""), "wait": ("#ffffff", "///"), "train": ("#e69f00", "")}


def _save(figure: Any, output: Path) -> None:
    figure.savefig(output, metadata={"Date": None})
    plt.close(figure)


def draw_fixed_points(output: Path) -> None:
    """Writes what V-trace converges to by rho_bar, and in how many sweeps by c_bar."""
    problem = fixed_points.random_problem(seed=0)
    figure, (values, sweeps) = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained", width_ratios=[1.4, 1])
    bars = np.logspace(-2, 2, 200)
    exact = np.array([fixed_points.policy_value(problem, fixed_points.policy_between(problem, bar)) for bar in bars])
    marks = np.logspace(-2, 2, 9)
    found = np.array([fixed_points.iterate(problem, bar, min(1.0, bar))[0] for bar in marks])
    for state, colour in enumerate(COLOURS[: exact.shape[1]]):
        values.plot(bars, exact[:, state], color=colour, ls=_STYLES[state], lw=1.2, label=f"state {state}")
        values.plot(marks, found[:, state], "o", ms=4, color=colour, mfc="white")
    values.set_xscale("log")
    values.set_xlabel(r"$\bar\rho$")
    values.set_ylabel("fixed point")
    values.set_title("lines: exact; circles: V-trace.  left: V of mu, right: V of pi", fontsize=8)
    values.legend(fontsize=7)
    for index, rho_bar in enumerate((1.0, 2.0, 10.0)):
        c_bars = np.linspace(0.0, min(rho_bar, 3.0), 13)
        counts = [fixed_points.iterate(problem, rho_bar, c_bar, tolerance=1e-6)[1] for c_bar in c_bars]
        style = {"marker": "osd"[index], "ms": 4, "ls": _STYLES[index], "color": COLOURS[index]}
        sweeps.plot(c_bars, counts, label=rf"$\bar\rho$ = {rho_bar:g}", **style)
    sweeps.set_xlabel(r"$\bar c$")
    sweeps.set_ylabel("sweeps until nothing moves by 1e-6")
    sweeps.set_ylim(bottom=0)
    sweeps.legend(fontsize=7)
    _save(figure, output)


def draw_ratios(result: dict[str, Any], output: Path) -> None:
    """Writes the distribution of log pi/mu at each lag, seeds together."""
    edges = np.array(result["edges"])
    lags = sorted({run["lag"] for run in result["runs"]})
    figure, panels = plt.subplots(len(lags), 1, figsize=(6, 1.25 * len(lags)), sharex=True, layout="constrained")
    for axes, lag in zip(panels, lags, strict=True):
        runs = [run for run in result["runs"] if run["lag"] == lag]
        counts = np.sum([run["histogram"] for run in runs], axis=0)
        axes.stairs(counts / counts.sum(), edges, fill=True, color=COLOURS[0], alpha=0.8)
        axes.axvline(0.0, color="black", lw=0.8, ls="--")
        share = np.mean([run["effective_sample_size"] for run in runs])
        axes.set_ylabel(f"lag {lag}", rotation=0, ha="right", va="center", fontsize=9)
        axes.text(0.99, 0.85, f"effective sample size {share:.2f}", transform=axes.transAxes, ha="right", va="top", fontsize=8)
        axes.set_yscale("log")
        axes.set_ylim(3e-5, 2.0)
        axes.tick_params(labelsize=8)
    panels[-1].set_xlabel("log pi/mu; right of the dashed line V-trace clips; share of steps, logarithmic")
    _save(figure, output)


def draw_timeline(output: Path) -> None:
    """Writes who acts, waits and trains when, with the version in each span."""
    spans = timeline.simulate()
    rows = ("learner", "quick", "slow")
    figure, axes = plt.subplots(figsize=(8.4, 2.0), layout="constrained")
    for span in spans:
        colour, hatch = _DOING[span.doing]
        place = -rows.index(span.who)
        axes.barh(place, span.end - span.start, left=span.start, height=0.7, color=colour, hatch=hatch, edgecolor="black", lw=0.6)
        if span.doing != "wait":
            axes.text((span.start + span.end) / 2, place, str(span.version), ha="center", va="center", fontsize=7)
    axes.set_yticks([-index for index in range(len(rows))], ["learner", "quick actor", "slow actor"])
    axes.set_xlabel("ticks; in a bar: version that acted; hatched: waits", fontsize=8)
    axes.set_xlim(0, timeline.TICKS)
    _save(figure, output)


def draw_actors(result: dict[str, Any], output: Path) -> None:
    """Writes updates and unrolls a second by the number of connected actors: each round, and a line through the medians."""
    figure, panels = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    offered = statistics.median(run["offered_a_second"] for run in result["paced"])
    titles = {"full": "all send what they can", "paced": f"all together send about {offered:.0f} unrolls a second"}
    for axes, (kind, title) in zip(panels, titles.items(), strict=True):
        _by_actors(axes, result[kind])
        axes.set_title(title, fontsize=9)
    panels[0].set_ylabel("a second")
    panels[0].legend(fontsize=7)
    _save(figure, output)


def _by_actors(axes: Axes, rows: list[dict[str, Any]]) -> None:
    measures = (("learner_updates_per_second", "updates"), ("submissions_per_second", "unrolls"))
    counts = sorted({row["connections"] for row in rows})
    for index, (name, label) in enumerate(measures):
        by_count = [[row[name] for row in rows if row["connections"] == count] for count in counts]
        medians = [float(np.median(values)) for values in by_count]
        axes.plot(counts, medians, marker="os"[index], ls=_STYLES[index], color=COLOURS[index], label=label)
        for count, values in zip(counts, by_count, strict=True):
            axes.plot([count] * len(values), values, "os"[index], ms=3, mfc="white", color=COLOURS[index])
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("actors, a connection each")
