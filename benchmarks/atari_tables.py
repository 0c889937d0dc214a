"""The tables of docs/results.md on Atari, from the numbers in results/atari-*.json.

    python -m benchmarks.atari_tables

Prints Markdown: every evaluation of ours; ours and the peers after equal wall-clock; the agent for several games beside those for
one after equal agent steps of a game; and what each ablation changed. Of what has not been run there is no row.
"""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actor_client.scores import human_normalised
from run_directory.bands import student_quantile

_FOLDER = Path("results")
_OURS = "IMPALA (this)"
_QUARTER = 15  # minutes


def evaluations(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yields a row for each evaluation of an agent for one game."""
    yield "| game | seed | minutes | agent steps | updates | mean return | median | lowest | human-normalised | processes | on |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|"
    every = [(result, run) for result in results.values() for run in result["runs"]]
    for result, run in sorted(every, key=lambda pair: (_game(*pair), int(pair[1]["seed"]), pair[1]["seconds"])):
        for each in (*run["earlier"], run):
            played = each["evaluation"][result["manner"]]
            low, high = played["ci95"]
            yield (
                f"| {game(played['environment'])} | {run['seed']} | {each['seconds'] / 60:.0f} | {each['env_steps']:,} | "
                f"{each['learner_updates']:,} | {played['mean']:.1f} ({low:.1f} to {high:.1f}) | {played['median']:g} | "
                f"{played['min']:g} | {played['human_normalised']:.0f}% | {each['processes']} | {processor(run)} |"
            )


def beside_peers(results: dict[str, dict[str, Any]], peers: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yields a row for each game, quarter of an hour and algorithm: means over seeds and Student's 95% interval.

    A seed's score is the mean return of the last hundred training episodes by then, whole games and unclipped for both. A run of
    ours whose steps were out before keeps its last. Of ours only those on a processor that the peers had count.
    """
    yield "| game | minutes | algorithm | seeds | mean return, each seed | mean (95%) | agent steps | on |"
    yield "|---|--:|---|--:|--:|--:|--:|---|"
    for name in sorted({run["game"] for run in peers}):
        theirs = {processor(run) for run in peers if run["game"] == name}
        ours = [run for result in results.values() for run in result["runs"] if _game(result, run) == name]
        ours = [run for run in ours if processor(run) in theirs]
        longest = max(run["minutes"] for run in peers if run["game"] == name)
        for minutes in (*range(_QUARTER, math.ceil(longest), _QUARTER), longest):
            reached = {_OURS: [run for run in ours if run["ended"] == "total_steps" or run["seconds"] >= 59.0 * minutes]}
            for run in peers:
                if run["game"] == name and run["minutes"] >= minutes:
                    reached.setdefault(f"{run['algorithm'].upper()} (Stable-Baselines3)", []).append(run)
            for algorithm, runs in reached.items():
                runs.sort(key=lambda run: int(run["seed"]))
                scores = [at(run["curve"], seconds=60.0 * minutes) for run in runs]
                if scores:
                    each = ", ".join(f"{score:.1f}" for score in scores)
                    steps = statistics.fmean(_steps_by(run["curve"], 60.0 * minutes) for run in runs)
                    cells = (name, f"{minutes:g}", algorithm, f"{len(scores)}", each, interval(scores), f"{steps:,.0f}")
                    processors = "; ".join(dict.fromkeys(processor(run) for run in runs))
                    yield f"| {' | '.join(cells)} | {processors} |"


def several_tasks(several: dict[str, Any], results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yields a row for each game of the agent for several, and what agents for that game alone had after as many of its steps.

    Shares are of human-normalised scores, which are 0 for a random policy.
    """
    yield "| game | seed | agent steps of the game | one agent for all | an agent for each, by seed | share of their mean |"
    yield "|---|--:|--:|--:|--:|--:|"
    for run in several["runs"]:
        for task, curve in zip(run["evaluation"][several["manner"]]["tasks"], run["curve_by_task"], strict=True):
            steps, _, shared = curve[-1]
            alone = [
                at(single["curve"], steps=steps)
                for result in results.values()
                for single in sorted(result["runs"], key=lambda single: int(single["seed"]))
                if _game(result, single) == game(task["environment"]) and single["env_steps"] >= steps
            ]
            share = f"{_score(task, shared) / _score(task, statistics.fmean(alone)):.0%}" if alone else "-"
            each = ", ".join(f"{score:.1f}" for score in alone) or "-"
            yield f"| {game(task['environment'])} | {run['seed']} | {steps:,} | {shared:.1f} | {each} | {share} |"


def ablations(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yields a row for each case, in the order in which they were run."""
    yield "| what | seeds | mean return | after half of the steps | agent steps/s | lag, updates | effective sample size |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for case in dict.fromkeys(run["case"] for run in runs):
        those = [run for run in runs if run["case"] == case]
        scores = ", ".join(f"{run['mean_return_100']:.1f}" for run in those)
        halves = ", ".join(f"{at(run['curve'], steps=run['env_steps'] / 2):.1f}" for run in those)
        rate = statistics.fmean(run["steps_per_second"] for run in those)
        lag = statistics.fmean(run["policy_lag_mean"] for run in those)
        size = statistics.fmean(run["effective_sample_size"] for run in those)
        yield f"| {case} | {len(those)} | {scores} | {halves} | {rate:,.0f} | {lag:.0f} | {size:.2f} |"


def at(curve: Sequence[Sequence[float]], *, steps: float = math.inf, seconds: float = math.inf) -> float:
    """Returns the last mean return of a curve, [[agent steps, seconds, mean return]], by a number of steps and of seconds.

    Raises:
        ValueError: the curve begins after that.
    """
    until = [mean for done, took, mean in curve if done <= steps and took <= seconds]
    if not until:
        raise ValueError(f"curve: expected a point by {steps:g} steps and {seconds:g} s, came none before {curve[0][:2]}")
    return until[-1]


def _steps_by(curve: Sequence[Sequence[float]], seconds: float) -> float:
    return max(done for done, took, _ in curve if took <= seconds)


def interval(scores: Sequence[float]) -> str:
    """Returns a mean with Student's 95% interval over seeds; of one seed there is none."""
    mean = statistics.fmean(scores)
    if len(scores) == 1:
        return f"{mean:.1f}"
    half = student_quantile(len(scores) - 1) * float(np.std(scores, ddof=1)) / math.sqrt(len(scores))
    return f"{mean:.1f} ({mean - half:.1f} to {mean + half:.1f})"


def processor(run: dict[str, Any]) -> str:
    """Returns what a run was on."""
    return str(run["machine"].split(", ")[1])


def game(environment_id: str) -> str:
    """Returns the name of a game."""
    return environment_id.removeprefix("ALE/").removesuffix("-v5")


def _score(task: dict[str, Any], mean: float) -> float:
    score = human_normalised(task["environment"], mean)
    assert score is not None, task["environment"]
    return score


def _game(result: dict[str, Any], run: dict[str, Any]) -> str:
    return game(run["evaluation"][result["manner"]]["environment"])


def main() -> None:
    results = {path.stem: json.loads(path.read_text()) for path in sorted(_FOLDER.glob("atari-*.json"))}
    learnt = {name: result for name, result in results.items() if "runs" in result}
    several = [result for result in learnt.values() if "tasks" in result["runs"][0]["evaluation"][result["manner"]]]
    single = {name: result for name, result in learnt.items() if result not in several}
    tables = [evaluations(single)]
    if "atari-peers" in results:
        tables.append(beside_peers(single, results["atari-peers"]["peers"]))
    tables.extend(several_tasks(each, single) for each in several)
    if "atari-ablations" in results:
        tables.append(ablations(results["atari-ablations"]["ablations"]))
    print("\n\n".join("\n".join(table) for table in tables))


if __name__ == "__main__":
    main()
