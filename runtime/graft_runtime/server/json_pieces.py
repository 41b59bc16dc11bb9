"""JSON of many values, parsed in pieces: between them other threads get their turn.

The standard library's parser in C keeps the interpreter to itself until it is done, which for a
million numbers is long enough for probes to wait. Here the library's Python walks through objects
and arrays, and C gets single values, and runs of plain ones of bounded number. Values and errors
are the same. `body` calls it for what is long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from json.decoder import JSONArray, JSONObject  # type: ignore[attr-defined] # not in the stubs
from typing import Any, Final, NoReturn

MANY: Final = 20_000
"""Values that the parser in C reads within about a millisecond."""
_SPACE: Final = r"[ \t\n\r]*+"
_PLAIN: Final = r'(?:"[^"\\\x00-\x1f]{0,64}+"|[^"\[\]{},\s]{1,64}+)'
_RUN: Final = re.compile(rf"(?:{_SPACE}{_PLAIN}{_SPACE},){{1,4096}}+")
"""Elements of an array that hold no others, each with its comma."""
_CLOSED: Final = re.compile(rf"{_SPACE}\]")

PairsHook = Callable[[list[tuple[str, Any]]], Any]
ConstantHook = Callable[[str], NoReturn]


def has_many(text: str) -> bool:
    """Tell whether a text may hold many values: each follows one of these signs."""
    return len(text) > MANY and sum(map(text.count, ",[{")) > MANY


class PieceDecoder(json.JSONDecoder):
    """Reads one text like `json.JSONDecoder`, in pieces."""

    def __init__(self, pairs_hook: PairsHook, constant_hook: ConstantHook) -> None:
        """Take the hooks of `json.loads`."""
        super().__init__(object_pairs_hook=pairs_hook, parse_constant=constant_hook)
        self._pairs_hook = pairs_hook
        # The stubs leave `scan_once` out.
        self._in_c: Any = json.JSONDecoder(parse_constant=constant_hook)
        self._keys: dict[str, str] = {}
        self.scan_once = self._scan

    def _scan(self, text: str, start: int) -> tuple[Any, int]:
        """Read the value that starts here; return it and where it ends."""
        match text[start : start + 1]:
            case "[":
                return self._array(text, start + 1)
            case "{":
                place = text, start + 1
                value, end = JSONObject(place, True, self._scan, None, self._pairs_hook, self._keys)
                return value, end
        value, end = self._in_c.scan_once(text, start)
        return value, end

    def _array(self, text: str, start: int) -> tuple[list[Any], int]:
        values: list[Any] = []
        end = start
        while run := _RUN.match(text, end):
            try:
                values += self._in_c.decode(f"[{run[0][:-1]}]")
            except ValueError:
                return self._one_by_one(text, start)  # which tells the fault's place
            end = run.end()
        if values and _CLOSED.match(text, end):  # after a comma
            return self._one_by_one(text, start)
        rest, end = self._one_by_one(text, end)
        return values + rest, end

    def _one_by_one(self, text: str, start: int) -> tuple[list[Any], int]:
        values, end = JSONArray((text, start), self._scan)
        return values, end
