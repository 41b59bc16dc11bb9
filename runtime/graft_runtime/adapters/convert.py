"""Turn a checked peft adapter into a slot file: the engine's layout, serving dtype, scaling folded.

Reads every weight once, so this is also where values are checked. Works group by group in bounded
memory, and writes to a name that nobody reads until the file is whole. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from graft_protocol.reasons import Reason
from graft_runtime.adapters.safetensors_header import TensorInfo, file_header, shown
from graft_runtime.adapters.validate import ModuleUpdate, ValidAdapter
from graft_runtime.adapters.weights import (
    SERVING_DTYPES,
    Float32,
    ServingDtype,
    cast,
    is_finite,
    is_zero,
    to_float32,
)
from graft_runtime.errors import ReasonedError
from graft_runtime.layers.lora.layout import PAGE_RANK, LoraGroup, SlotHeader, tensor_names

# Shape legend: P pages, S slices of a group, R rank (of one page or of a module), I/O features
# in/out of a module or group.

CONVERTER_VERSION = 1
"""Raised when the same adapter would become another slot file; cached ones are then not used."""


class _GroupUpdate(NamedTuple):
    """The updates of one group of one layer."""

    layer: int | None
    group: LoraGroup
    updates: tuple[ModuleUpdate, ...]


def slot_bytes(adapter: ValidAdapter, header: SlotHeader) -> int:
    """Return an upper bound for the size of the slot file."""
    item_bytes = np.dtype(_stored_dtype(header)).itemsize
    elements = sum(
        header.pages * PAGE_RANK * (len(part.group.slices) * part.group.in_features)
        + header.pages * PAGE_RANK * part.group.out_features
        for part in _by_group(adapter)
    )
    return elements * item_bytes + (1 << 10) * (2 * len(adapter.updates) + 1)


def write_slot_file(adapter: ValidAdapter, header: SlotHeader, path: Path) -> None:
    """Write the slot file of an adapter.

    Args:
        adapter: What `validate_adapter` returned.
        header: Describes the file; its dtype is the one the weights are rounded to.
        path: A new file; the caller renames it when this returns.

    Raises:
        ReasonedError: NonFiniteWeights names the tensor; InvalidConfig if the adapter would change
            nothing. Terminal.
    """
    parts = list(_by_group(adapter))
    changes = False
    with adapter.weights.open("rb") as source, path.open("wb") as target:
        target.write(_file_header(parts, header))
        for part in parts:
            arrays = _GroupArrays(part.group, header)
            for update in part.updates:
                changes |= arrays.put(update, source)
            target.write(arrays.a_PSRI.tobytes())
            target.write(arrays.b_PRO.tobytes())
    if not changes:
        message = "the adapter changes nothing: every product of B and A is zero"
        raise ReasonedError(Reason.INVALID_CONFIG, message)


def _by_group(adapter: ValidAdapter) -> Iterator[_GroupUpdate]:
    for (layer, name), updates in groupby(
        adapter.updates, key=lambda update: (update.place.layer, update.place.group.name)
    ):
        members = tuple(updates)
        del name
        yield _GroupUpdate(layer, members[0].place.group, members)


def _file_header(parts: Sequence[_GroupUpdate], header: SlotHeader) -> bytes:
    """Return the safetensors header; tensors follow in its order, without gaps."""
    file_dtype, _ = SERVING_DTYPES[_serving_dtype(header)]
    tensors = [
        (name, file_dtype, shape)
        for part in parts
        for name, shape in zip(
            tensor_names(part.layer, part.group.name),
            (part.group.a_shape(header.pages), part.group.b_shape(header.pages)),
            strict=True,
        )
    ]
    return file_header(tensors, header.to_metadata())


class _GroupArrays:
    """A and transposed B of one group in the serving dtype; what no update fills stays zero."""

    def __init__(self, group: LoraGroup, header: SlotHeader) -> None:
        self._dtype = _serving_dtype(header)
        self._group = group
        self.a_PSRI = np.zeros(group.a_shape(header.pages), _stored_dtype(header))
        self.b_PRO = np.zeros(group.b_shape(header.pages), _stored_dtype(header))

    def put(self, update: ModuleUpdate, source: IO[bytes]) -> bool:
        """Fill in one module's factors; tell whether their product can be other than zero."""
        down_RI = cast_finite(read_weights(source, update.a), update.a.name, self._dtype)
        with np.errstate(over="ignore"):
            up_OR = read_weights(source, update.b) * np.float32(update.scaling)
        up_RO = cast_finite(np.ascontiguousarray(up_OR.T), update.b.name, self._dtype)
        index = update.place.slice_index
        for rank in range(0, update.rank, PAGE_RANK):
            rows_RI = down_RI[rank : rank + PAGE_RANK]
            self.a_PSRI[rank // PAGE_RANK, index, : len(rows_RI)] = rows_RI
        # B's pages lie behind one another, so together they are one matrix with a row per rank.
        b_RO = self.b_PRO.reshape(-1, self._group.out_features)
        start = self._group.slice_starts[index]
        b_RO[: update.rank, start : start + update.place.out_features] = up_RO
        return not (is_zero(down_RI, self._dtype) or is_zero(up_RO, self._dtype))


def read_weights(source: IO[bytes], tensor: TensorInfo) -> Float32:
    """Read a tensor out of a file.

    Raises:
        ReasonedError: NonFiniteWeights.
    """
    source.seek(tensor.start)
    values = to_float32(source.read(tensor.end - tensor.start), tensor.dtype)
    if not np.isfinite(values).all():
        message = f"tensor {shown(tensor.name)} holds NaN or infinity"
        raise ReasonedError(Reason.NON_FINITE_WEIGHTS, message)
    return values.reshape(tensor.shape)


def cast_finite(values: Float32, name: str, dtype: ServingDtype) -> NDArray[np.generic]:
    """Round a tensor's values to a dtype.

    Raises:
        ReasonedError: NonFiniteWeights: one is too large for it.
    """
    stored = cast(values, dtype)
    if not (np.isfinite(values).all() and is_finite(stored, dtype)):
        message = f"tensor {shown(name)} overflows when scaled and rounded to {dtype}"
        raise ReasonedError(Reason.NON_FINITE_WEIGHTS, message)
    return stored


def _serving_dtype(header: SlotHeader) -> ServingDtype:
    dtype: ServingDtype = header.dtype  # type: ignore[assignment] # the layout knows it as text
    return dtype


def _stored_dtype(header: SlotHeader) -> str:
    return SERVING_DTYPES[_serving_dtype(header)][1]
