"""Bodies read as strict JSON: what two parsers could read differently is refused.

Knows no field; `fields` does. The parse runs in a thread once the body is long.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

from starlette.requests import Request

from graft_runtime.errors import MalformedBodyError, MediaTypeError
from graft_runtime.server.context import Exchange, exchange_of
from graft_runtime.server.json_pieces import PieceDecoder, has_many

P = ParamSpec("P")
T = TypeVar("T")

MAX_DEPTH: Final = 64
"""Arrays and objects inside each other."""
THREAD_BYTES: Final = 32 * 1024
"""Bodies longer than this would stall the loop by milliseconds."""


async def read_object(request: Request) -> dict[str, Any]:
    """Read the body as one JSON object.

    Raises:
        MediaTypeError: Not announced as plain JSON.
        MalformedBodyError: Not an object, or not strict JSON.
        ClientDisconnect: The client left before the end.
    """
    _check_media_type(request)
    chunks = [chunk async for chunk in request.stream()]
    data = b"".join(chunks)
    exchange = exchange_of(request.scope)
    exchange.num_body_bytes = len(data)
    return await off_loop(exchange, parse_object, data)


async def off_loop(
    exchange: Exchange, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Return a function's result without stalling the loop: in a thread, if the body was long."""
    if exchange.num_body_bytes > THREAD_BYTES:
        return await asyncio.to_thread(work, *args, **kwargs)
    return work(*args, **kwargs)


def _check_media_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    if not is_json:
        raise MediaTypeError("the content-type must be application/json")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise MediaTypeError("a compressed body is not accepted")


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse the bytes of one strict JSON object.

    Raises:
        MalformedBodyError: With the place or the rule, never with the content.
    """
    try:
        value = _decoded(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise MalformedBodyError("the body is not UTF-8") from error
    except RecursionError as error:
        raise _too_deep() from error
    except json.JSONDecodeError as error:
        message = f"the body is not JSON: {error.msg} at position {error.pos}"
        raise MalformedBodyError(message) from error
    except ValueError as error:  # an integer of thousands of digits
        raise MalformedBodyError("the body holds a number that is too long") from error
    if not isinstance(value, dict):
        raise MalformedBodyError("the body must be a JSON object")
    _check_values(value)
    return value


def _decoded(text: str) -> Any:
    if has_many(text):
        return PieceDecoder(_object, _refuse_constant).decode(text)
    return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Not `dict`, which would keep the interpreter to itself: there may be a million.
    value = {key: value for key, value in pairs}  # noqa: C416
    if len(value) != len(pairs):
        raise MalformedBodyError("an object has the same key twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedBodyError(f"{name} is not JSON")


def _too_deep() -> MalformedBodyError:
    return MalformedBodyError(f"more than {MAX_DEPTH} arrays and objects inside each other")


def _check_values(root: Any) -> None:
    """Check what the grammar lets pass: depth, overflowing numbers, NUL and half characters."""
    level = [root]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
            else:
                _check_scalar(value)
        if not below:
            return
        level = below
    raise _too_deep()


def _check_scalar(value: Any) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise MalformedBodyError("a string holds a NUL character")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise MalformedBodyError("a string holds half of a surrogate pair") from error
    elif isinstance(value, float) and not math.isfinite(value):
        raise MalformedBodyError("a number is too large")
