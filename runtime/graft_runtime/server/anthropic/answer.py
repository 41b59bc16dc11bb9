"""The answer of ``/v1/messages``: content blocks, whole or as named events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from graft_runtime.errors import RequestError
from graft_runtime.server.context import Exchange, Frontend
from graft_runtime.server.errors import anthropic_error
from graft_runtime.server.generation import End, generate
from graft_runtime.server.openai.answer import Usage
from graft_runtime.server.openai.chat_answer import ChatCall
from graft_runtime.server.openai.parts import Change, Part, Parts
from graft_runtime.server.openai.speech import Speech
from graft_runtime.server.sse import named_event


@dataclass
class _Answer:
    """One message, as it grows."""

    chat: ChatCall
    id: str
    speech: Speech
    parts: Parts
    usage: Usage
    end: End | None = None

    @classmethod
    def of(cls, chat: ChatCall) -> _Answer:
        usage = Usage(len(chat.job.token_ids))
        return cls(chat, f"msg_{chat.id.partition('-')[2]}", Speech(chat.plan), Parts(), usage)

    def message(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.chat.target.served_name,
            "content": [_block(part) for part in self.parts.all],
            "stop_reason": None if self.end is None else self._stop_reason(self.end),
            "stop_sequence": self._stop_sequence(),
            "usage": self.tokens(),
        }

    def tokens(self) -> dict[str, Any]:
        """Return the counts; tokens from the cache stand apart from the other ones of the input."""
        cached = self.usage.cached_tokens
        return {
            "input_tokens": self.usage.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self.usage.completion_tokens,
        }

    def ending(self) -> dict[str, Any]:
        reason = None if self.end is None else self._stop_reason(self.end)
        return {"stop_reason": reason, "stop_sequence": self._stop_sequence()}

    def _stop_reason(self, end: End) -> str:
        if end.reason in ("length", "abort"):
            return "max_tokens"
        if self.speech.has_calls:
            return "tool_use"
        return "stop_sequence" if end.reason == "stop_string" else "end_turn"

    def _stop_sequence(self) -> str | None:
        stop = None if self.end is None else self.end.stop
        return stop if isinstance(stop, str) else None


async def whole(frontend: Frontend, exchange: Exchange, chat: ChatCall) -> dict[str, Any]:
    """Return the whole answer."""
    answer = _Answer.of(chat)
    async with aclosing(generate(frontend, exchange, chat.job)) as pieces:
        async for piece in pieces:
            answer.usage.add(piece)
            answer.end = piece.end
            answer.parts.take(answer.speech.push(piece.text, is_last=piece.end is not None))
    return answer.message()


async def events(
    frontend: Frontend, exchange: Exchange, chat: ChatCall
) -> AsyncGenerator[bytes, None]:
    """Yield the answer's events."""
    answer = _Answer.of(chat)
    has_begun = False
    async with aclosing(generate(frontend, exchange, chat.job)) as pieces:
        async for piece in pieces:
            answer.usage.cached_tokens += piece.num_cached
            if not has_begun:
                has_begun = True
                yield _event("message_start", message=answer.message())
            answer.usage.completion_tokens += len(piece.tokens)
            answer.end = piece.end
            said = answer.speech.push(piece.text, is_last=piece.end is not None)
            for change in answer.parts.take(said):
                yield _changed(change)
    for change in answer.parts.close():
        yield _changed(change)
    yield _event("message_delta", delta=answer.ending(), usage=answer.tokens())
    yield _event("message_stop")


def stream_error(error: RequestError) -> Sequence[bytes]:
    """Return what ends a stream that fails."""
    return (named_event("error", anthropic_error(error).body),)


def _event(name: str, /, **fields: Any) -> bytes:
    return named_event(name, {"type": name, **fields})


def _changed(change: Change) -> bytes:
    index = change.part.index
    match change.what:
        case "opened":
            begun = _block(change.part, is_open=True)
            return _event("content_block_start", index=index, content_block=begun)
        case "grew":
            delta = _delta(change.part, change.text)
            return _event("content_block_delta", index=index, delta=delta)
        case "closed":
            return _event("content_block_stop", index=index)


def _delta(part: Part, text: str) -> dict[str, Any]:
    match part.kind:
        case "text":
            return {"type": "text_delta", "text": text}
        case "thought":
            return {"type": "thinking_delta", "thinking": text}
        case "call":
            return {"type": "input_json_delta", "partial_json": text}


def _block(part: Part, *, is_open: bool = False) -> dict[str, Any]:
    text = "" if is_open else part.text
    match part.kind:
        case "text":
            return {"type": "text", "text": text}
        case "thought":
            return {"type": "thinking", "thinking": text, "signature": ""}
        case "call":
            arguments = _object(text)
            return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": arguments}


def _object(text: str) -> dict[str, Any]:
    """Return arguments as the object they are; what was cut off cannot be one."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
