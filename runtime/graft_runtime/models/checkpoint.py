"""Reads the tensors of a Hugging Face checkpoint one by one, from safetensors files only.

Knows names, shapes and dtypes, not what the tensors are for; `models/weights.py` asks.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.models.hf_config import read_json_object

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": 4, "BF16": 2, "F16": 2}
"""Readable dtypes and their bytes. Anything else is a quantisation that we do not undo."""
_MAX_INDEX_BYTES = 64 << 20


class Checkpoint:
    """The open files of one checkpoint. Use as a context manager."""

    def __init__(self, model_dir: Path) -> None:
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        self._read: set[str] = set()
        for name in _file_names(model_dir):
            self._open(model_dir, name)
        self.num_bytes = sum(self._bytes(name) for name in self._file_of)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.__exit__(kind, error, trace)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor as a view of its file, valid while the checkpoint is open.

        Raises:
            ReasonedError: Absent, of another shape, or in a dtype that is not read.
        """
        if name not in self._file_of:
            raise ReasonedError(Reason.MALFORMED_ARTIFACT, f"the checkpoint lacks {name!r}")
        part = self._slice(name)
        if tuple(part.get_shape()) != shape:
            message = f"{name!r} has shape {part.get_shape()}, the config says {list(shape)}"
            raise ReasonedError(Reason.SHAPE_MISMATCH, message)
        if part.get_dtype() not in _DTYPES:
            message = f"{name!r} has dtype {part.get_dtype()}; read are {', '.join(_DTYPES)}"
            raise ReasonedError(Reason.UNSUPPORTED_DTYPE, message)
        self._read.add(name)
        tensor: Tensor = self._files[self._file_of[name]].get_tensor(name)
        return tensor

    def bytes_read(self) -> int:
        """Return how much of `num_bytes` has been read."""
        return sum(self._bytes(name) for name in self._read)

    def unread(self) -> list[str]:
        """Return the tensors that nobody asked for."""
        return sorted(self._file_of.keys() - self._read)

    def _open(self, model_dir: Path, name: str) -> None:
        try:
            file: Any = safe_open(model_dir / name, framework="pt")
        except (SafetensorError, OSError) as error:
            message = f"{name} cannot be read as safetensors: {error}"
            raise ReasonedError(Reason.MALFORMED_ARTIFACT, message) from error
        self._files[name] = file.__enter__()
        for tensor in file.keys():  # noqa: SIM118 - not a dict
            if tensor in self._file_of:
                message = f"{tensor!r} is in {self._file_of[tensor]} and in {name}"
                raise ReasonedError(Reason.MALFORMED_ARTIFACT, message)
            self._file_of[tensor] = name

    def _slice(self, name: str) -> Any:
        return self._files[self._file_of[name]].get_slice(name)

    def _bytes(self, name: str) -> int:
        part = self._slice(name)
        shape: list[int] = part.get_shape()
        return math.prod(shape) * _DTYPES.get(part.get_dtype(), 1)


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
