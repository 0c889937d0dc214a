"""Draws results/*.svg: learning curves over seeds, the corrections under injected lag, and the other figures of docs/primer.md.

python -m benchmarks.figures
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks import primer_figures

FOLDER = Path("results")
CORRECTIONS = ("vtrace", "one-step", "epsilon", "none")
_KINDS = {"IMPALA (this)": "#0072b2", "A2C (Stable-Baselines3)": "#e69f00", "PPO (Stable-Baselines3)": "#009e73"}
_COLOURS = dict(zip(CORRECTIONS, ("#0072b2", "#009e73", "#e69f00", "#d55e00"), strict=True))


def draw_curves(name: str, result: dict[str, Any], axes: Axes) -> None:
    """Draws the mean return of each seed's last 100 training episodes by steps, and the evaluations of the final weights."""
    for run in result["runs"]:
        steps, _, returns = zip(*run["curve"], strict=True)
        axes.plot(np.array(steps) / 1e6, returns, lw=1, label=f"seed {run['seed']}")
        mean = run["evaluation"][result["manner"]].get("mean")
        if mean is not None:  # of several tasks each has its own
            axes.plot(run["env_steps"] / 1e6, mean, "o", ms=4, color=axes.lines[-1].get_color())
    if result["at_least"] is not None:
        axes.axhline(result["at_least"], color="grey", lw=0.8, ls="--")
    axes.set_title(name, fontsize=9)
    axes.set_xlabel("million agent steps")
    axes.tick_params(labelsize=8)


def curves(results: dict[str, dict[str, Any]], output: Path) -> None:
    """Writes one panel for each result that was trained with several seeds."""
    columns = 4
    rows = -(-len(results) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(3.1 * columns, 2.5 * rows), squeeze=False, layout="constrained")
    for axes in panels.flat[len(results) :]:
        axes.set_visible(False)
    for axes, (name, result) in zip(panels.flat, results.items(), strict=False):
        draw_curves(name, result, axes)
    panels[0, 0].legend(fontsize=7)
    panels[0, 0].set_ylabel("mean return")
    figure.savefig(output, metadata={"Date": None})
    plt.close(figure)


def atari(results: list[dict[str, Any]], peers: list[dict[str, Any]], output: Path) -> None:
    """Writes a panel for each game: returns by minutes of ours and of the peers, and each evaluation where it was made."""
    games: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for result in results:
        manner = result["manner"]
        game = result["runs"][0]["evaluation"][manner]["environment"].removeprefix("ALE/").removesuffix("-v5")
        games.setdefault(game, []).extend((manner, run) for run in result["runs"])
    figure, panels = plt.subplots(1, len(games), figsize=(4.5 * len(games), 3), squeeze=False, layout="constrained")
    for axes, (game, ours) in zip(panels.flat, games.items(), strict=True):
        for manner, run in ours:
            evaluated = [(each["seconds"], each["evaluation"][manner]["mean"]) for each in (*run["earlier"], run)]
            _by_minutes(axes, "IMPALA (this)", run["curve"], evaluated)
        for run in peers:
            if run["game"] == game:
                who = f"{run['algorithm'].upper()} (Stable-Baselines3)"
                _by_minutes(axes, who, run["curve"], [(run["seconds"], run["evaluation"]["mean"])])
        axes.set_title(game, fontsize=9)
        axes.set_xlabel("minutes of wall-clock")
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7)
    panels[0, 0].set_ylabel("mean return")
    figure.savefig(output, metadata={"Date": None})
    plt.close(figure)


def _by_minutes(axes: Axes, who: str, curve: list[list[float]], evaluated: list[tuple[float, float]]) -> None:
    """Draws a run; all of one kind have one colour and one entry in the legend."""
    known = who in axes.get_legend_handles_labels()[1]
    _, seconds, returns = zip(*curve, strict=True)
    axes.plot(np.array(seconds) / 60, returns, lw=1, color=_KINDS[who], label=None if known else who)
    for moment, mean in evaluated:
        axes.plot(moment / 60, mean, "o", ms=4, color=_KINDS[who])


def corrections(result: dict[str, Any], output: Path) -> None:
    """Writes the mean return of each correction by injected lag, without and with replay, and its spread over seeds."""
    fractions = sorted({run["replay_fraction"] for run in result["runs"]})
    figure, panels = plt.subplots(
        1, len(fractions), figsize=(4 * len(fractions), 3), sharey=True, squeeze=False, layout="constrained"
    )
    lags = sorted({run["inject_lag"] for run in result["runs"]})
    for axes, fraction in zip(panels.flat, fractions, strict=True):
        for shift, correction in enumerate(CORRECTIONS):
            scores = [[run["score"] for run in result["runs"] if _key(run) == (correction, lag, fraction)] for lag in lags]
            means = [np.mean(each) if each else np.nan for each in scores]
            positions = np.arange(len(lags)) + 0.06 * (shift - 1.5)
            axes.plot(positions, means, "-", lw=1, color=_COLOURS[correction], label=correction)
            for position, each in zip(positions, scores, strict=True):
                axes.plot([position] * len(each), each, "o", ms=3, color=_COLOURS[correction])
        axes.set_xticks(range(len(lags)), [str(lag) for lag in lags])
        axes.set_xlabel("injected lag, updates")
        axes.set_title("no replay" if not fraction else f"{fraction:.0%} replay", fontsize=9)
    panels[0, 0].set_ylabel(f"mean return, {result['environment']}")
    panels[0, 0].legend(fontsize=7)
    figure.savefig(output, metadata={"Date": None})
    plt.close(figure)


def _key(run: dict[str, Any]) -> tuple[str, int, float]:
    return run["correction"], run["inject_lag"], run["replay_fraction"]


def main() -> None:
    mpl.rcParams["svg.hashsalt"] = "impala"  # the same figures from the same numbers, byte for byte
    results = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    learnt = {name: result for name, result in results.items() if any("curve" in run for run in result.get("runs", []))}
    atari_results = [learnt.pop(name) for name in list(learnt) if name.startswith("atari-")]
    # Several tasks have an evaluation each, and no panel.
    games = [result for result in atari_results if "environment" in result["runs"][0]["evaluation"][result["manner"]]]
    if learnt:
        curves(learnt, FOLDER / "curves.svg")
    if games:
        atari(games, results.get("atari-peers", {}).get("peers", []), FOLDER / "atari.svg")
    if "corrections" in results:
        corrections(results["corrections"], FOLDER / "corrections.svg")
    primer_figures.draw_fixed_points(FOLDER / "fixed-points.svg")
    primer_figures.draw_timeline(FOLDER / "timeline.svg")
    if "ratios" in results:
        primer_figures.draw_ratios(results["ratios"], FOLDER / "ratios.svg")
    scale = Path("benchmarks/scale.json")
    if scale.exists():
        primer_figures.draw_actors(json.loads(scale.read_text()), FOLDER / "actors.svg")


if __name__ == "__main__":
    main()
