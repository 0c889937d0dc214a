"""An actor's figures for Prometheus: /metrics on a port of its own, in clear and without a token, like health."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from actor_client.figures import ActorFigures
from impala.addresses import split_address
from impala.errors import ConfigError
from impala.histogram import Histogram


class ActorCollector(Collector):
    """Reads an actor's figures for each request, on a thread of the library's. The table of docs/observing.md has them all."""

    def __init__(self, figures: ActorFigures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Returns every family, those that nothing was counted in yet included."""
        with self._figures.lock:
            families = _families(self._figures)
        return iter(families)


@contextmanager
def metrics_port(address: str, figures: ActorFigures) -> Iterator[int]:
    """Answers GET /metrics on HOST:PORT meanwhile; port 0 takes a free one. Yields the port.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(ActorCollector(figures))
    host, port = split_address(address, field="metrics")
    try:
        server, thread = start_http_server(port, host.strip("[]"), registry)
    except OSError as error:
        raise ConfigError(f"metrics: cannot listen on {address}: {error}") from error
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _families(figures: ActorFigures) -> list[Metric]:
    seconds = CounterMetricFamily("impala_actor_seconds", "Seconds of the actor's thread, by what they went into.", labels=["what"])
    for what, spent in figures.seconds.items():
        seconds.add_metric([what], spent)
    failed = CounterMetricFamily("impala_actor_failed_calls", "Calls that ended with an error status.", labels=["method", "status"])
    for (method, status), count in figures.failed_calls.items():
        failed.add_metric([method, status], count)
    return [
        CounterMetricFamily("impala_actor_env_steps", "Agent steps collected.", value=figures.env_steps),
        CounterMetricFamily("impala_actor_unrolls", "Unrolls collected.", value=figures.unrolls),
        CounterMetricFamily("impala_actor_episodes", "Episodes finished.", value=figures.episodes),
        CounterMetricFamily("impala_actor_stale_unrolls", "Unrolls refused as too old.", value=figures.stale_unrolls),
        CounterMetricFamily("impala_actor_reconnects", "Times that a learner answered again.", value=figures.reconnects),
        GaugeMetricFamily("impala_actor_learner_reached", "1 where the learner answered last, else 0.", value=figures.reached),
        GaugeMetricFamily("impala_actor_parameter_version", "Version of the weights that act.", value=figures.version),
        seconds,
        failed,
        _histogram("impala_actor_unroll_seconds", "Seconds from one unroll to the next.", {"": figures.unroll_seconds}),
        _histogram("impala_actor_rpc_seconds", "Seconds that a call took, failed ones included.", figures.rpc, label="method"),
    ]


def _histogram(name: str, text: str, histograms: Mapping[str, Histogram], *, label: str | None = None) -> Metric:
    family = HistogramMetricFamily(name, text, labels=None if label is None else [label])
    for value, histogram in histograms.items():
        family.add_metric([value] if label is not None else [], histogram.cumulative(), histogram.sum)
    return family
