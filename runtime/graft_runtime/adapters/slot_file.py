"""Reads a slot file: an adapter already in device layout, mapped from the disk cache.

Checks everything that could break the slabs; what the weights mean was checked by the converter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.layers.lora.base import GroupKey, LoraPool
from graft_runtime.layers.lora.layout import SlotHeader, tensor_names

_DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16"}


class SlotFile:
    """An open slot file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._groups: frozenset[GroupKey] = frozenset()
        try:
            self._file: Any = safe_open(path, framework="pt").__enter__()  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError) as error:
            raise self._malformed(f"cannot be read: {error}") from error
        self._names = set(self._file.keys())
        try:
            self.header = SlotHeader.from_metadata(self._file.metadata() or {})
        except ReasonedError:
            self.close()
            raise

    @property
    def groups(self) -> frozenset[GroupKey]:
        """The groups that the adapter changes; known after `check`."""
        return self._groups

    def check(self, pool: LoraPool, layout: str) -> None:
        """Compare header, names, shapes and dtypes with the slabs they are for.

        Raises:
            ReasonedError: The file is for another model or dtype, or damaged.
        """
        dtype = str(pool.dtype).removeprefix("torch.")
        if self.header.arch != layout or self.header.dtype != dtype:
            message = (
                f"slot file for layout {self.header.arch} in {self.header.dtype}; "
                f"the engine serves {layout} in {dtype}"
            )
            raise ReasonedError(Reason.INCOMPATIBLE_BASE_MODEL, message)
        found: set[GroupKey] = set()
        for key, slab in pool.slabs.items():
            a_name, b_name = tensor_names(*key)
            if a_name not in self._names and b_name not in self._names:
                continue
            self._check_tensor(a_name, slab.group.a_shape(self.header.pages))
            self._check_tensor(b_name, slab.group.b_shape(self.header.pages))
            found.add(key)
        if len(self._names) != 2 * len(found):
            raise self._malformed("holds tensors of no group")
        self._groups = frozenset(found)

    def read(self, key: GroupKey) -> tuple[Tensor | None, Tensor | None]:
        """Return a group's A and B as views of the file; None where the adapter changes nothing."""
        if key not in self._groups:
            return None, None
        a_name, b_name = tensor_names(*key)
        return self._file.get_tensor(a_name), self._file.get_tensor(b_name)

    def close(self) -> None:
        """Let go of the file."""
        self._file.__exit__(None, None, None)

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._names:
            raise self._malformed(f"lacks {name!r}")
        part = self._file.get_slice(name)
        if tuple(part.get_shape()) != shape:
            raise self._malformed(f"has {name!r} of shape {part.get_shape()}, not {list(shape)}")
        if _DTYPE_NAMES.get(part.get_dtype()) != self.header.dtype:
            raise self._malformed(f"has {name!r} in {part.get_dtype()}, not {self.header.dtype}")

    def _malformed(self, what: str) -> ReasonedError:
        return ReasonedError(Reason.MALFORMED_ARTIFACT, f"slot file {self.path.name} {what}")
