"""Where a JSON value ends, found character by character while it is still being written."""

from __future__ import annotations


class ValueEnd:
    """Follows brackets and quotes. It trusts the rest of the grammar."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def read(self, character: str) -> bool:
        """Take the value's next character, and tell whether it was its last.

        A number or a word ends before a comma or a bracket, which `stops_before` sees.
        """
        if self._in_string:
            self._in_string = character != '"' or self._escaped
            self._escaped = character == "\\" and not self._escaped
            return not self._in_string and not self._depth
        if character == '"':
            self._in_string, self._escaped = True, False
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._depth <= 0
        return False

    def stops_before(self, character: str) -> bool:
        """Tell whether a character belongs to what is around the value."""
        return not self._depth and not self._in_string and character in ",}]"
