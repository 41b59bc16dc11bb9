"""A closed-world reader for Hugging Face JSON configs: what nobody took is refused by name.

Knows no model; `models/arch.py` takes the fields it understands.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError

_MAX_CONFIG_BYTES = 1 << 20
"""Real configs hold a few KB; this bounds what a hostile one can make us parse."""


class ConfigReader:
    """Hands out the fields of one JSON object and remembers which were asked for.

    Raises:
        ReasonedError: From every method that returns a value of a kind, and from `require` and
            `finish`: the field has another kind or value than can be served. The message names the
            field. Not retried: the files have to change.
    """

    def __init__(self, fields: dict[str, Any], prefix: str = "") -> None:
        self._fields = fields
        self._prefix = prefix
        self._taken: set[str] = set()

    def take(self, name: str, default: Any = None) -> Any:
        """Return a field as it is; null counts as absent."""
        self._taken.add(name)
        value = self._fields.get(name)
        return default if value is None else value

    def has(self, name: str) -> bool:
        """Tell whether a field is there and not null."""
        return self._fields.get(name) is not None

    def is_explicit_null(self, name: str) -> bool:
        """Tell whether a field is there and null: some families' defaults are not null."""
        return name in self._fields and self._fields[name] is None

    def positive_int(self, name: str, default: int | None = None) -> int:
        """Return a whole number above zero."""
        value = self.take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.invalid(name, value, "must be a whole number above zero")
        return value

    def count(self, name: str, default: int) -> int:
        """Return a whole number from zero on."""
        value = self.take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.invalid(name, value, "must be a whole number, not below zero")
        return value

    def positive_float(self, name: str, default: float | None = None) -> float:
        """Return a finite number above zero."""
        value = self.take(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.invalid(name, value, "must be a number")
        if not math.isfinite(value) or value <= 0:
            raise self.invalid(name, value, "must be finite and above zero")
        return float(value)

    def positive_floats(self, name: str, count: int) -> tuple[float, ...]:
        """Return a list of ``count`` finite numbers above zero."""
        values = self.take(name)
        if not isinstance(values, list) or len(values) != count:
            raise self.invalid(name, values, f"must be a list of {count} numbers")
        reader = ConfigReader({str(at): value for at, value in enumerate(values)}, f"{name}.")
        return tuple(reader.positive_float(str(at)) for at in range(count))

    def optional_float(self, name: str, default: float | None) -> float | None:
        """Return a finite number above zero, or None where null or the default says so."""
        if self.is_explicit_null(name) or (default is None and not self.has(name)):
            return None
        return self.positive_float(name, default)

    def flag(self, name: str, *, default: bool) -> bool:
        """Return a boolean."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.invalid(name, value, "must be true or false")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Return a token id, a list of them, or nothing, as a tuple."""
        value = self.take(name, [])
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
            raise self.invalid(name, value, "must be a token id or a list of them")
        return tuple(ids)

    def one_of(self, name: str, supported: Collection[str], default: str | None = None) -> str:
        """Return a string out of those that are understood."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in supported:
            raise self.unsupported(name, value)
        return value

    def ignore(self, name: str) -> None:
        """Accept a field whatever it says: another one makes it meaningless."""
        self._taken.add(name)

    def require(self, values: Mapping[str, object]) -> None:
        """Refuse fields that say something other than what the family's code does."""
        for name, expected in values.items():
            value = self.take(name, expected)
            if type(value) is not type(expected) or value != expected:
                raise self.unsupported(name, value)

    def section(self, name: str) -> ConfigReader:
        """Return a reader for a nested object; an absent one is empty."""
        value = self.take(name, {})
        if not isinstance(value, dict):
            raise self.invalid(name, value, "must be an object")
        return ConfigReader(value, f"{self._prefix}{name}.")

    def finish(self, informational: Collection[str] = ()) -> None:
        """Refuse what nobody took.

        Args:
            informational: Fields that do not change what the model computes.

        Raises:
            ReasonedError: A field is set that could change the result and is not understood.
        """
        for name, value in self._fields.items():
            if value is None or name in self._taken or name in informational:
                continue
            raise self.unsupported(name, value)

    def unsupported(self, name: str, value: object) -> ReasonedError:
        """Make the error for a field whose meaning we do not implement."""
        shown = _shorten(value)
        message = f"config field {self._prefix}{name} = {shown} is not supported"
        return ReasonedError(Reason.UNSUPPORTED_MODEL, message)

    def invalid(self, name: str, value: object, rule: str) -> ReasonedError:
        """Make the error for a field whose value cannot be right."""
        message = f"config field {self._prefix}{name} = {_shorten(value)} {rule}"
        return ReasonedError(Reason.INVALID_CONFIG, message)


def read_json_object(path: Path, *, max_bytes: int = _MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON file that must hold one object.

    Raises:
        ReasonedError: Absent, too large, not JSON or not an object. Not retried.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        message = f"{path.name} cannot be read: {error.strerror}"
        raise ReasonedError(Reason.MALFORMED_ARTIFACT, message) from error
    if len(raw) > max_bytes:
        message = f"{path.name} is larger than {max_bytes} bytes"
        raise ReasonedError(Reason.MALFORMED_ARTIFACT, message)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        message = f"{path.name} is not JSON: {error}"
        raise ReasonedError(Reason.MALFORMED_ARTIFACT, message) from error
    if not isinstance(value, dict):
        raise ReasonedError(Reason.MALFORMED_ARTIFACT, f"{path.name} is not a JSON object")
    return value


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
