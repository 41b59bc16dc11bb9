"""Headers of safetensors files: a strict reader, run before anything else, and a writer.

The reader is stricter than the format: the header is small, and tensors cover the data exactly
once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError

MAX_HEADER_BYTES = 1 << 20
"""A rank-64 adapter for every linear layer of 128 layers has a header of 300 kB."""

_ALIGNMENT = 64
_LENGTH_BYTES = 8
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 1 << 48
_METADATA = "__metadata__"
_ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte, from the file's beginning."""
    end: int


def read_header(path: Path) -> Mapping[str, TensorInfo]:
    """Return the tensors of a file, in the order of their names.

    Raises:
        ReasonedError: MalformedArtifact, saying what is wrong; UnsupportedDtype for a dtype the
            format does not define. The file has to change.
    """
    size, raw = _read_raw(path)
    fields = _parse(path.name, raw)
    data_start = _LENGTH_BYTES + len(raw)
    tensors = [
        _tensor(path.name, name, fields[name], data_start)
        for name in sorted(fields)
        if name != _METADATA
    ]
    _check_coverage(path.name, tensors, data_start, size)
    return MappingProxyType({tensor.name: tensor for tensor in tensors})


def file_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """Return the beginning of a file whose tensors follow in this order, without gaps.

    Args:
        tensors: The name, dtype and shape of each.
        metadata: What else the file says of itself.
    """
    fields: dict[str, object] = {_METADATA: dict(metadata)}
    offset = 0
    for name, dtype, shape in tensors:
        end = offset + math.prod(shape) * _ITEM_BYTES[dtype]
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + _LENGTH_BYTES) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _read_raw(path: Path) -> tuple[int, bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(_LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise _malformed(path.name, "is shorter than its header says")
        if not 0 < length <= MAX_HEADER_BYTES:
            raise _malformed(path.name, f"has a header of {length} bytes")
        return size, file.read(length)


def _parse(file: str, raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise _malformed(file, "has no JSON object as its header")
    try:
        fields = json.loads(raw.decode(), object_pairs_hook=unique_object)
    except (ValueError, RecursionError) as error:
        raise _malformed(file, f"has a header that is not JSON: {str(error)[:100]}") from error
    metadata = fields.get(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _malformed(file, "has metadata that is not a map of strings")
    parsed: dict[str, Any] = fields
    return parsed


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, refusing a name that occurs twice (`json.loads` would take the last).

    Raises:
        ValueError: A name occurs twice.
    """
    fields = dict(pairs)
    if len(fields) != len(pairs):
        message = "a name occurs twice"
        raise ValueError(message)
    return fields


def _tensor(file: str, name: str, value: Any, data_start: int) -> TensorInfo:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _malformed(file, f"describes tensor {shown(name)} wrongly")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS or not _are_counts(offsets):
        raise _malformed(file, f"gives tensor {shown(name)} no valid shape or offsets")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        message = f"{file}: tensor {shown(name)} has dtype {shown(dtype)}"
        raise ReasonedError(Reason.UNSUPPORTED_DTYPE, message)
    elements = 1
    for dimension in shape:
        elements *= dimension
        if elements > _MAX_ELEMENTS:
            raise _malformed(file, f"gives tensor {shown(name)} too many elements")
    if len(offsets) != 2 or offsets[1] - offsets[0] != elements * _ITEM_BYTES[dtype]:
        raise _malformed(file, f"gives tensor {shown(name)} bytes that do not fit its shape")
    return TensorInfo(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values
    )


def _check_coverage(file: str, tensors: list[TensorInfo], data_start: int, size: int) -> None:
    """Refuse gaps, overlaps and bytes after the end: nothing may hide in a file."""
    position = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != position:
            raise _malformed(file, f"has a gap or overlap before tensor {shown(tensor.name)}")
        position = tensor.end
    if position != size:
        raise _malformed(file, f"has {size} bytes, its tensors end at {position}")


def shown(value: object) -> str:
    """Return a value as a short literal for a message: names in files are written by others."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _malformed(file: str, what: str) -> ReasonedError:
    return ReasonedError(Reason.MALFORMED_ARTIFACT, f"{file} {what}")
