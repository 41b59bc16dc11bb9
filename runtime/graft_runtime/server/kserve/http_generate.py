"""``POST .../generate`` and ``.../generate_stream``: one flat JSON object in, text out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from graft_runtime.errors import InvalidRequestError, RequestError
from graft_runtime.server.body import off_loop
from graft_runtime.server.context import Exchange, Frontend, exchange_of, frontend_of
from graft_runtime.server.errors import triton_error
from graft_runtime.server.exchange import watch
from graft_runtime.server.kserve.call import Call, answers, prepare
from graft_runtime.server.kserve.contract import (
    INPUTS,
    REFUSED_INPUTS,
    VERSION,
    Inputs,
    read_inputs,
)
from graft_runtime.server.kserve.http_body import read_document
from graft_runtime.server.kserve.tensors import Tensor, from_json
from graft_runtime.server.sse import SseResponse, event

MAX_ID_CHARS: Final = 1024


async def answer_generate(request: Request, model: str, version: str) -> Response:
    """Answer with one JSON object.

    Raises:
        RequestError: It is refused or fails.
    """
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    id, inputs = await off_loop(exchange, _read, await read_document(request))
    if inputs.stream:
        message = (
            "generate expects model to produce exactly 1 response, "
            "use generate stream for model that generates various number of responses"
        )
        raise InvalidRequestError(message, param="stream")
    call = await prepare(frontend, exchange, model, version, inputs)
    body = await watch(
        exchange,
        request.receive,
        _only(_documents(frontend, exchange, call, id)),
        timeout_seconds=frontend.settings.request_timeout_seconds,
    )
    return Response(
        msgspec.json.encode(body), media_type="application/json", headers=exchange.headers()
    )


async def answer_generate_stream(request: Request, model: str, version: str) -> Response:
    """Answer with events.

    Raises:
        RequestError: It is refused.
    """
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    id, inputs = await off_loop(exchange, _read, await read_document(request))
    call = await prepare(frontend, exchange, model, version, inputs)
    return SseResponse(
        exchange,
        _events(_documents(frontend, exchange, call, id)),
        error_events=_stream_error,
        timeout_seconds=frontend.settings.request_timeout_seconds,
        headers=exchange.headers(),
    )


def _read(body: dict[str, Any]) -> tuple[str, Inputs]:
    """Return the id and the inputs; it does not matter which keys stand under ``parameters``."""
    nested = body.pop("parameters", None) or {}
    id = body.pop("id", None) or ""
    if not isinstance(nested, dict):
        raise InvalidRequestError("`parameters` must be an object", param="parameters")
    if not isinstance(id, str) or len(id) > MAX_ID_CHARS:
        raise InvalidRequestError("`id` must be a short string", param="id")
    values = {name: value for name, value in {**nested, **body}.items() if value is not None}
    tensors = [
        _tensor(name, value)
        for name, value in values.items()
        if name in INPUTS or name in REFUSED_INPUTS
    ]
    rest = {name: value for name, value in values.items() if name not in INPUTS}
    return id, read_inputs(tensors, rest)


def _tensor(name: str, value: Any) -> Tensor:
    """Return an input that stands as a value or as a list; JSON may hold an object as such."""
    values = value if isinstance(value, list) else [value]
    if name == "sampling_parameters" and isinstance(value, dict):
        values = [msgspec.json.encode(value).decode()]
    return from_json(name, INPUTS.get(name, "BYTES"), [len(values)], values)


async def _documents(
    frontend: Frontend, exchange: Exchange, call: Call, id: str
) -> AsyncGenerator[dict[str, Any], None]:
    head = {"id": id} if id else {}
    head |= {"model_name": call.model_name, "model_version": VERSION}
    async with aclosing(answers(frontend, exchange, call)) as replies:
        async for reply in replies:
            yield {**head, **{each.name: _plain(each) for each in reply.tensors}}


def _plain(tensor: Tensor) -> Any:
    """Return a tensor of one element as that, others as a list."""
    data = tensor.json_data
    return data[0] if len(data) == 1 else data


async def _only(documents: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    async with aclosing(documents):
        return [document async for document in documents][-1]


async def _events(documents: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(documents):
        async for document in documents:
            yield event(document)


def _stream_error(error: RequestError) -> Sequence[bytes]:
    return (event(triton_error(error).body),)
