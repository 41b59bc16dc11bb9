"""What a client says in headers, or in gRPC's metadata: ids, time, order, cache, route, trace.

`limits`, `websocket` and the gRPC services read them; what they mean is the same on every surface.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.backend import Terms
from graft_runtime.server.context import Exchange, safe_request_id
from graft_runtime.server.fields import MAX_NAME_CHARS, MAX_SALT_CHARS
from graft_runtime.server.tracing import parent_of

Headers = Iterable[tuple[bytes, bytes]]
"""Names in lower case, and values."""

ID_HEADER: Final = b"x-request-id"
TIMEOUT_HEADER: Final = b"x-request-timeout"
"""Seconds after which a client wants no answer any more."""
ROUTE_HEADER: Final = b"x-graft-route-key"
"""Requests that have it in common get the same version of an adapter."""
PRIORITY_HEADER: Final = b"x-graft-priority"
"""As the body's `priority`, for surfaces that have no such field."""
SALT_HEADER: Final = b"x-graft-cache-salt"
"""As the body's `cache_salt`."""
MAX_PRIORITY: Final = 2**31 - 1


def open_exchange(headers: Headers, path: str) -> Exchange:
    """Return the exchange of a request that has these headers; `read_headers` does the rest."""
    given = _value(headers, ID_HEADER)
    text = "" if given is None else given.decode("latin-1")
    id = safe_request_id(text)
    return Exchange(id, path, is_named=id == text)


def read_headers(exchange: Exchange, headers: Headers) -> None:
    """Note what a request's headers say of it.

    Raises:
        InvalidRequestError: A value cannot be honoured; ``param`` names the header.
    """
    exchange.trace_parent = parent_of(headers)
    exchange.route_key = _text(headers, ROUTE_HEADER, MAX_NAME_CHARS) or None
    exchange.timeout_seconds = _timeout_seconds(headers)
    salt = _text(headers, SALT_HEADER, MAX_SALT_CHARS)
    exchange.terms = Terms(_priority(headers), salt)


def _value(headers: Headers, wanted: bytes) -> bytes | None:
    return next((value for name, value in headers if name == wanted), None)


def _text(headers: Headers, wanted: bytes, longest: int) -> str:
    text = (_value(headers, wanted) or b"").decode("latin-1")
    if len(text) > longest:
        raise _bad(wanted, f"has more than {longest} characters")
    return text


def _timeout_seconds(headers: Headers) -> float | None:
    given = _value(headers, TIMEOUT_HEADER)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise _bad(TIMEOUT_HEADER, "must be a positive number of seconds")
    return seconds


def _priority(headers: Headers) -> int:
    given = _value(headers, PRIORITY_HEADER)
    if given is None:
        return 0
    if not given.isdigit() or len(given) > len(str(MAX_PRIORITY)) or int(given) > MAX_PRIORITY:
        raise _bad(PRIORITY_HEADER, f"must be a whole number from 0 to {MAX_PRIORITY}")
    return int(given)


def _bad(header: bytes, fault: str) -> InvalidRequestError:
    name = header.decode()
    return InvalidRequestError(f"`{name}` {fault}", param=name)
