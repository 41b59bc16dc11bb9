"""OpenTelemetry spans of generations, written when each has ended. Off unless an endpoint is set.

The library is imported only then. A span begins where its request arrived, under the caller's span
if the request names one, and has a child for each phase that it came through.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from graft_runtime.metrics.requests import Course

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SERVICE_NAME: Final = "graft-runtime"
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""The variables of OpenTelemetry that turn tracing on."""
_NAMES: Final = frozenset({"traceparent", "tracestate"})
_PARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True)
class Ended:
    """A generation that has ended, for its span."""

    course: Course
    attributes: Mapping[str, str | int | float]
    error: str | None
    """What went wrong, if something did."""
    parent: Mapping[str, str]
    """The caller's `traceparent` and `tracestate`, as far as they came."""


class Tracer(Protocol):
    """What generations are told to when they have ended."""

    def record(self, ended: Ended) -> str | None:
        """Write a span and return its trace's id, if there is one."""
        ...

    def close(self) -> None:
        """Send what waits; may take seconds."""
        ...


class NoTracer:
    """Writes nothing, and knows a trace only if the caller named it."""

    def record(self, ended: Ended) -> str | None:
        """Return the caller's trace id."""
        found = _PARENT.fullmatch(ended.parent.get("traceparent", ""))
        return found[1] if found else None

    def close(self) -> None:
        """Do nothing."""


class SpanTracer:
    """Writes spans through OpenTelemetry."""

    def __init__(self, provider: TracerProvider) -> None:
        """Use a provider of the library's.

        Args:
            provider: Where spans go; `close` shuts it down.
        """
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer(SERVICE_NAME)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, ended: Ended) -> str | None:
        """Write a span with its phases and return its trace's id."""
        trace = self._trace
        end = time.time_ns()
        start = end - round(ended.course.total * _NANOSECONDS)
        span = self._tracer.start_span(
            "llm_request",
            context=self._propagator.extract(dict(ended.parent)),
            kind=trace.SpanKind.SERVER,
            attributes=dict(ended.attributes),
            start_time=start,
        )
        inside = trace.set_span_in_context(span)
        for name, begin, seconds in _phases(ended.course):
            begun = start + round(begin * _NANOSECONDS)
            child = self._tracer.start_span(name, context=inside, start_time=begun)
            child.end(begun + round(seconds * _NANOSECONDS))
        if ended.error is not None:
            span.set_status(trace.StatusCode.ERROR, ended.error)
        span.end(end)
        return str(trace.format_trace_id(span.get_span_context().trace_id))

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


def _phases(course: Course) -> list[tuple[str, float, float]]:
    """Return the phases a generation came through: name, begin after arrival, and duration."""
    found = []
    begin = 0.0
    for name in ("prepare", "queue", "prefill", "decode"):
        seconds: float | None = getattr(course, name)
        if seconds is not None:
            found.append((name, begin, seconds))
            begin += seconds
    return found


def start_tracer() -> Tracer:
    """Return what the environment asks for: spans to an endpoint, or none."""
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return NoTracer()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named: dict[str, Any] = {}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        named["service.name"] = SERVICE_NAME
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return SpanTracer(provider)


def parent_of(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers that name the caller's span, out of a request's headers or metadata."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in headers
        if name.decode("latin-1") in _NAMES
    }
