"""Spans of generations: sent to a real endpoint on loopback, and only if one is set."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from graft_protocol.config import ServerSettings
from graft_runtime.errors import EngineDiedError
from graft_runtime.metrics import Metrics
from graft_runtime.server.app import create_app
from graft_runtime.server.tracing import NoTracer, SpanTracer, start_tracer
from tests.support.fake_backend import ADAPTER, FakeBackend
from tests.support.server_thread import serving

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "r-1"}


class Collector:
    """Takes spans as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    with serving(collector.server):
        yield collector


async def complete(backend: FakeBackend, metrics: Metrics, **body: object) -> None:
    """Ask once, and send what was traced."""
    tracer = start_tracer()
    assert isinstance(tracer, SpanTracer)
    app = create_app(backend, ServerSettings(), metrics=metrics, tracer=tracer)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        await client.post("/v1/completions", json={"prompt": "x"} | body, headers=HEADERS)
    tracer.close()


async def test_a_generation_is_a_span_with_its_phases_under_the_callers(
    collector: Collector, backend: FakeBackend, metrics: Metrics
) -> None:
    await complete(backend, metrics, model=ADAPTER)
    by_name = {span.name: span for span in collector.spans}
    assert by_name.keys() == {"llm_request", "prepare", "prefill", "decode"}
    span = by_name.pop("llm_request")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    for child in by_name.values():
        assert child.parent_span_id == span.span_id
        assert span.start_time_unix_nano <= child.start_time_unix_nano
        assert child.end_time_unix_nano <= span.end_time_unix_nano + 1
    values = {each.key: each.value for each in span.attributes}
    assert values["gen_ai.request.id"].string_value == "r-1"
    assert values["gen_ai.request.model"].string_value == ADAPTER
    assert values["gen_ai.usage.completion_tokens"].int_value == len(backend.script)
    assert values["graft.tenant"].string_value == "default"
    assert values["graft.adapter.digest"].string_value == "0123456789ab"


async def test_a_failure_is_an_error_of_its_span(
    collector: Collector, backend: FakeBackend, metrics: Metrics
) -> None:
    backend.script, backend.error = (), EngineDiedError("gone")
    await complete(backend, metrics)
    (span,) = [span for span in collector.spans if span.name == "llm_request"]
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.status.message == "engine_failed"


async def test_a_request_that_is_refused_is_a_span_without_a_generation(
    collector: Collector, backend: FakeBackend, metrics: Metrics
) -> None:
    await complete(backend, metrics, model="nobody")
    by_name = {span.name: span for span in collector.spans}
    assert by_name.keys() == {"llm_request", "prepare"}
    span = by_name["llm_request"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.status.message == "model_not_found"
    values = {each.key: each.value.string_value for each in span.attributes}
    assert (values["gen_ai.request.id"], values["graft.path"]) == ("r-1", "/v1/completions")


def test_without_an_endpoint_nothing_is_traced_or_even_imported() -> None:
    code = (
        "import sys; from graft_runtime.server.tracing import start_tracer, NoTracer;"
        "assert isinstance(start_tracer(), NoTracer);"
        "print(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    environment = {name: value for name, value in os.environ.items() if "OTEL" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert re.fullmatch(r"False\n", done.stdout)


def test_the_callers_trace_is_known_without_tracing() -> None:
    from graft_runtime.metrics.requests import Course
    from graft_runtime.server.tracing import Ended

    for parent, expected in ((HEADERS["traceparent"], TRACE), ("00-zz-01", None), ("", None)):
        ended = Ended(Course(total=1.0), {}, None, {"traceparent": parent})
        assert NoTracer().record(ended) == expected
