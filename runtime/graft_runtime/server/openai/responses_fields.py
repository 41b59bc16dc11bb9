"""A body of ``/v1/responses`` as the chat that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field, field_validator
from pydantic_core import PydanticKnownError

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.fields import (
    Fields,
    ModelName,
    PositiveInt,
    RouteKey,
    Temperature,
    TopP,
    Unsupported,
)
from graft_runtime.server.openai.shapes import RESPONSES_INPUT, as_shape

UNSUPPORTED: Final[Unsupported] = {
    "store": (False,),
    "previous_response_id": (),
    "conversation": (),
    "background": (False,),
    "prompt": (),
    "truncation": ("disabled",),
    "top_logprobs": (0,),
    "include": ([],),
    "max_tool_calls": (),
    "context_management": ([],),
    "stream_options": ({}, {"include_obfuscation": False}),
}
"""Nothing is kept after an answer, so nothing can be referred to."""
MAX_METADATA: Final = 16
"""Pairs that come back as they were sent."""


class TextFields(Fields):
    """The field ``text``."""

    format: dict[str, Any] = Field(default={"type": "text"})


class ReasoningFields(Fields):
    """The field ``reasoning``."""

    effort: str | None = None


class ResponsesFields(Fields):
    """What this surface honours."""

    model: ModelName | None = None
    input: Any = Field(json_schema_extra=as_shape(RESPONSES_INPUT))
    instructions: str | None = None
    max_output_tokens: PositiveInt | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stream: bool = False
    tools: list[Any] = Field(default=[])
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    text: TextFields = TextFields()
    reasoning: ReasoningFields = ReasoningFields()
    metadata: dict[str, str] = Field(default={}, max_length=MAX_METADATA)
    seed: int | None = None
    user: RouteKey | None = None
    request_id: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @field_validator("metadata", mode="before")
    @classmethod
    def _few_pairs(cls, value: Any) -> Any:
        """Count before each value is looked at, whose faults would all be written down."""
        if isinstance(value, dict) and len(value) > MAX_METADATA:
            lengths = {"max_length": MAX_METADATA, "actual_length": len(value)}
            raise PydanticKnownError("too_long", {"field_type": "Dictionary", **lengths})
        return value

    def to_chat(self) -> dict[str, Any]:
        """Return the same as a body of chat completions.

        Raises:
            InvalidRequestError: A part of it has no such form; ``param`` tells where.
        """
        return {
            "model": self.model,
            "messages": self._messages(),
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "user": self.user,
            "request_id": self.request_id,
            "tools": [_tool(each, f"tools[{index}]") for index, each in enumerate(self.tools)],
            "tool_choice": _choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "reasoning_effort": self.reasoning.effort,
            "chat_template_kwargs": self.chat_template_kwargs,
            "response_format": _format(self.text.format),
        }

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        if not isinstance(self.input, list) or not self.input:
            raise _bad("input", "must be a string or a non-empty list of items")
        thought = ""
        for index, item in enumerate(self.input):
            where = f"input[{index}]"
            if not isinstance(item, dict):
                raise _bad(where, "must be an object")
            if item.get("type") == "reasoning":
                thought = _texts(item.get("content") or [], f"{where}.content")
                continue
            _add(messages, item, where, thought)
            thought = ""
        return messages


def _add(messages: list[dict[str, Any]], item: dict[str, Any], where: str, thought: str) -> None:
    """Add one item to the messages; calls made together are one message."""
    match item.get("type", "message"):
        case "message":
            content = item.get("content")
            text = content if isinstance(content, str) else _texts(content, f"{where}.content")
            messages.append({"role": item.get("role"), "content": text})
        case "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        case "function_call_output":
            output = item.get("output")
            text = output if isinstance(output, str) else _texts(output, f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        case kind:
            raise _bad(where, f"of type `{str(kind)[:40]}` is not supported")
    if thought and messages[-1]["role"] == "assistant":
        messages[-1]["reasoning_content"] = thought


def _texts(parts: Any, where: str) -> str:
    """Return the text of parts."""
    if not isinstance(parts, list):
        raise _bad(where, "must be a string or a list of parts")
    return "\n".join(_text(part, f"{where}[{index}]") for index, part in enumerate(parts))


def _text(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("input_text", "output_text", "text", "reasoning_text"):
        raise _bad(where, f"of type `{str(kind)[:40]}` is not supported: only texts are read")
    if not isinstance(part.get("text"), str):
        raise _bad(f"{where}.text", "must be a string")
    text: str = part["text"]
    return text


def _tool(tool: Any, where: str) -> dict[str, Any]:
    """Return a tool in chat's form, which has its fields one level deeper."""
    if not isinstance(tool, dict):
        raise _bad(where, "must be an object")
    if tool.get("type") != "function":
        raise _bad(f"{where}.type", "is not supported: only functions can be called")
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _choice(choice: Any) -> Any:
    if isinstance(choice, Mapping) and "function" not in choice:
        if choice.get("type") != "function":
            raise _bad("tool_choice", "is not supported with this type")
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _format(format: dict[str, Any]) -> dict[str, Any]:
    """Return a format in chat's form, which has a schema one level deeper."""
    if format.get("type") != "json_schema":
        return format
    return {"type": "json_schema", "json_schema": {k: v for k, v in format.items() if k != "type"}}


def _bad(param: str, fault: str) -> InvalidRequestError:
    return InvalidRequestError(f"`{param}` {fault}", param=param)
