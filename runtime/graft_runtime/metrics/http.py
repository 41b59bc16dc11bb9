"""HTTP requests by route, under the names that vLLM's server has from its instrumentation.

Probes and the page itself are left out, as there. A path that nothing serves is ``none``: labels
never take a value from a request.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

from graft_runtime.metrics.buckets import HTTP_BUCKETS, HTTP_FINE_BUCKETS

UNCOUNTED: Final = frozenset(
    {
        "/",
        "/health",
        "/livez",
        "/load",
        "/metrics",
        "/ping",
        "/readyz",
        "/server_info",
        "/startupz",
        "/version",
    }
)
"""GETs of these are somebody's habit, not work."""
METHODS: Final = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH", "PUT"})


class HttpMetrics:
    """What one server answered."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the families."""
        self._requests = Counter(
            "http_requests",
            "Requests by method, class of status and route.",
            ("method", "status", "handler"),
            registry=registry,
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "From arrival to the last byte.",
            ("method", "handler"),
            registry=registry,
            buckets=HTTP_BUCKETS,
        )
        self._fine_seconds = Histogram(
            "http_request_duration_highr_seconds",
            "From arrival to the last byte, all routes together.",
            registry=registry,
            buckets=HTTP_FINE_BUCKETS,
        )
        self._request_bytes = Summary(
            "http_request_size_bytes", "Length of bodies.", ("handler",), registry=registry
        )
        self._response_bytes = Summary(
            "http_response_size_bytes", "Length of answers.", ("handler",), registry=registry
        )

    def answered(
        self,
        method: str,
        route: str | None,
        status: int,
        seconds: float,
        num_bytes: tuple[int, int],
    ) -> None:
        """Count one request.

        Args:
            method: As the client wrote it.
            route: The path of the route as it is declared; None if there is none.
            status: Of the answer.
            seconds: From arrival to the last byte.
            num_bytes: Of the body, and of the answer.
        """
        if method == "GET" and route in UNCOUNTED:
            return
        handler = route or "none"
        known = method if method in METHODS else "other"
        self._requests.labels(known, f"{status // 100}xx", handler).inc()
        self._seconds.labels(known, handler).observe(seconds)
        self._fine_seconds.observe(seconds)
        self._request_bytes.labels(handler).observe(num_bytes[0])
        self._response_bytes.labels(handler).observe(num_bytes[1])
