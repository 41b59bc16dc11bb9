"""Bodies of the HTTP surface: JSON with binary tensors behind it, compressed or not.

Limits were applied to what came over the wire; what a compressed body grows to is bounded here.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request

from graft_runtime.errors import BodyTooLargeError, InvalidRequestError, MediaTypeError
from graft_runtime.server.body import off_loop, parse_object
from graft_runtime.server.context import exchange_of, frontend_of

HEADER_LENGTH: Final = "inference-header-content-length"
_ANY_FORMAT: Final = zlib.MAX_WBITS | 32
"""gzip or zlib, by what the bytes begin with."""


@dataclass(frozen=True)
class InferBody:
    """A body taken apart."""

    document: Mapping[str, Any]
    """Its JSON; empty if the whole body is one tensor."""
    binary: bytes
    """What stands behind the JSON."""
    is_raw: bool = False
    """Whether the whole body is one tensor's bytes."""


async def read_infer_body(request: Request) -> InferBody:
    """Read the body of an inference.

    Raises:
        InvalidRequestError: Its parts do not add up, or it is not what it says.
        BodyTooLargeError: It grows too long.
        MediaTypeError: It is compressed in a way that nobody here knows.
        ClientDisconnect: The client left before the end.
    """
    exchange = exchange_of(request.scope)
    data = await _decompressed(request, await _read(request))
    exchange.num_body_bytes = len(data)
    length = request.headers.get(HEADER_LENGTH)
    if length is None:
        return InferBody(await off_loop(exchange, parse_object, data), b"")
    if not length.isascii() or not length.isdigit() or len(length) > 12 or int(length) > len(data):
        raise InvalidRequestError(f"the header {HEADER_LENGTH} is not within the body")
    end = int(length)
    if end == 0:
        return InferBody({}, data, is_raw=True)
    return InferBody(await off_loop(exchange, parse_object, data[:end]), data[end:])


async def read_document(request: Request, *, may_be_empty: bool = False) -> dict[str, Any]:
    """Read a body that is JSON, whatever type it is announced as: curl's default is another.

    Raises:
        InvalidRequestError: It is not.
        MediaTypeError: It is compressed.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise MediaTypeError("a compressed body is not accepted here")
    exchange = exchange_of(request.scope)
    data = await _read(request)
    exchange.num_body_bytes = len(data)
    if may_be_empty and not data.strip():
        return {}
    return await off_loop(exchange, parse_object, data)


async def _read(request: Request) -> bytes:
    return b"".join([chunk async for chunk in request.stream()])


async def _decompressed(request: Request, data: bytes) -> bytes:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return data
    if encoding not in ("gzip", "deflate"):
        raise MediaTypeError("the content-encoding must be gzip, deflate or identity")
    limit = frontend_of(request).settings.max_body_bytes
    return await asyncio.to_thread(_inflate, data, limit)


def _inflate(data: bytes, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(wbits=_ANY_FORMAT)
    try:
        plain = stream.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise InvalidRequestError("the body is not compressed as announced") from error
    if len(plain) > max_bytes:
        raise BodyTooLargeError(f"the body is longer than {max_bytes} bytes")
    if not stream.eof:
        raise InvalidRequestError("the compressed body ends early")
    return plain


def accepted_encoding(header: str) -> str | None:
    """Return the compression that an ``Accept-Encoding`` header lets an answer have, if any."""
    named = [part.partition(";") for part in header.lower().split(",")]
    refused = {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    wanted = {name.strip() for name, _, weight in named if weight.replace(" ", "") not in refused}
    return next((each for each in ("gzip", "deflate") if each in wanted), None)


def compress(data: bytes, encoding: str) -> bytes:
    """Return bytes compressed; fast, since answers are short."""
    wbits = zlib.MAX_WBITS | (16 if encoding == "gzip" else 0)
    stream = zlib.compressobj(level=1, wbits=wbits)
    return stream.compress(data) + stream.flush()
