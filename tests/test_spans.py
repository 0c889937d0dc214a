"""OpenTelemetry: a trace for each unroll that is sampled, where the standard variables say where to, and else nothing at all."""

import subprocess
import sys
from itertools import pairwise

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler

from learner_server.spans import DEFAULT_SHARE, Spans, spans_of_environment
from tests.journeys import make_journey

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def exported(*sequences: int, sampler: Sampler = ALWAYS_ON) -> tuple[ReadableSpan, ...]:
    memory = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    spans = Spans(provider)
    for sequence in sequences:
        spans.export(make_journey(sequence=sequence))
    spans.close()
    return memory.get_finished_spans()


def test_an_unroll_is_one_trace_and_its_stages_are_spans_that_leave_no_gap() -> None:
    *stages, root = exported(1)
    assert root.name == "unroll"
    assert root.parent is None
    assert root.context is not None
    assert {stage.parent.span_id for stage in stages if stage.parent} == {root.context.span_id}
    assert [stages[0].name, stages[3].name, stages[-1].name] == ["collecting", "on the wire", "publishing"]
    assert all(before.end_time == after.start_time for before, after in pairwise(stages))
    assert (stages[0].start_time, stages[-1].end_time) == (root.start_time, root.end_time)
    assert root.start_time is not None
    assert root.end_time is not None
    assert root.end_time - root.start_time == pytest.approx(0.037e9, abs=1e3)


def test_a_span_says_whose_unroll_it_is_and_what_came_of_it() -> None:
    root = exported(41)[-1]
    assert root.attributes is not None
    assert dict(root.attributes) == {
        "impala.actor_id": "a",
        "impala.incarnation": "3",
        "impala.sequence": 41,
        "impala.trajectories": 2,
        "impala.version_that_acted": 5,
        "impala.version_that_came_of_it": 7,
        "impala.clock_uncertainty_seconds": pytest.approx(0.001),
    }


def test_every_unroll_is_a_trace_of_its_own() -> None:
    roots = [span for span in exported(1, 2, 3) if span.name == "unroll"]
    assert len({root.context.trace_id for root in roots if root.context}) == 3


def test_an_unroll_that_is_not_sampled_is_not_sent() -> None:
    assert exported(1, sampler=ALWAYS_OFF) == ()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without what the machine's own environment may say."""
    for name in ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG", "OTEL_SERVICE_NAME", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {ENDPOINT: ""},
        {ENDPOINT: "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
        {ENDPOINT: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_no_spans_are_made_where_the_variables_do_not_say_where_to(variables: dict[str, str]) -> None:
    assert spans_of_environment(variables) is None


@pytest.mark.parametrize("name", [ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_one_unroll_in_a_hundred_is_sent_unless_the_variables_say_otherwise(name: str, environment: pytest.MonkeyPatch) -> None:
    spans = spans_of_environment({name: "http://127.0.0.1:1"})
    assert spans is not None
    assert DEFAULT_SHARE == 0.01
    assert spans._provider.sampler.get_description() == "TraceIdRatioBased{0.01}"
    assert spans._provider.resource.attributes["service.name"] == "impala-learner"
    spans.close()


def test_the_variables_name_the_sampler_and_the_service(environment: pytest.MonkeyPatch) -> None:
    variables = {ENDPOINT: "http://127.0.0.1:1", "OTEL_TRACES_SAMPLER": "parentbased_always_on", "OTEL_SERVICE_NAME": "mine"}
    for name, value in variables.items():
        environment.setenv(name, value)
    spans = spans_of_environment(variables)
    assert spans is not None
    assert isinstance(spans._provider.sampler, ParentBased)
    assert spans._provider.resource.attributes["service.name"] == "mine"
    spans.close()


@pytest.mark.parametrize("protocol", ["grpc", "http/json"])
def test_a_protocol_that_nothing_here_speaks_is_said_and_no_spans_are_made(
    protocol: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner_server.spans._EXPORTERS", {"grpc": "opentelemetry.exporter.otlp.proto.no_such.trace_exporter"})
    variables = {ENDPOINT: "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    assert spans_of_environment(variables) is None
    assert f"no spans are sent: nothing here sends them by {protocol}; pip install 'impala-grpc[otel]'" in caplog.text


def test_nothing_of_it_is_imported_where_no_spans_are_made() -> None:
    source = (
        "import os, sys, learner_server.run, learner_server.spans\n"
        "assert learner_server.spans.spans_of_environment({}) is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", source], check=True)
