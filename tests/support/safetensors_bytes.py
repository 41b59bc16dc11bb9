"""Writes safetensors files by hand, right or wrong, without the library."""

import json
from typing import Any


def assemble(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Join a header (an object, or bytes as they are) and data; `length` may lie."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    announced = len(raw) if length is None else length
    return announced.to_bytes(8, "little") + raw + data


def tensor(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    """Describe one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
