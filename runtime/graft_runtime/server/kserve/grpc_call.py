"""What every RPC has around it: its exchange, its deadline, its answer to an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import grpc

from graft_runtime.errors import DeadlineError, RequestError
from graft_runtime.server.caller import set_caller
from graft_runtime.server.context import Exchange, Frontend, safe_request_id
from graft_runtime.server.errors import as_request_error, tgi_cause
from graft_runtime.server.exchange import stop

T = TypeVar("T")

_logger = logging.getLogger(__name__)

_STATUS: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def status_of(error: RequestError) -> Any:
    """Return the status code that tells a client what kind of error it is."""
    return _STATUS.get(error.status, grpc.StatusCode.INTERNAL)


def open_exchange(context: Any, path: str) -> Exchange:
    """Return the exchange of one RPC, or of one request of a stream; note who calls."""
    metadata = dict(context.invocation_metadata() or ())
    set_caller(
        (name.encode(), value.encode("latin-1", "replace"))
        for name, value in metadata.items()
        if isinstance(value, str)
    )
    given = metadata.get("x-request-id", "")
    return Exchange(safe_request_id(given if isinstance(given, str) else ""), path)


async def run(
    exchange: Exchange, context: Any, work: Coroutine[Any, Any, T], *, timeout_seconds: float
) -> T:
    """Return the work's result within the server's and the client's time.

    A client that cancels cancels the caller, and the work with it.

    Raises:
        DeadlineError: The time is over.
    """
    remaining = context.time_remaining()
    bound = max(0.0, timeout_seconds - exchange.elapsed())
    working = asyncio.create_task(work)
    try:
        await asyncio.wait({working}, timeout=bound if remaining is None else min(bound, remaining))
        if working.done():
            return working.result()
        exchange.abort_reason = "deadline"
    finally:
        await stop(working)
    raise DeadlineError("the request took longer than allowed")


def refuse(frontend: Frontend, exchange: Exchange, error: Exception) -> RequestError:
    """Count and log an error as the HTTP surfaces do, and return what the client may know."""
    refusal = as_request_error(error, exchange.request_id)
    frontend.metrics.rejected(refusal.code)
    if not exchange.failure_counted:
        frontend.metrics.tgi_failed(tgi_cause(refusal))
    _logger.info(
        "refused",
        extra={
            "request_id": exchange.request_id,
            "path": exchange.path,
            "status": status_of(refusal).name,
            "code": refusal.code,
        },
    )
    return refusal
