"""Grafana's dashboard as code: `python docker/grafana/dashboard.py` writes dashboards/impala.json, which is committed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).resolve().parent / "dashboards" / "impala.json"
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
# Grafana's grid is so wide; a line of it has up to four panels, three where a row needs two lines.
WIDTH, HEIGHT, MOST = 24, 8, 4


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One graph.

    Attributes:
        queries: PromQL by legend; {{name}} in a legend is the label's value.
        unit: Grafana's name of it.
        text: what to look for; shown where the pointer rests on the title.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    text: str = ""


def rate(counter: str, *, by: str = "") -> str:
    """Returns the growth of a counter a second, summed, or summed for each value of a label."""
    return f"sum{f' by ({by})' if by else ''} (rate({counter}[$__rate_interval]))"


def quantile(share: float, histogram: str, *, by: str = "") -> str:
    """Returns the value that so many of a histogram's values do not exceed, in the window that Grafana chooses."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({histogram}_bucket[$__rate_interval])))"


def mean(histogram: str, *, by: str = "") -> str:
    """Returns the mean of a histogram's values."""
    return f"{rate(f'{histogram}_sum', by=by)} / {rate(f'{histogram}_count', by=by)}"


ROWS: dict[str, list[Panel]] = {
    "Does it learn": [
        Panel(title="Mean return of the last 100 episodes", queries={"task {{task}}": "impala_mean_return_100"}),
        Panel(
            title="Entropy of the policy",
            queries={"entropy": "impala_entropy"},
            text="Nats. Near 0 early on: the policy has settled before it explored; raise the entropy cost.",
        ),
        Panel(
            title="Value and target",
            queries={"V": "impala_value_mean", "v": "impala_target_mean"},
            text="The two go together where the baseline keeps up.",
        ),
        Panel(title="Gradient norm, before clipping", queries={"norm": "impala_grad_norm"}),
    ],
    "How fast": [
        Panel(
            title="Agent steps a second",
            queries={"trained": "impala_steps_per_second", "received": rate("impala_steps_received_total")},
        ),
        Panel(title="Updates a second", queries={"updates": rate("impala_learner_updates_total")}),
        Panel(title="Agent steps so far", queries={"trained": "impala_env_steps_total"}),
        Panel(title="Bytes from actors a second", queries={"bytes": rate("impala_bytes_received_total")}, unit="Bps"),
    ],
    "Lag and ratios": [
        Panel(
            title="Policy lag, versions",
            queries={
                "half": quantile(0.5, "impala_policy_lag_versions"),
                "nine of ten": quantile(0.9, "impala_policy_lag_versions"),
                "mean": "impala_policy_lag_mean",
                "most": "impala_policy_lag_max",
            },
            text="Versions between the weights that acted and those that learnt.",
        ),
        Panel(
            title="Importance ratios pi/mu",
            queries={
                "one of ten": quantile(0.1, "impala_importance_ratio"),
                "half": quantile(0.5, "impala_importance_ratio"),
                "nine of ten": quantile(0.9, "impala_importance_ratio"),
            },
            text="The closer to 1, the more on-policy. A batch for each log interval.",
        ),
        Panel(
            title="What the correction has to do",
            queries={"effective sample size": "impala_effective_sample_size", "clipped": "impala_clipped_fraction"},
            unit="percentunit",
        ),
        Panel(
            title="Disagreement on the policy at lag 0",
            queries={"abs(log pi/mu)": "impala_log_rho_abs_lag_0"},
            text="Anything but rounding: actor and learner compute different policies from the same weights.",
        ),
    ],
    "Who waits": [
        Panel(
            title="Shares of time",
            queries={
                "learner, for a batch": "impala_learner_wait_fraction",
                "actors, for a place or weights": "impala_actor_wait_fraction",
                "actors, environments": "impala_actor_environment_fraction",
                "actors, inference": "impala_actor_inference_fraction",
            },
            unit="percentunit",
            text="The learner near 1: more actors. Actors' wait far from 0: a faster learner, or fewer actors.",
        ),
        Panel(
            title="The training thread's seconds, a second",
            queries={"{{stage}}": rate("impala_stage_seconds_sum", by="stage")},
            unit="percentunit",
        ),
        Panel(
            title="Time of a stage, nine of ten",
            queries={"{{stage}}": quantile(0.9, "impala_stage_seconds", by="stage")},
            unit="s",
        ),
        Panel(
            title="Wait for a place in the queue",
            queries={"nine of ten": quantile(0.9, "impala_line_wait_seconds"), "mean": mean("impala_line_wait_seconds")},
            unit="s",
        ),
        Panel(title="Trajectories in the queue", queries={"queued": "impala_queued_trajectories"}),
    ],
    "Actors": [
        Panel(
            title="Actors",
            queries={
                "that call the learner": "impala_actors",
                "that answer": 'count(up{job="actor"} == 1)',
                "that reach a learner": "sum(impala_actor_learner_reached)",
            },
        ),
        Panel(
            title="Agent steps a second, by actor", queries={"{{instance}}": rate("impala_actor_env_steps_total", by="instance")}
        ),
        Panel(title="Actors' seconds, a second", queries={"{{what}}": rate("impala_actor_seconds_total", by="what")}),
        Panel(
            title="Time of an unroll",
            queries={
                "half": quantile(0.5, "impala_actor_unroll_seconds"),
                "nine of ten": quantile(0.9, "impala_actor_unroll_seconds"),
            },
            unit="s",
        ),
        Panel(
            title="Versions behind the newest weights",
            queries={"{{instance}}": "scalar(max(impala_parameter_version)) - impala_actor_parameter_version"},
            text="One line that climbs while the others lie low: an actor that has lost its learner, or that hangs.",
        ),
    ],
    "Calls": [
        Panel(title="Calls a second", queries={"{{method}}": rate("impala_rpc_seconds_count", by="method")}),
        Panel(
            title="Time at the learner, nine of ten",
            queries={"{{method}}": quantile(0.9, "impala_rpc_seconds", by="method")},
            unit="s",
            text="That of SubmitTrajectory has the wait for a place in it.",
        ),
        Panel(
            title="Time at actors, nine of ten",
            queries={"{{method}}": quantile(0.9, "impala_actor_rpc_seconds", by="method")},
            unit="s",
            text="The same and the way there and back.",
        ),
        Panel(
            title="Size of messages",
            queries={"nine of ten": quantile(0.9, "impala_message_bytes"), "mean": mean("impala_message_bytes")},
            unit="bytes",
        ),
    ],
    "Faults": [
        Panel(title="Alerts", queries={"{{alertname}}": 'count by (alertname) (ALERTS{alertstate="firing"})'}),
        Panel(
            title="Updates skipped, writes failed, in five minutes",
            queries={
                "not finite": "increase(impala_skipped_updates_total[5m])",
                "not written: {{what}}": "increase(impala_disk_failures_total[5m])",
            },
        ),
        Panel(
            title="Age of the newest checkpoint",
            queries={"age": "impala_checkpoint_age_seconds", "asked for": "impala_checkpoint_interval_seconds"},
            unit="s",
        ),
        Panel(
            title="Refused and dropped, a second",
            queries={
                "refused {{why}}": rate("impala_refused_total", by="why"),
                "dropped steps, {{rule}}": rate("impala_dropped_by_rule_total", by="rule"),
                "unrolls too old": rate("impala_actor_stale_unrolls_total"),
            },
        ),
        Panel(
            title="Calls that failed, reconnects, a second",
            queries={
                "{{method}} {{status}}": rate("impala_actor_failed_calls_total", by="method, status"),
                "reconnects": rate("impala_actor_reconnects_total"),
            },
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """Returns Grafana's JSON: a row for each question, its panels side by side beneath it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1}, "panels": []})
        top += 1
        columns = MOST if len(row) <= MOST else MOST - 1
        width = WIDTH // columns
        for index, panel in enumerate(row):
            place = {"x": index % columns * width, "y": top + index // columns * HEIGHT, "w": width, "h": HEIGHT}
            panels.append(panel_json(panel, place))
        top += -(-len(row) // columns) * HEIGHT
    return {
        "uid": "impala",
        "title": "IMPALA",
        "schemaVersion": 39,
        "editable": False,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, start=1)],
    }


def panel_json(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    """Returns one graph's JSON."""
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "gridPos": place,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": query, "legendFormat": legend}
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def main() -> None:
    """Writes the file."""
    OUTPUT.write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
