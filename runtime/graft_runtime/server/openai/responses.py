"""``POST /v1/responses``: OpenAI's newer form of a chat, answered without keeping anything."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from graft_runtime.errors import RequestError
from graft_runtime.server.body import off_loop, read_object
from graft_runtime.server.context import exchange_of, frontend_of
from graft_runtime.server.fields import parse_fields, renamed
from graft_runtime.server.openai.answer import answer_stream, answer_whole
from graft_runtime.server.openai.chat import prepare, read_chat
from graft_runtime.server.openai.responses_answer import ResponsesCall, ResponsesStream, whole
from graft_runtime.server.openai.responses_fields import UNSUPPORTED, ResponsesFields

router = APIRouter()

_NAMES: Final = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
"""Fields of a chat that have other names here."""


@router.post("/v1/responses", summary="Answer a chat, in parts", response_model=None)
async def create_response(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    body = await read_object(request)
    fields, exchange.ignored_fields = parse_fields(ResponsesFields, body, UNSUPPORTED)
    ignored = exchange.ignored_fields
    with renamed(_NAMES):
        chat = await off_loop(exchange, lambda: read_chat(fields.to_chat()))
        prepared = await prepare(frontend, exchange, chat)
    exchange.ignored_fields = ignored
    id = f"resp_{exchange.request_id}"
    call = ResponsesCall(id, int(time.time()), fields, prepared)
    if not fields.stream:
        return await answer_whole(request, whole(frontend, exchange, call))
    stream = ResponsesStream(call)

    def failed(error: RequestError) -> Sequence[bytes]:
        return stream.failed(error)

    return answer_stream(request, stream.events(frontend, exchange), error_events=failed)
