"""The tools of a chat and the choice among them, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from graft_runtime.errors import InvalidRequestError

MAX_TOOLS: Final = 128
"""OpenAI's own limit."""
_NAME: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}")

Mode = Literal["auto", "none", "required", "named"]
_MODES: Final[tuple[Mode, ...]] = ("auto", "none", "required")


@dataclass(frozen=True)
class Tools:
    """What a model may call, and whether it must."""

    schemas: tuple[Mapping[str, Any], ...] = ()
    """As the client wrote them, which is how templates read them."""
    mode: Mode = "none"
    named: str = ""
    """The tool that must be called, in mode "named"."""
    is_parallel: bool = True
    """Whether several calls may be made in one answer."""
    names: frozenset[str] = field(default_factory=frozenset)

    @property
    def shown(self) -> tuple[Mapping[str, Any], ...]:
        """What the model is told of."""
        return () if self.mode == "none" else self.schemas

    def parameters_of(self, name: str) -> Mapping[str, Any]:
        """Return the JSON schema of a tool's arguments; without one, anything goes."""
        functions = (each["function"] for each in self.schemas)
        found = next(each for each in functions if each["name"] == name)
        parameters: Mapping[str, Any] = found.get("parameters") or {"type": "object"}
        return parameters


def parse_tools(value: Any, choice: Any, *, is_parallel: bool) -> Tools:
    """Return the tools of a request.

    Args:
        value: The field ``tools``.
        choice: The field ``tool_choice``: OpenAI's forms, and a bare name, which is TGI's.
        is_parallel: The field ``parallel_tool_calls``.

    Raises:
        InvalidRequestError: Wrong form, or a tool that is not among them; ``param`` tells where.
    """
    schemas = _schemas(value)
    names = [each["function"]["name"] for each in schemas]
    if len(set(names)) < len(names):
        raise _bad("tools", "has the same name twice")
    if choice is None:
        choice = "auto" if names else "none"
    mode = next((each for each in _MODES if each == choice), None)
    if mode is not None:
        if mode == "required" and not names:
            raise _bad("tool_choice", "needs `tools`")
        return Tools(tuple(schemas), mode if names else "none", "", is_parallel, frozenset(names))
    named = _chosen(choice)
    if named not in names:
        raise _bad("tool_choice", "names a tool that is not among `tools`")
    return Tools(tuple(schemas), "named", named, is_parallel, frozenset(names))


def _schemas(value: Any) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise _bad("tools", f"must be a list of at most {MAX_TOOLS} tools")
    for index, each in enumerate(value):
        _check_tool(each, f"tools[{index}]")
    return value


def _check_tool(tool: Any, where: str) -> None:
    if not isinstance(tool, dict):
        raise _bad(where, "must be an object")
    if tool.get("type", "function") != "function":
        raise _bad(f"{where}.type", "is not supported: only functions can be called")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise _bad(f"{where}.function", "must be an object")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _bad(f"{where}.function.name", "must be 1 to 64 letters, digits, `_`, `.` or `-`")
    if not isinstance(function.get("description", ""), str | None):
        raise _bad(f"{where}.function.description", "must be a string")
    if not isinstance(function.get("parameters", {}), dict | None):
        raise _bad(f"{where}.function.parameters", "must be a JSON schema")


def _chosen(choice: Any) -> str:
    """Return the name in a choice."""
    if isinstance(choice, str):
        return choice
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise _bad("tool_choice", f"must be {', '.join(_MODES)} or name a function")
    return name


def _bad(param: str, fault: str) -> InvalidRequestError:
    return InvalidRequestError(f"`{param}` {fault}", param=param)
