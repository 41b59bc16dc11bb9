"""Counts the bytes of tensors that are alive, by looking at every operation that makes one."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Use as a context manager. Storages are counted once, whatever views there are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.peak_bytes = 0
        self._alive: dict[int, int] = {}
        """Bytes of each storage, by its address."""
        self._holders: dict[int, int] = {}

    @property
    def live_bytes(self) -> int:
        return sum(self._alive.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _note(self, tensor: Tensor) -> None:
        if tensor.layout is not torch.strided:  # reordered for oneDNN: it has no address
            address, size = id(tensor), tensor.numel() * tensor.itemsize
        else:
            storage = tensor.untyped_storage()
            address, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return
        self._alive[address] = size
        self._holders[address] = self._holders.get(address, 0) + 1
        weakref.finalize(tensor, self._forget, address)

    def _forget(self, address: int) -> None:
        self._holders[address] -= 1
        if not self._holders[address]:
            del self._alive[address]
