"""Journeys as OpenTelemetry spans: one trace for each unroll, with a span for each of its stages."""

import logging
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from learner_server.journeys import Journey, Stage, ahead_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

# Of unrolls, where OTEL_TRACES_SAMPLER does not say otherwise.
DEFAULT_SHARE = 0.01

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTERS = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}


class Spans:
    """Hands journeys that have ended to OpenTelemetry, which samples them and sends them from a thread of its own.

    Args:
        provider: of tracers, with its sampler and where its spans go.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context

        self._provider = provider
        self._tracer = provider.get_tracer("impala")
        self._within = trace.set_span_in_context
        # Not the current one: an unroll has nothing above it.
        self._nothing = Context()

    def export(self, journey: Journey) -> None:
        """Makes the spans of a journey, by the clock on the wall."""
        limits = journey.limits
        ahead = ahead_of(limits)
        stages = journey.stages(ahead)
        since_epoch = time.time_ns() - time.perf_counter_ns()
        about: dict[str, Any] = {
            "impala.actor_id": journey.actor_id,
            "impala.incarnation": str(journey.incarnation),  # beyond the integers of many a backend
            "impala.sequence": journey.sequence,
            "impala.trajectories": journey.trajectories,
            "impala.version_that_acted": journey.version,
            "impala.clock_uncertainty_seconds": limits.uncertainty_seconds,
        }
        batch = journey.batch
        if batch is not None and batch.version is not None:
            about["impala.version_that_came_of_it"] = batch.version
        whole = Stage("unroll", stages[0].begin, stages[-1].end)
        root = self._tracer.start_span(whole.name, self._nothing, attributes=about, start_time=_nanos(whole.begin, since_epoch))
        if root.is_recording():
            within = self._within(root, self._nothing)
            for stage in stages:
                span = self._tracer.start_span(stage.name, within, start_time=_nanos(stage.begin, since_epoch))
                span.end(_nanos(stage.end, since_epoch))
        root.end(_nanos(whole.end, since_epoch))

    def close(self) -> None:
        """Sends what was not sent yet."""
        self._provider.shutdown()


def _nanos(moment: float, since_epoch: int) -> int:
    return since_epoch + round(moment * 1e9)


def spans_of_environment(environ: Mapping[str, str]) -> Spans | None:
    """Returns spans where the standard variables say where they go, and None where they do not, or where nothing sends them.

    OpenTelemetry's own code reads the other variables: headers, certificates, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME.
    """
    if not any(environ.get(name) for name in _ENDPOINTS) or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    protocol = next((environ[name] for name in _PROTOCOLS if environ.get(name)), "http/protobuf")
    if protocol not in _EXPORTERS or not _is_there("opentelemetry.sdk.trace") or not _is_there(_EXPORTERS[protocol]):
        log.warning("no spans are sent: nothing here sends them by %s; pip install 'impala-grpc[otel]'", protocol)
        return None
    return Spans(_provider(environ, protocol))


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that it would be in
        return False


def _provider(environ: Mapping[str, str], protocol: str) -> "TracerProvider":
    # Late: it is an extra, and takes a while.
    from importlib import import_module

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

    named = "OTEL_SERVICE_NAME" in environ or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(
        # None leaves it to the variable.
        sampler=None if environ.get("OTEL_TRACES_SAMPLER") else TraceIdRatioBased(DEFAULT_SHARE),
        resource=Resource.create({} if named else {"service.name": "impala-learner"}),
    )
    provider.add_span_processor(BatchSpanProcessor(import_module(_EXPORTERS[protocol]).OTLPSpanExporter()))
    return provider
