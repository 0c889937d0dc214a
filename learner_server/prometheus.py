"""The learner's figures for Prometheus: /metrics on a port of its own, in clear and without a token, like health."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from impala.addresses import split_address
from impala.errors import ConfigError

# Names in metrics.jsonl, and what Prometheus is told they are. Its names have the prefix impala_; counters end in _total.
COUNTERS = {
    "env_steps": "Agent steps trained on.",
    "learner_updates": "Gradient steps that made a new version of the weights.",
    "skipped_updates": "Gradient steps given up because loss or gradient was not finite.",
    "episodes": "Episodes that actors finished.",
    "steps_received": "Agent steps in valid unrolls.",
    "steps_dropped": "Agent steps received and not trained on.",
    "bytes_received": "Bytes of messages from actors, since this process started.",
}
GAUGES = {
    "checkpoint_age_seconds": "Seconds since the newest whole checkpoint was written.",
    "actors": "Actors that called within the last 10 s.",
    "actor_environment_fraction": "Share of actors' time in the last log interval that went into stepping environments.",
    "actor_inference_fraction": "Share of actors' time in the last log interval that went into choosing actions.",
    "actor_wait_fraction": "Share of actors' time in the last log interval that was waited, for a place or for weights.",
    "learner_wait_fraction": "Share of the last log interval in which training waited for a batch: near 1, actors are too few.",
    "policy_lag_mean": "Versions between the weights that acted and those that learnt, mean over trajectories.",
    "queued_trajectories": "Trajectories in the queue.",
    "steps_per_second": "Agent steps trained on a second, over 3 s.",
    "parameter_version": "Version of the newest weights.",
}
RETURN = "mean_return_100_by_task"
FAILURES = "disk_failures"


class MetricsPort(Collector):
    """Answers GET /metrics with the figures that it was told last.

    Args:
        address: HOST:PORT; port 0 takes a free one.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def __init__(self, address: str) -> None:
        self._figures: Mapping[str, Any] = {}
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
                yield CounterMetricFamily(f"impala_{name}", text, value=figures[name])
        for name, text in GAUGES.items():
            if figures.get(name) is not None:
                yield GaugeMetricFamily(f"impala_{name}", text, value=figures[name])
        returns = GaugeMetricFamily("impala_mean_return_100", "Mean return of a task's last 100 episodes.", labels=["task"])
        for task, mean in enumerate(figures.get(RETURN, [])):
            if mean is not None:
                returns.add_metric([str(task)], mean)
        yield returns
        failures = CounterMetricFamily(f"impala_{FAILURES}", "Writes that failed, since this process started.", labels=["what"])
        for what, count in figures.get(FAILURES, {}).items():
            failures.add_metric([what], count)
        yield failures

    def close(self) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
