"""Calls that a client forces, as a schema of the output: it can be nothing else then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.openai.tool_fields import Tools
from graft_runtime.server.structured import Form, response_form

_SHARED: Final = ("$defs", "definitions")
"""Where a schema keeps parts that it refers to by their place from the top."""


def forced_form(tools: Tools) -> Form | None:
    """Return what the output must look like; None where nothing is forced.

    A named tool's output is its arguments alone, a required call's a list of calls.

    Raises:
        InvalidRequestError: Two schemas define different things under one name.
    """
    match tools.mode:
        case "named":
            schema = tools.parameters_of(tools.named)
        case "required":
            schema = _list_of_calls(tools)
        case _:
            return None
    return response_form({"type": "json_schema", "json_schema": {"schema": schema}}, "tools")


def _list_of_calls(tools: Tools) -> Mapping[str, Any]:
    shared: dict[str, dict[str, Any]] = {}
    calls = [_call(tools, each["function"]["name"], shared) for each in tools.schemas]
    schema: dict[str, Any] = {"type": "array", "items": {"anyOf": calls}, "minItems": 1, **shared}
    return schema if tools.is_parallel else {**schema, "maxItems": 1}


def _call(tools: Tools, name: str, shared: dict[str, dict[str, Any]]) -> Mapping[str, Any]:
    """Return the schema of one tool's call, with its shared parts moved to the top."""
    parameters = dict(tools.parameters_of(name))
    for place in _SHARED:
        for part, definition in (parameters.pop(place, None) or {}).items():
            if shared.setdefault(place, {}).setdefault(part, definition) != definition:
                message = f"`tools` define `{part}` twice, and differently"
                raise InvalidRequestError(message, param="tools")
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "parameters": parameters},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }
