"""The learner's figures for Prometheus: /metrics on a port of its own, in clear and without a token, like health."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from impala.addresses import split_address
from impala.errors import ConfigError
from impala.histogram import Histogram
from learner_server.histograms import LearnerHistograms

# Names in metrics.jsonl, and what Prometheus is told they are. Its names have the prefix impala_; counters end in _total. The table
# of docs/observing.md has them all.
COUNTERS = {
    "env_steps": "Agent steps trained on.",
    "learner_updates": "Gradient steps that made a new version of the weights.",
    "skipped_updates": "Gradient steps given up because loss or gradient was not finite.",
    "episodes": "Episodes that actors finished.",
    "steps_received": "Agent steps in valid unrolls, those that wait left out.",
    "steps_dropped": "Agent steps received and not trained on.",
    "bytes_received": "Bytes of messages from actors, since this process started.",
    "bytes_sent": "Bytes of weights to actors, since this process started.",
    "parameter_encodings": "Versions of the weights that were encoded because an actor asked.",
}
# By a label: its name, and the text.
LABELLED = {
    "disk_failures": ("what", "Writes that failed, since this process started."),
    "refused": ("why", "Messages refused, by status and field, since this process started."),
    "dropped_by_rule": ("rule", "Agent steps received and not trained on, by the rule."),
}
GAUGES = {
    "baseline": "Baseline loss, summed over time and batch.",
    "clipped_fraction": "Share of importance ratios above rho_bar.",
    "effective_sample_size": "From 0 to 1: 1 says that batches are as good as those of the learner policy.",
    "entropy": "Entropy of the learner policy in nats, mean.",
    "grad_norm": "Norm of the gradient before clipping.",
    "learning_rate": "Learning rate in use.",
    "log_rho_abs": "Mean of abs(log pi/mu) in nats.",
    "log_rho_abs_lag_0": "The same where the lag is 0: anything but rounding says that actor and learner disagree on the policy.",
    "policy_gradient": "Policy gradient loss, summed over time and batch.",
    "policy_lag_max": "Versions between the weights that acted and those that learnt, at most, replayed trajectories left out.",
    "steps_waiting": "Agent steps received and neither trained on nor dropped.",
    "target_mean": "Mean of the targets v, in the learner's units of reward.",
    "value_mean": "Mean of the values V, in the learner's units of reward.",
    "checkpoint_age_seconds": "Seconds since the newest whole checkpoint was written.",
    "actors": "Actors that called within the last 10 s, or within four of their longest pauses lately.",
    "actor_environment_fraction": "Share of actors' time in the last log interval that went into stepping environments.",
    "actor_inference_fraction": "Share of actors' time in the last log interval that went into choosing actions.",
    "actor_wait_fraction": "Share of actors' time in the last log interval that was waited, for a place or for weights.",
    "actor_line_fraction": "What unrolls stood in line at the learner, as a share of actors' time; calls may overlap.",
    "actor_sending_fraction": "What sending unrolls took besides, as a share of actors' time; calls may overlap.",
    "actor_fetching_fraction": "What fetching weights took, as a share of actors' time; calls may overlap.",
    "actor_starved_fraction": "Share of actors' time in which they could have run and had no core.",
    "learner_starved_fraction": "Share of the last log interval in which training could have run and had no core.",
    "ingest_fraction": "Share of the last log interval in which the thread that takes messages in was at work.",
    "learner_wait_fraction": "Share of the last log interval in which training waited for a batch: near 1, actors are too few.",
    "policy_lag_mean": "Versions between the weights that acted and those that learnt, mean over trajectories as they came.",
    "replayed_lag_mean": "The same of trajectories that were replayed.",
    "queued_trajectories": "Trajectories in the queue.",
    "steps_per_second": "Agent steps trained on a second, over 3 s.",
    "parameter_version": "Version of the newest weights.",
}
RETURN = "mean_return_100_by_task"


class MetricsPort(Collector):
    """Answers GET /metrics with the figures that it was told last.

    Args:
        address: HOST:PORT; port 0 takes a free one.
        histograms: what the learner counts by size; read at each request.
        checkpoint_seconds: between checkpoints, as configured: how old the newest may be depends on it.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def __init__(self, address: str, histograms: LearnerHistograms, *, checkpoint_seconds: float) -> None:
        self._figures: Mapping[str, Any] = {}
        self._histograms = histograms
        self._checkpoint_seconds = checkpoint_seconds
        registry = CollectorRegistry()
        registry.register(self)
        host, port = split_address(address, field="metrics")
        try:
            self._server, self._thread = start_http_server(port, host.strip("[]"), registry)
        except OSError as error:
            raise ConfigError(f"metrics: cannot listen on {address}: {error}") from error
        self.port = int(self._server.server_port)

    def update(self, figures: Mapping[str, Any]) -> None:
        """Takes a log interval's figures; those that are None are left out of the answer."""
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Called by the library for each request, on a thread of its own."""
        figures = self._figures
        for name, text in COUNTERS.items():
            if figures.get(name) is not None:
                # Callers in line may go away again, and a counter that falls is taken for one that began anew.
                waiting = figures["steps_waiting"] if name == "steps_received" else 0
                yield CounterMetricFamily(f"impala_{name}", text, value=figures[name] - waiting)
        for name, text in GAUGES.items():
            if figures.get(name) is not None:
                yield GaugeMetricFamily(f"impala_{name}", text, value=figures[name])
        returns = GaugeMetricFamily("impala_mean_return_100", "Mean return of a task's last 100 episodes.", labels=["task"])
        for task, mean in enumerate(figures.get(RETURN, [])):
            if mean is not None:
                returns.add_metric([str(task)], mean)
        yield returns
        for name, (label, text) in LABELLED.items():
            counts = CounterMetricFamily(f"impala_{name}", text, labels=[label])
            for value, count in figures.get(name, {}).items():
                counts.add_metric([value], count)
            yield counts
        limit = GaugeMetricFamily("impala_limit", "1 for what limits the run, by the verdict.", labels=["limit"])
        if figures.get("limit") is not None:
            limit.add_metric([figures["limit"]], 1.0)
        yield limit
        interval = "Seconds between checkpoints, as configured."
        yield GaugeMetricFamily("impala_checkpoint_interval_seconds", interval, value=self._checkpoint_seconds)
        yield from _families(self._histograms)

    def close(self) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _families(kept: LearnerHistograms) -> Iterator[Metric]:
    yield _one("rpc_seconds", "Seconds from a call's message to its answer, refusals included.", kept.rpc, label="method")
    yield _one("line_wait_seconds", "Seconds that unrolls waited in line for a place in the queue.", {"": kept.line_wait})
    yield _one("message_bytes", "Bytes of each message from actors.", {"": kept.messages})
    yield _one("policy_lag_versions", "Versions between the weights that acted and those that learnt.", {"": kept.policy_lag})
    yield _one("importance_ratio", "pi/mu of each step of one batch for each log interval.", {"": kept.ratio})
    yield _one("stage_seconds", "Seconds of the training thread's stages.", kept.stages, label="stage")


def _one(name: str, text: str, histograms: Mapping[str, Histogram], *, label: str | None = None) -> Metric:
    family = HistogramMetricFamily(f"impala_{name}", text, labels=None if label is None else [label])
    for value, histogram in histograms.items():
        family.add_metric([value] if label is not None else [], histogram.cumulative(), histogram.sum)
    return family
