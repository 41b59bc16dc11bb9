"""Tensors of the protocol: names, element types, values in plain Python, and their two encodings.

Knows no model. Text is always bytes in here; the surfaces decode it where JSON needs characters.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from graft_runtime.errors import InvalidRequestError

MAX_DIMS: Final = 8

_FORMATS: Final = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
_LENGTH: Final = struct.Struct("<I")
DATATYPES: Final = frozenset(_FORMATS) | {"BYTES"}

Element = bool | int | float | bytes


@dataclass(frozen=True)
class Tensor:
    """A small array with a name; the values stand in row-major order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: tuple[Element, ...]

    @classmethod
    def row(cls, name: str, datatype: str, values: Sequence[Element]) -> Tensor:
        """Return a tensor of one dimension."""
        return cls(name, datatype, (len(values),), tuple(values))

    @property
    def json_data(self) -> list[bool | int | float | str]:
        """The values as JSON writes them."""
        return [
            value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            for value in self.values
        ]


def num_elements(name: str, shape: Sequence[int]) -> int:
    """Return how many values a shape holds.

    Raises:
        InvalidRequestError: It is none.
    """
    if len(shape) > MAX_DIMS or any(size < 0 for size in shape):
        raise InvalidRequestError(f"tensor '{name}' has an invalid shape", param=name)
    return math.prod(shape)


def check_datatype(name: str, datatype: str) -> None:
    """Refuse an element type that the protocol does not have.

    Raises:
        InvalidRequestError: It has none of that name, or only one that we cannot read.
    """
    if datatype not in DATATYPES:
        raise InvalidRequestError(f"tensor '{name}' has an unknown data-type", param=name)


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: bytes) -> Tensor:
    """Read a tensor from its binary form: little-endian, text with its length before it.

    Raises:
        InvalidRequestError: The bytes are not what type and shape say.
    """
    check_datatype(name, datatype)
    count = num_elements(name, shape)
    if datatype == "BYTES":
        return Tensor(name, datatype, tuple(shape), _read_texts(name, count, data))
    form = f"<{count}{_FORMATS[datatype]}"
    # The size is compared first, so that a false shape cannot make us prepare for it.
    if len(data) != count * struct.calcsize(f"<{_FORMATS[datatype]}"):
        raise _wrong_size(name)
    return Tensor(name, datatype, tuple(shape), struct.unpack(form, data))


def _read_texts(name: str, count: int, data: bytes) -> tuple[bytes, ...]:
    texts: list[bytes] = []
    position = 0
    while position < len(data):
        if position + _LENGTH.size > len(data) or len(texts) == count:
            raise _wrong_size(name)
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if position + length > len(data):
            raise _wrong_size(name)
        texts.append(data[position : position + length])
        position += length
    if len(texts) != count:
        raise _wrong_size(name)
    return tuple(texts)


def _wrong_size(name: str) -> InvalidRequestError:
    message = f"tensor '{name}': its bytes do not match its shape and data-type"
    return InvalidRequestError(message, param=name)


def from_json(name: str, datatype: str, shape: Sequence[int], data: Any) -> Tensor:
    """Read a tensor from a JSON array, nested or flat.

    Raises:
        InvalidRequestError: The values are not what type and shape say.
    """
    check_datatype(name, datatype)
    values = _flat(data)
    if len(values) != num_elements(name, shape):
        message = f"tensor '{name}' has {len(values)} values, its shape says otherwise"
        raise InvalidRequestError(message, param=name)
    read = tuple(_element(name, datatype, value) for value in values)
    return Tensor(name, datatype, tuple(shape), read)


def _flat(data: Any) -> list[Any]:
    """Return the values of nested lists in order; the body's own limit bounds the depth."""
    values: list[Any] = []
    pending = [data]
    while pending:
        each = pending.pop()
        if isinstance(each, list):
            pending += reversed(each)
        else:
            values.append(each)
    return values


def _element(name: str, datatype: str, value: Any) -> Element:
    """Return one value, checked: no text for a number, no number for a truth value."""
    if datatype == "BYTES":
        if isinstance(value, str):
            return value.encode()
    elif datatype == "BOOL":
        if isinstance(value, bool):
            return value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            struct.pack(f"<{_FORMATS[datatype]}", value)
        except (struct.error, OverflowError):
            pass  # told below, with every other misfit
        else:
            return value
    raise InvalidRequestError(f"tensor '{name}' holds a value that is no {datatype}", param=name)


def to_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's binary form."""
    if tensor.datatype == "BYTES":
        texts = [value for value in tensor.values if isinstance(value, bytes)]
        return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
    return struct.pack(f"<{len(tensor.values)}{_FORMATS[tensor.datatype]}", *tensor.values)
