"""The answer of ``/v1/responses``: items, whole or as named events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from graft_runtime.errors import RequestError
from graft_runtime.server.context import Exchange, Frontend
from graft_runtime.server.generation import End, generate
from graft_runtime.server.openai.answer import Usage
from graft_runtime.server.openai.chat_answer import ChatCall
from graft_runtime.server.openai.parts import Change, Part, Parts
from graft_runtime.server.openai.responses_fields import ResponsesFields
from graft_runtime.server.openai.speech import Speech
from graft_runtime.server.sse import named_event

_PREFIXES: Final = {"text": "msg", "thought": "rs", "call": "fc"}
_GROWN: Final = {
    "text": "response.output_text",
    "thought": "response.reasoning_text",
    "call": "response.function_call_arguments",
}
"""What the events of each kind of part begin with."""


@dataclass(frozen=True)
class ResponsesCall:
    """A request ready to run."""

    id: str
    created: int
    fields: ResponsesFields
    chat: ChatCall

    def envelope(self) -> dict[str, Any]:
        """Return what is known before the output."""
        fields = self.fields
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "model": self.chat.target.served_name,
            "background": False,
            "error": None,
            "instructions": fields.instructions,
            "max_output_tokens": fields.max_output_tokens,
            "metadata": fields.metadata,
            "parallel_tool_calls": fields.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": fields.reasoning.effort, "summary": None},
            "store": False,
            "temperature": self.chat.fields.temperature,
            "text": {"format": fields.text.format},
            "tool_choice": fields.tool_choice or "auto",
            "tools": fields.tools,
            "top_p": self.chat.fields.top_p,
            "truncation": "disabled",
        }

    def response(
        self, status: str, parts: Parts | None = None, usage: Usage | None = None
    ) -> dict[str, Any]:
        """Return the response as it stands."""
        is_cut = status == "incomplete"
        return {
            **self.envelope(),
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": [item(part, "completed") for part in parts.all] if parts else [],
            "usage": _usage(usage, parts) if usage and parts else None,
        }


async def whole(frontend: Frontend, exchange: Exchange, call: ResponsesCall) -> dict[str, Any]:
    """Return the whole answer."""
    speech, parts = Speech(call.chat.plan), Parts()
    usage = Usage(len(call.chat.job.token_ids))
    end: End | None = None
    async with aclosing(generate(frontend, exchange, call.chat.job)) as pieces:
        async for piece in pieces:
            usage.add(piece)
            parts.take(speech.push(piece.text, is_last=piece.end is not None))
            parts.count(len(piece.tokens))
            end = piece.end
    return call.response(_status(end), parts, usage)


def _status(end: End | None) -> str:
    return "incomplete" if end is not None and end.reason == "length" else "completed"


class ResponsesStream:
    """The same as events, numbered in order."""

    def __init__(self, call: ResponsesCall) -> None:
        self._call = call
        self._number = 0

    async def events(self, frontend: Frontend, exchange: Exchange) -> AsyncGenerator[bytes, None]:
        """Yield the answer's events."""
        speech, parts = Speech(self._call.chat.plan), Parts()
        usage = Usage(len(self._call.chat.job.token_ids))
        end: End | None = None
        async with aclosing(generate(frontend, exchange, self._call.chat.job)) as pieces:
            async for piece in pieces:
                if not self._number:
                    begun = self._call.response("in_progress")
                    yield self._event("response.created", response=begun)
                    yield self._event("response.in_progress", response=begun)
                usage.add(piece)
                end = piece.end
                for change in parts.take(speech.push(piece.text, is_last=end is not None)):
                    for each in self._changed(change):
                        yield each
                parts.count(len(piece.tokens))
        for change in parts.close():
            for each in self._changed(change):
                yield each
        status = _status(end)
        yield self._event(f"response.{status}", response=self._call.response(status, parts, usage))

    def failed(self, error: RequestError) -> Sequence[bytes]:
        """Return what ends a stream that fails."""
        return (self._event("error", code=error.code, message=error.message, param=error.param),)

    def _event(self, name: str, /, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return named_event(name, {"type": name, "sequence_number": number, **fields})

    def _changed(self, change: Change) -> list[bytes]:
        part = change.part
        where = {"item_id": _id(part), "output_index": part.index}
        in_part = where if part.kind == "call" else {**where, "content_index": 0}
        head = _GROWN[part.kind]
        match change.what:
            case "opened":
                begun = {"output_index": part.index, "item": item(part, "in_progress")}
                events = [self._event("response.output_item.added", **begun)]
                if part.kind != "call":
                    added = "response.content_part.added"
                    events.append(self._event(added, **in_part, part=_content(part)))
                return events
            case "grew":
                more: dict[str, Any] = {"logprobs": []} if part.kind == "text" else {}
                return [self._event(f"{head}.delta", **in_part, delta=change.text, **more)]
            case "closed":
                return self._closed(part, in_part, head)

    def _closed(self, part: Part, in_part: dict[str, Any], head: str) -> list[bytes]:
        if part.kind == "call":
            done = {"arguments": part.text, "name": part.name}
            events = [self._event(f"{head}.done", **in_part, **done)]
        else:
            more: dict[str, Any] = {"logprobs": []} if part.kind == "text" else {}
            events = [
                self._event(f"{head}.done", **in_part, text=part.text, **more),
                self._event("response.content_part.done", **in_part, part=_content(part)),
            ]
        ended = {"output_index": part.index, "item": item(part, "completed")}
        return [*events, self._event("response.output_item.done", **ended)]


def item(part: Part, status: str) -> dict[str, Any]:
    """Return a part as an item of the output; one that has just begun is empty."""
    body: dict[str, Any] = {"id": _id(part), "status": status}
    is_done = status == "completed"
    match part.kind:
        case "text":
            content = [_content(part)] if is_done else []
            return {**body, "type": "message", "role": "assistant", "content": content}
        case "thought":
            content = [_content(part)] if is_done else []
            return {**body, "type": "reasoning", "summary": [], "content": content}
        case "call":
            call = {"call_id": part.call_id, "name": part.name, "arguments": part.text}
            return {**body, "type": "function_call", **call}


def _content(part: Part) -> dict[str, Any]:
    if part.kind == "thought":
        return {"type": "reasoning_text", "text": part.text}
    return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": []}


def _id(part: Part) -> str:
    return f"{_PREFIXES[part.kind]}_{part.id}"


def _usage(usage: Usage, parts: Parts) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": parts.thinking_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
