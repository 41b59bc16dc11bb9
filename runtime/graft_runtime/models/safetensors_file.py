"""One safetensors file, read piece by piece into memory that somebody else owns.

Nothing is mapped: what is read is counted once, where it ends up, and not again as a file's pages.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError

PIECE_BYTES = 16 * 2**20
"""Most that is read at once, on its way to its place and dtype."""

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Readable dtypes. Anything else is a quantisation that we do not undo."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class SafetensorsFile:
    """An open file and its table of tensors."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            ReasonedError: It is not safetensors, or not whole.
        """
        self._name = path.name
        self.tensors = _read_table(path)
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close it."""
        os.close(self._file)

    def copy(self, tensor: StoredTensor, out: Tensor, staging: Tensor) -> None:
        """Read a tensor into ``out``, which is contiguous and decides dtype and device.

        Args:
            tensor: One of `tensors`, of a dtype out of `DTYPES`.
            out: As many elements as the tensor has.
            staging: `PIECE_BYTES` of uint8 on the host; used over and over.

        Raises:
            ReasonedError: The file has become shorter.
        """
        dtype, flat = DTYPES[tensor.dtype], out.view(-1)
        done = 0
        while done < tensor.num_bytes:
            count = min(len(staging), tensor.num_bytes - done)
            self._fill(staging[:count], tensor.offset + done)
            start, end = done // dtype.itemsize, (done + count) // dtype.itemsize
            flat[start:end].copy_(staging[:count].view(dtype))
            done += count

    def _fill(self, piece: Tensor, offset: int) -> None:
        buffer = piece.numpy().data
        while buffer:
            count = os.preadv(self._file, [buffer], offset)
            if not count:
                message = f"{self._name} has become shorter while it was read"
                raise ReasonedError(Reason.MALFORMED_ARTIFACT, message)
            buffer, offset = buffer[count:], offset + count


def _read_table(path: Path) -> dict[str, StoredTensor]:
    try:
        # Checks the header, the file's length, and that tensors neither overlap nor leave gaps.
        with safe_open(path, framework="pt"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        message = f"{path.name} cannot be read as safetensors: {error}"
        raise ReasonedError(Reason.MALFORMED_ARTIFACT, message) from error
    header.pop("__metadata__", None)
    return {name: _stored(entry, 8 + length) for name, entry in header.items()}


def _stored(entry: dict[str, Any], data_start: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    stored = StoredTensor(entry["dtype"], tuple(entry["shape"]), data_start + start, end - start)
    if stored.dtype in DTYPES:
        expected = math.prod(stored.shape) * DTYPES[stored.dtype].itemsize
        if expected != stored.num_bytes:
            message = f"a tensor of shape {list(stored.shape)} takes {stored.num_bytes} bytes"
            raise ReasonedError(Reason.MALFORMED_ARTIFACT, message)
    return stored
