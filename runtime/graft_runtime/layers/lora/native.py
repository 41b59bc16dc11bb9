"""Adds adapters to the outputs of base layers on a CPU, with a kernel written in C (`native.c`).

For bfloat16 and few rows of each adapter, as in decoding, where time is what reading the adapters'
weights takes. `graft_runtime.layers.lora.cpu` does all else, and is the reference.

Shape legend: T tokens (or rows of logits), M adapters, N pages of all of them, n rows of all of
them, P pages of the slab, R = PAGE_RANK, I/O features in/out, o features out of one slice.
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graft_runtime.layers.lora.base import GroupKey, LoraPool, LoraSlab
from graft_runtime.layers.lora.layout import PAGE_RANK

LIBRARY = Path(__file__).with_name("_native.so")
Kernel = Callable[..., None]
_OPENMP = re.compile(r"lib(gomp|i?omp5?)[-.].*")
_ARGUMENTS: tuple[Any, ...] = (
    *[ctypes.c_void_p] * 4,
    *[ctypes.c_int64] * 2,
    *[ctypes.c_void_p] * 2,
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_void_p,
)
"""Those of `graft_lora_add`."""

logger = logging.getLogger(__name__)


@cache
def kernel() -> Kernel | None:
    """Return the kernel, if it was built and the process has an OpenMP runtime for it."""
    try:
        add = _load()
    except OSError as error:
        logger.warning("adapters go without the kernel in C, more slowly: %s", error)
        return None
    add.restype = None
    add.argtypes = _ARGUMENTS
    return add


def _load() -> ctypes._NamedFuncPointer:
    # What torch brought along is hidden from others until it is asked for by name.
    for path in _loaded_openmp():
        ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(LIBRARY)).graft_lora_add


def _loaded_openmp() -> list[str]:
    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    return sorted(path for path in paths if _OPENMP.fullmatch(Path(path).name))


@dataclass(frozen=True)
class NativeRows:
    """The adapted rows of one product, each adapter's together."""

    members_M5: Tensor
    pages_N: Tensor
    owners_N: Tensor
    rows_n: Tensor
    num_products: int
    touched: frozenset[GroupKey]
    kernel: Kernel

    def add(self, slab: LoraSlab, x_TI: Tensor, out_TO: Tensor) -> None:
        """Add ``scaling * B @ A @ x`` of each row's adapter to the base output, in place.

        Raises:
            TypeError: The tensors are none that the kernel reads, which would not notice.
        """
        _check(x_TI)
        _check(out_TO)
        num_sums = self.num_products * len(slab.b_PRo) * PAGE_RANK
        h = torch.empty(num_sums, dtype=torch.float32)
        self.kernel(
            slab.description.data_ptr(),
            self.members_M5.data_ptr(),
            self.pages_N.data_ptr(),
            self.owners_N.data_ptr(),
            self.pages_N.shape[0],
            self.members_M5.shape[0],
            self.rows_n.data_ptr(),
            x_TI.data_ptr(),
            x_TI.stride(0),
            out_TO.data_ptr(),
            out_TO.stride(0),
            h.data_ptr(),
        )


def native_rows(pool: LoraPool, rows_of: dict[int, list[int]], add: Kernel) -> NativeRows:
    """Describe rows to the kernel, given those of each slot."""
    members: list[Sequence[int]] = []
    pages: list[int] = []
    owners: list[int] = []
    rows: list[int] = []
    products = 0
    touched = frozenset[GroupKey]()
    for slot, of_slot in rows_of.items():
        adapter = pool.adapter(slot)
        members.append((len(rows), len(of_slot), len(pages), len(adapter.pages), products))
        owners += [len(members) - 1] * len(adapter.pages)
        pages += adapter.pages
        rows += of_slot
        products += len(of_slot) * len(adapter.pages)
        touched |= adapter.touched
    return NativeRows(
        torch.tensor(members),
        torch.tensor(pages),
        torch.tensor(owners),
        torch.tensor(rows),
        products,
        touched,
        add,
    )


def _check(tensor: Tensor) -> None:
    if tensor.dtype is not torch.bfloat16 or tensor.stride(1) != 1:
        raise TypeError(f"not bfloat16 in rows: {tensor.dtype}, strides {tensor.stride()}")
