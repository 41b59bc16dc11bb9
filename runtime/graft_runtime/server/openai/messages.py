"""The messages of a chat, checked and reduced to what a chat template reads."""

from __future__ import annotations

import json
from typing import Any, Final

from graft_runtime.errors import InvalidRequestError

ROLES: Final = ("system", "developer", "user", "assistant", "tool")
UNSUPPORTED_KEYS: Final = ("function_call", "audio")
THOUGHT_KEYS: Final = ("reasoning_content", "reasoning")
"""Two names of the same; templates know the first."""
MAX_CALLS: Final = 128


def parse_messages(value: Any) -> list[dict[str, Any]]:
    """Return messages with a role, a text and perhaps a name, calls of tools or their results.

    Raises:
        InvalidRequestError: Wrong form, or a part that is not text; ``param`` tells where.
    """
    if not isinstance(value, list) or not value:
        raise InvalidRequestError("`messages` must be a non-empty list", param="messages")
    return [_message(each, f"messages[{index}]") for index, each in enumerate(value)]


def num_chars(messages: list[dict[str, Any]]) -> int:
    """Return the length of all texts that users wrote."""
    return sum(len(each["content"] or "") for each in messages)


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"`{where}` must be an object", param=where)
    for key in UNSUPPORTED_KEYS:
        if value.get(key):
            raise _bad(f"{where}.{key}", "is not supported")
    role = value.get("role")
    if role not in ROLES:
        raise _bad(f"{where}.role", f"must be one of {', '.join(ROLES)}")
    message: dict[str, Any] = {"role": role}
    calls = _calls(value.get("tool_calls"), f"{where}.tool_calls")
    if calls and role != "assistant":
        raise _bad(f"{where}.tool_calls", "belong to the assistant")
    if calls and value.get("content") in (None, []):
        message["content"] = ""  # templates treat it as text
    else:
        message["content"] = _content(value.get("content"), f"{where}.content")
    if calls:
        message["tool_calls"] = calls
    for key in ("name", "tool_call_id"):
        _take_string(value, key, where, message)
    for key in THOUGHT_KEYS:
        _take_string(value, key, where, message, name=THOUGHT_KEYS[0])
    return message


def _take_string(
    value: dict[str, Any], key: str, where: str, message: dict[str, Any], *, name: str | None = None
) -> None:
    text = value.get(key)
    if text is None:
        return
    if not isinstance(text, str):
        raise _bad(f"{where}.{key}", "must be a string")
    message.setdefault(name or key, text)


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MAX_CALLS:
        raise _bad(where, f"must be a list of at most {MAX_CALLS} calls")
    return [_call(each, f"{where}[{index}]") for index, each in enumerate(value)]


def _call(value: Any, where: str) -> dict[str, Any]:
    """Return a call as templates read it: its arguments are an object, not JSON text."""
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _bad(f"{where}.function", "must be an object with a name")
    call: dict[str, Any] = {"type": "function"}
    _take_string(value, "id", where, call)
    arguments = _arguments(function.get("arguments"), f"{where}.function.arguments")
    return {**call, "function": {"name": function["name"], "arguments": arguments}}


def _arguments(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except (ValueError, RecursionError) as error:
            raise _bad(where, "must be JSON") from error
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise _bad(where, "must be a JSON object")
    return value


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise _bad(where, "must be a string or a non-empty list of text parts")
    return "\n".join(_part(part, f"{where}[{index}]") for index, part in enumerate(value))


def _part(value: Any, where: str) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        text = value.get("text")
        if isinstance(text, str):
            return text
        raise _bad(f"{where}.text", "must be a string")
    what = f"of type `{kind}` " if isinstance(kind, str) and kind.isidentifier() else ""
    raise _bad(where, f"{what[:40]}is not supported: this model reads text parts only")


def _bad(param: str, fault: str) -> InvalidRequestError:
    return InvalidRequestError(f"`{param}` {fault}", param=param)
