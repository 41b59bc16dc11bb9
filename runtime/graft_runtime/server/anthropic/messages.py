"""``POST /v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's form of a chat."""

from __future__ import annotations

from typing import Final, TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from graft_runtime.server.anthropic.answer import events, stream_error, whole
from graft_runtime.server.anthropic.fields import UNSUPPORTED, CountFields, MessagesFields
from graft_runtime.server.body import off_loop, read_object
from graft_runtime.server.context import exchange_of, frontend_of
from graft_runtime.server.fields import parse_fields, renamed
from graft_runtime.server.openai.answer import answer_stream, answer_whole
from graft_runtime.server.openai.chat import ChatRequest, encode_chat, prepare, read_chat

router = APIRouter()

_NAMES: Final = {
    "reasoning_effort": "thinking",
    "stop": "stop_sequences",
    "thinking_token_budget": "thinking.budget_tokens",
    "user": "metadata.user_id",
}
"""Fields of a chat that have other names here."""

F = TypeVar("F", bound=CountFields)


@router.post("/v1/messages", summary="Answer messages", response_model=None)
async def create_message(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    fields, chat = await _read(request, MessagesFields)
    ignored = exchange.ignored_fields
    with renamed(_NAMES):
        call = await prepare(frontend, exchange, chat)
    exchange.ignored_fields = ignored
    if fields.stream:
        return answer_stream(request, events(frontend, exchange, call), error_events=stream_error)
    return await answer_whole(request, whole(frontend, exchange, call))


@router.post("/v1/messages/count_tokens", summary="Count a prompt's tokens", response_model=None)
async def count_tokens(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    fields, chat = await _read(request, CountFields)
    target = frontend.backend.resolve(fields.model, exchange.route_key)
    with renamed(_NAMES):
        _, _, prompt = await encode_chat(frontend, target, chat.fields, chat.messages, chat.tools)
    return JSONResponse({"input_tokens": len(prompt.token_ids)}, headers=exchange.headers())


async def _read(request: Request, model: type[F]) -> tuple[F, ChatRequest]:
    """Return a body's fields, and the chat that they stand for."""
    body = await read_object(request)
    fields, ignored = parse_fields(model, body, UNSUPPORTED)
    exchange = exchange_of(request.scope)
    exchange.ignored_fields = ignored
    with renamed(_NAMES):
        return fields, await off_loop(exchange, lambda: read_chat(fields.to_chat()))
