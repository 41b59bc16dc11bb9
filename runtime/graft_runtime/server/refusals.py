"""Requests that were refused: counted, traced and logged alike on every surface.

One that failed amid its generation has been counted and traced by `record` already.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from graft_runtime.errors import RequestError
from graft_runtime.metrics import Metrics
from graft_runtime.metrics.requests import Course
from graft_runtime.server.context import Exchange
from graft_runtime.server.errors import tgi_cause
from graft_runtime.server.tracing import Ended, Tracer

_logger = logging.getLogger(__name__)

MAX_LOGGED_PATH: Final = 200
"""Characters of a refused request's path that log and span show."""


def note_refusal(
    metrics: Metrics | None,
    tracer: Tracer,
    exchange: Exchange,
    refusal: RequestError,
    facts: Mapping[str, Any],
    *,
    asks_to_generate: bool = True,
) -> None:
    """Count, trace and log a refusal.

    Args:
        metrics: Where it is counted, if anywhere.
        tracer: What is told of it.
        exchange: The request's.
        refusal: What the client is told.
        facts: More for the log.
        asks_to_generate: Whether it might have become a generation: only these are TGI's requests,
            and have spans.
    """
    trace_id = None
    if metrics is not None:
        metrics.rejected(refusal.code)
    if asks_to_generate and not exchange.failure_counted:
        if metrics is not None:
            metrics.tgi_failed(tgi_cause(refusal))
        trace_id = tracer.record(_ended(exchange, refusal))
    line = {
        "request_id": exchange.request_id,
        "trace_id": trace_id,
        "path": exchange.path[:MAX_LOGGED_PATH],
        "code": refusal.code,
        **facts,
    }
    _logger.info("refused", extra=line)


def _ended(exchange: Exchange, refusal: RequestError) -> Ended:
    """Return a course that ended while it was prepared."""
    seconds = exchange.elapsed()
    attributes: dict[str, str | int | float] = {
        "gen_ai.request.id": exchange.request_id,
        "gen_ai.latency.e2e": seconds,
        "gen_ai.response.finish_reasons": refusal.code,
        "graft.path": exchange.path[:MAX_LOGGED_PATH],
    }
    course = Course(total=seconds, prepare=seconds)
    return Ended(course, attributes, refusal.code, exchange.trace_parent)
