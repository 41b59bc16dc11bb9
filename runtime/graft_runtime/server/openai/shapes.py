"""The shapes of fields that are read by hand, for the description of the surface.

They tell what is usual; the readers decide, and name what they refuse.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic.types import JsonValue

Shape = dict[str, JsonValue]

_TEXT: Final[Shape] = {"type": "string"}
_TEXTS: Final[Shape] = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_TOKENS: Final[Shape] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0},
    "minItems": 1,
}
PROMPT: Final[Shape] = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        _TEXTS,
        _TOKENS,
        {"type": "array", "items": _TOKENS, "minItems": 1},
    ]
}
"""A text, texts, tokens, or lists of tokens."""

_PART: Final[Shape] = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": _TEXT},
    "required": ["type", "text"],
}
_CONTENT: Final[Shape] = {
    "anyOf": [_TEXT, {"type": "array", "items": _PART, "minItems": 1}, {"type": "null"}]
}
_FUNCTION_CALL: Final[Shape] = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": _TEXT, "arguments": _TEXT},
            "required": ["name", "arguments"],
        },
    },
    "required": ["function"],
}
MESSAGES: Final[Shape] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": _CONTENT,
            "name": _TEXT,
            "tool_calls": {"type": "array", "items": _FUNCTION_CALL},
            "tool_call_id": _TEXT,
            "reasoning_content": _TEXT,
        },
        "required": ["role"],
    },
}
TOOLS: Final[Shape] = {
    "type": "array",
    "maxItems": 128,
    "items": {
        "type": "object",
        "properties": {
            "type": {"const": "function"},
            "function": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"},
                    "description": _TEXT,
                    "parameters": {"type": "object"},
                },
                "required": ["name"],
            },
        },
        "required": ["function"],
    },
}
TOOL_CHOICE: Final[Shape] = {
    "anyOf": [
        _TEXT,
        {
            "type": "object",
            "properties": {
                "type": {"const": "function"},
                "function": {
                    "type": "object",
                    "properties": {"name": _TEXT},
                    "required": ["name"],
                },
            },
            "required": ["function"],
        },
    ]
}
RESPONSES_INPUT: Final[Shape] = {
    "anyOf": [_TEXT, {"type": "array", "items": {"type": "object"}, "minItems": 1}]
}
STOPS: Final[Shape] = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": 64},
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": 64},
            "maxItems": 4,
        },
    ]
}


def as_shape(shape: Shape) -> Any:
    """Return what puts a shape in the place of what pydantic would say of a field."""

    def replace(schema: dict[str, Any]) -> None:
        schema.clear()
        schema.update(shape)

    return replace
