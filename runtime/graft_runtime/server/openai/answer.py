"""What both OpenAI surfaces do alike: usage, finish reasons, and the two kinds of answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from graft_runtime.errors import RequestError
from graft_runtime.server.context import exchange_of, frontend_of
from graft_runtime.server.errors import openai_error
from graft_runtime.server.exchange import watch
from graft_runtime.server.generation import End, Piece
from graft_runtime.server.sse import DONE, SseResponse, event


@dataclass
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that did not have to be computed."""

    def add(self, piece: Piece) -> None:
        """Count one piece of one request."""
        self.completion_tokens += len(piece.tokens)
        self.cached_tokens += piece.num_cached

    def to_json(self) -> dict[str, Any]:
        """Return OpenAI's form."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


def finish_reason(end: End | None) -> str | None:
    """Return OpenAI's word for an end."""
    if end is None:
        return None
    return end.reason if end.reason in ("length", "abort") else "stop"


def stop_reason(end: End | None) -> str | int | None:
    """Return vLLM's detail: the stop string or stop token that ended the output."""
    return None if end is None else end.stop


def stream_error(error: RequestError) -> Sequence[bytes]:
    """Return what ends a stream that fails."""
    return event(openai_error(error).body), DONE


async def answer_whole(request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> Response:
    """Answer with one JSON object, unless the client leaves before."""
    exchange = exchange_of(request.scope)
    timeout = frontend_of(request).settings.request_timeout_seconds
    body = await watch(exchange, request.receive, work, timeout_seconds=timeout)
    return Response(
        msgspec.json.encode(body), media_type="application/json", headers=exchange.headers()
    )


def answer_stream(
    request: Request,
    events: AsyncGenerator[bytes, None],
    *,
    error_events: Callable[[RequestError], Sequence[bytes]] = stream_error,
) -> Response:
    """Answer with events; they bring their own ``[DONE]``, if the surface has one."""
    exchange = exchange_of(request.scope)
    return SseResponse(
        exchange,
        events,
        error_events=error_events,
        timeout_seconds=frontend_of(request).settings.request_timeout_seconds,
        headers=exchange.headers(),
    )
