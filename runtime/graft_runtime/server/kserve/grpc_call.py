"""What every RPC has around it: its exchange, its deadline, its answer to an error."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from graft_runtime.errors import RequestError
from graft_runtime.server import request_headers
from graft_runtime.server.caller import set_caller
from graft_runtime.server.context import Exchange, Frontend
from graft_runtime.server.errors import RETRIED, as_request_error, retry_seconds
from graft_runtime.server.exchange import within
from graft_runtime.server.refusals import note_refusal

T = TypeVar("T")

MIN_SECONDS: Final = 0.001
"""What is left of a deadline that is as good as over."""

_DETAILS: Final = "grpc-status-details-bin"
"""Where gRPC's clients look for more than a code and a sentence."""

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


async def abort(context: Any, error: RequestError) -> None:
    """End an RPC with an error. One that may succeed later says when, as ``google.rpc.RetryInfo``.

    Raises:
        grpc.aio.AbortError: Always; it is how the library ends an RPC.
    """
    code = status_of(error)
    trailing = tuple(context.trailing_metadata() or ())
    if error.status in RETRIED:
        trailing += ((_DETAILS, _retry_info(code, error)),)
    await context.abort(code, error.message, trailing)


def _retry_info(code: Any, error: RequestError) -> bytes:
    status = Status(code=code.value[0], message=error.message)
    info = RetryInfo()
    info.retry_delay.seconds = retry_seconds(error)
    status.details.add().Pack(info)
    return bytes(status.SerializeToString())


def open_exchange(context: Any, path: str) -> Exchange:
    """Return the exchange of one RPC, or of one request of a stream; note who calls."""
    headers = _headers(context)
    set_caller(headers)
    return request_headers.open_exchange(headers, path)


def read_metadata(exchange: Exchange, context: Any) -> None:
    """Note what an RPC's metadata say of its requests: the same names as in HTTP's headers.

    Raises:
        InvalidRequestError: A value cannot be honoured.
    """
    request_headers.read_headers(exchange, _headers(context))
    remaining = context.time_remaining()
    if remaining is not None:
        given = exchange.timeout_seconds or remaining
        exchange.timeout_seconds = max(min(given, remaining), MIN_SECONDS)


def _headers(context: Any) -> list[tuple[bytes, bytes]]:
    return [
        (name.encode(), value.encode("latin-1", "replace"))
        for name, value in context.invocation_metadata() or ()
        if isinstance(value, str)
    ]


async def run(
    exchange: Exchange, context: Any, work: Coroutine[Any, Any, T], *, timeout_seconds: float
) -> T:
    """Return the work's result within the server's and the client's time.

    A client that cancels cancels the caller, and the work with it.

    Raises:
        DeadlineError: The time is over.
    """
    remaining = context.time_remaining()
    bound = timeout_seconds - exchange.elapsed()
    seconds = bound if remaining is None else min(bound, remaining)
    return await within(exchange, work, timeout_seconds=seconds)


def refuse(frontend: Frontend, exchange: Exchange, error: Exception) -> RequestError:
    """Note an error as the HTTP surfaces do, and return what the client may know."""
    refusal = as_request_error(error, exchange.request_id)
    facts = {"status": status_of(refusal).name}
    note_refusal(frontend.metrics, frontend.tracer, exchange, refusal, facts)
    return refusal
