"""The messages of a chat, checked and reduced to what a chat template reads."""

from __future__ import annotations

from typing import Any, Final

from graft_runtime.errors import InvalidRequestError

ROLES: Final = ("system", "developer", "user", "assistant")
UNSUPPORTED_KEYS: Final = ("tool_calls", "tool_call_id", "function_call", "audio")


def parse_messages(value: Any) -> list[dict[str, str]]:
    """Return messages with a role, a text and perhaps a name.

    Raises:
        InvalidRequestError: Wrong form, or a part that is not text; ``param`` tells where.
    """
    if not isinstance(value, list) or not value:
        raise InvalidRequestError("`messages` must be a non-empty list", param="messages")
    return [_message(each, f"messages[{index}]") for index, each in enumerate(value)]


def _message(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"`{where}` must be an object", param=where)
    for key in UNSUPPORTED_KEYS:
        if value.get(key):
            param = f"{where}.{key}"
            raise InvalidRequestError(f"`{param}` is not supported", param=param)
    role = value.get("role")
    if role not in ROLES:
        param = f"{where}.role"
        raise InvalidRequestError(f"`{param}` must be one of {', '.join(ROLES)}", param=param)
    message = {"role": role, "content": _content(value.get("content"), f"{where}.content")}
    name = value.get("name")
    if name is not None:
        if not isinstance(name, str):
            raise InvalidRequestError(f"`{where}.name` must be a string", param=f"{where}.name")
        message["name"] = name
    return message


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        message = f"`{where}` must be a string or a non-empty list of text parts"
        raise InvalidRequestError(message, param=where)
    return "\n".join(_part(part, f"{where}[{index}]") for index, part in enumerate(value))


def _part(value: Any, where: str) -> str:
    if isinstance(value, dict) and value.get("type") == "text":
        text = value.get("text")
        if isinstance(text, str):
            return text
        raise InvalidRequestError(f"`{where}.text` must be a string", param=f"{where}.text")
    message = f"`{where}` is not supported: this model reads text parts only"
    raise InvalidRequestError(message, param=where)
