"""Reads the tensors of a Hugging Face checkpoint one by one, from safetensors files only.

Knows names, shapes and dtypes, not what the tensors are for; `models/weights.py` asks.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.models.hf_config import read_json_object
from graft_runtime.models.safetensors_file import (
    DTYPES,
    PIECE_BYTES,
    SafetensorsFile,
    StoredTensor,
)

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 64 << 20


class Checkpoint:
    """The open files of one checkpoint. Use as a context manager."""

    def __init__(self, model_dir: Path) -> None:
        self._files: list[SafetensorsFile] = []
        self._place_of: dict[str, tuple[SafetensorsFile, StoredTensor]] = {}
        self._read: set[str] = set()
        for name in _file_names(model_dir):
            self._open(model_dir / name)
        self.num_bytes = sum(stored.num_bytes for _, stored in self._place_of.values())
        largest = max((one.num_bytes for _, one in self._place_of.values()), default=0)
        self._staging = torch.empty(min(PIECE_BYTES, largest), dtype=torch.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files:
            file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._place_of

    def read(self, name: str, out: Tensor) -> None:
        """Copy a tensor to where it is to be: ``out`` says shape, dtype and device.

        Raises:
            ReasonedError: Absent, of another shape, or in a dtype that is not read.
        """
        if name not in self._place_of:
            raise ReasonedError(Reason.MALFORMED_ARTIFACT, f"the checkpoint lacks {name!r}")
        file, stored = self._place_of[name]
        if stored.shape != tuple(out.shape):
            message = f"{name!r} has shape {list(stored.shape)}, the config says {list(out.shape)}"
            raise ReasonedError(Reason.SHAPE_MISMATCH, message)
        if stored.dtype not in DTYPES:
            message = f"{name!r} has dtype {stored.dtype}; read are {', '.join(DTYPES)}"
            raise ReasonedError(Reason.UNSUPPORTED_DTYPE, message)
        self._read.add(name)
        file.copy(stored, out, self._staging)

    def bytes_read(self) -> int:
        """Return how much of `num_bytes` has been read."""
        return sum(self._place_of[name][1].num_bytes for name in self._read)

    def unread(self) -> list[str]:
        """Return the tensors that nobody asked for."""
        return sorted(self._place_of.keys() - self._read)

    def _open(self, path: Path) -> None:
        file = SafetensorsFile(path)
        self._files.append(file)
        for name, stored in file.tensors.items():
            if name in self._place_of:
                message = f"{name!r} is in two files, of which {path.name} is one"
                raise ReasonedError(Reason.MALFORMED_ARTIFACT, message)
            self._place_of[name] = (file, stored)


def _file_names(model_dir: Path) -> list[str]:
    if (model_dir / _INDEX).exists():
        return _shards(model_dir)
    if (model_dir / _SINGLE).exists():
        return [_SINGLE]
    present = sorted(path.name for path in model_dir.iterdir() if path.suffix in {".bin", ".pt"})
    if present:
        message = f"the checkpoint has {present[0]} but no safetensors file"
        raise ReasonedError(Reason.UNSAFE_FORMAT, message)
    raise ReasonedError(Reason.MALFORMED_ARTIFACT, f"the checkpoint has no {_SINGLE}")


def _shards(model_dir: Path) -> list[str]:
    index = read_json_object(model_dir / _INDEX, max_bytes=_MAX_INDEX_BYTES)
    weight_map = index.get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else ()
    shards = sorted({name for name in names if isinstance(name, str)})
    if not shards:
        raise ReasonedError(Reason.MALFORMED_ARTIFACT, f"{_INDEX} has no weight_map")
    for name in shards:
        if Path(name).name != name or not name.endswith(".safetensors"):
            message = f"{_INDEX} names {name!r}, which is no safetensors file beside it"
            raise ReasonedError(Reason.UNSAFE_PATH, message)
    return shards
