"""A body of ``/v1/messages`` as the chat that it stands for."""

from __future__ import annotations

import json
from typing import Any, Final

from pydantic import Field

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.fields import (
    Fields,
    ModelName,
    PositiveInt,
    Temperature,
    TopP,
    Unsupported,
)

UNSUPPORTED: Final[Unsupported] = {
    "container": (),
    "context_management": (),
    "mcp_servers": ([],),
    "output_config": ({},),
    "output_format": (),
    "service_tier": ("auto", "standard_only"),
}
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_THINKING: Final = {"enabled": "medium", "adaptive": None, "disabled": "none"}


class CountFields(Fields):
    """What decides the prompt."""

    model: ModelName | None = None
    messages: list[Any] = Field(min_length=1)
    system: str | list[Any] | None = None
    tools: list[Any] = Field(default=[])
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None

    def to_chat(self) -> dict[str, Any]:
        """Return the same as a body of chat completions.

        Raises:
            InvalidRequestError: A part of it has no such form; ``param`` tells where.
        """
        choice = self.tool_choice or {}
        messages = self._messages()
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "tools": [_tool(each, f"tools[{index}]") for index, each in enumerate(self.tools)],
            "tool_choice": _choice(choice) if choice else None,
            "parallel_tool_calls": not choice.get("disable_parallel_tool_use", False),
            "reasoning_effort": self._effort(),
            "thinking_token_budget": self._budget(),
        }
        if messages[-1]["role"] == "assistant":
            body["continue_final_message"] = (
                True  # the answer goes on from what was put in its mouth
            )
        return body

    def _effort(self) -> str | None:
        if self.thinking is None:
            return None
        kind = self.thinking.get("type")
        if kind not in _THINKING:
            raise _bad("thinking.type", f"must be one of {', '.join(_THINKING)}")
        return _THINKING[kind]

    def _budget(self) -> Any:
        """Return how many tokens the model may think, if it may and that is limited."""
        thinking = self.thinking or {}
        return thinking.get("budget_tokens") if thinking.get("type") == "enabled" else None

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": _text(self.system, "system")})
        for index, each in enumerate(self.messages):
            where = f"messages[{index}]"
            role = each.get("role") if isinstance(each, dict) else None
            if role not in ("user", "assistant"):
                raise _bad(f"{where}.role", "must be user or assistant")
            content, place = each.get("content"), f"{where}.content"
            if isinstance(content, str):
                messages.append({"role": role, "content": content})
            elif not isinstance(content, list) or not content:
                raise _bad(place, "must be a string or a non-empty list of blocks")
            elif role == "user":
                messages += _user(content, place)
            else:
                messages.append(_assistant(content, place))
        return messages


class MessagesFields(CountFields):
    """What this surface honours."""

    max_tokens: PositiveInt
    stop_sequences: list[str] = Field(default=[], fail_fast=True)
    stream: bool = False
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    metadata: dict[str, Any] | None = None
    """Its ``user_id`` is what requests are routed alike by."""

    def to_chat(self) -> dict[str, Any]:
        """Return the same as a body of chat completions."""
        user = (self.metadata or {}).get("user_id")
        return {
            **super().to_chat(),
            "user": user,
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }


def _user(blocks: list[Any], where: str) -> list[dict[str, Any]]:
    """Return a user's blocks: results of tools are messages of their own, before the text."""
    results: list[dict[str, Any]] = []
    texts: list[str] = []
    for index, block in enumerate(blocks):
        place = f"{where}[{index}]"
        if _kind(block, place) == "tool_result":
            content = block.get("content")
            text = "" if content is None else _text(content, f"{place}.content")
            call_id = block.get("tool_use_id")
            results.append({"role": "tool", "tool_call_id": call_id, "content": text})
        else:
            texts.append(_text([block], where, index))
    return [*results, *({"role": "user", "content": "\n".join(texts)} for _ in texts[:1])]


def _assistant(blocks: list[Any], where: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    texts: list[str] = []
    for index, block in enumerate(blocks):
        place = f"{where}[{index}]"
        match _kind(block, place):
            case "tool_use":
                arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
                function = {"name": block.get("name"), "arguments": arguments}
                call = {"id": block.get("id"), "type": "function", "function": function}
                message.setdefault("tool_calls", []).append(call)
            case "thinking":
                message["reasoning_content"] = block.get("thinking")
            case "redacted_thinking":
                pass  # nobody but its author can read it
            case _:
                texts.append(_text([block], where, index))
    return {**message, "content": "\n".join(texts)}


def _kind(block: Any, where: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise _bad(where, "must be an object with a type")
    return kind


def _text(value: Any, where: str, first: int = 0) -> str:
    """Return a string, or the texts of a list of blocks."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _bad(where, "must be a string or a list of blocks")
    texts = []
    for index, block in enumerate(value, start=first):
        place = f"{where}[{index}]"
        kind = _kind(block, place)
        if kind != "text":
            raise _bad(place, f"of type `{kind[:40]}` is not supported: this model reads text only")
        if not isinstance(block.get("text"), str):
            raise _bad(f"{place}.text", "must be a string")
        texts.append(block["text"])
    return "\n".join(texts)


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise _bad(where, "must be an object")
    if tool.get("type", "custom") != "custom":
        raise _bad(f"{where}.type", "is not supported: only custom tools can be called")
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _choice(choice: dict[str, Any]) -> Any:
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind not in _CHOICES:
        raise _bad("tool_choice.type", "must be auto, any, tool or none")
    return _CHOICES[kind]


def _bad(param: str, fault: str) -> InvalidRequestError:
    return InvalidRequestError(f"`{param}` {fault}", param=param)
