"""The paged KV cache and what every attention backend offers the decoder.

Shape legend: T tokens, Q query heads, K key/value heads, D head size, N blocks, B block size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from graft_runtime.layers.batch import ForwardBatch


class CachedModel(Protocol):
    """What a model tells about its keys and values."""

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""

    @property
    def num_kv_heads(self) -> int:
        """Key (and value) heads of each layer."""

    @property
    def head_dim(self) -> int:
        """Width of a head."""


@dataclass(frozen=True)
class KvLayout:
    """Size of the KV pool."""

    num_blocks: int
    block_size: int
    """Tokens per block."""


@dataclass(frozen=True)
class AttentionTraits:
    """How a model's layers attend."""

    scale: float
    """Factor on the products of queries and keys."""
    windows: tuple[int | None, ...]
    """How many tokens a token sees in each layer, itself included; None is all before it."""
    softcap: float | None = None
    """Bounds the scaled products by ``cap * tanh(x / cap)``."""


class _Options(NamedTuple):
    """What tensors are made with."""

    dtype: torch.dtype
    device: torch.device


class PagedKv:
    """Keys and values of every layer: ``[num_blocks, block_size, kv_heads, head_dim]`` each.

    On a CPU a head's part of a block is one piece of memory, so that the blocks of many requests
    can be gathered by copies of kilobytes into what a batched product reads; on other devices a
    token's part is, which is what their kernels ask for. The axes are the same for both.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self._num_layers = num_layers
        self._each = (block_size, kv_heads, head_dim)
        self._options = _Options(dtype, device)
        self._hold(self._allocate(num_blocks))

    @classmethod
    def of(
        cls, arch: CachedModel, layout: KvLayout, dtype: torch.dtype, device: torch.device
    ) -> Self:
        """Make the cache that a model needs."""
        return cls(
            num_layers=arch.num_layers,
            num_blocks=layout.num_blocks,
            block_size=layout.block_size,
            kv_heads=arch.num_kv_heads,
            head_dim=arch.head_dim,
            dtype=dtype,
            device=device,
        )

    def resize(self, num_blocks: int) -> None:
        """Become a cache of another size, all zeros. Who holds this cache sees the new one."""
        # The old one must be gone before the new one is there: both may not fit.
        self._hold(self._allocate(0))
        self._hold(self._allocate(num_blocks))

    def _allocate(self, num_blocks: int) -> Tensor:
        block_size, kv_heads, head_dim = self._each
        by_head = self._options.device.type == "cpu"
        each = (num_blocks, block_size, kv_heads, head_dim)
        if by_head:
            each = (kv_heads, num_blocks, block_size, head_dim)
        # Zeros, not whatever was in memory: a stale NaN would survive any mask.
        both = torch.zeros(
            (2, self._num_layers, *each), dtype=self._options.dtype, device=self._options.device
        )
        return both.permute(0, 1, 3, 4, 2, 5) if by_head else both

    def _hold(self, both: Tensor) -> None:
        self._both = both
        self.keys_NBKD = list(both[0])
        self.values_NBKD = list(both[1])

    def write(self, layer: int, keys_TKD: Tensor, values_TKD: Tensor, slots_T: Tensor) -> None:
        """Store a step's keys and values.

        Args:
            layer: Whose.
            keys_TKD: In the cache's dtype, rotated.
            values_TKD: In the cache's dtype.
            slots_T: int64, ``block * block_size + offset`` of each token, all different.
        """
        self.keys_NBKD[layer].flatten(0, 1).index_copy_(0, slots_T, keys_TKD)
        self.values_NBKD[layer].flatten(0, 1).index_copy_(0, slots_T, values_TKD)

    def clear(self, blocks: Sequence[int]) -> None:
        """Make blocks zero in every layer, before their first token is written.

        A backend that reads whole blocks needs it: what an ended request left behind may be NaN.
        """
        if blocks:
            index = torch.tensor(blocks, dtype=torch.int64, device=self._both.device)
            self._both.index_fill_(2, index, 0.0)


@dataclass(frozen=True)
class AttentionFeatures:
    """What a backend can do; it is chosen only where it fits."""

    devices: frozenset[str] | None = None
    """Kinds of device; None is any."""
    dtypes: frozenset[torch.dtype] | None = None
    """None is any."""
    head_dim_multiple: int = 1
    max_head_dim: int | None = None
    softcaps: bool = True

    def lacks(self, kv: PagedKv, traits: AttentionTraits) -> str | None:
        """Return what a model needs that is not there; None if it fits."""
        keys = kv.keys_NBKD[0]
        head_dim = keys.shape[-1]
        if self.devices is not None and keys.device.type not in self.devices:
            return f"device {keys.device.type}"
        if self.dtypes is not None and keys.dtype not in self.dtypes:
            return f"dtype {keys.dtype}"
        if head_dim % self.head_dim_multiple or head_dim > (self.max_head_dim or head_dim):
            return f"heads of {head_dim}"
        if traits.softcap is not None and not self.softcaps:
            return "a soft cap"
        return None


class StepAttention(Protocol):
    """Attention for the rows of one step, prepared once and used by every layer."""

    def attend(self, layer: int, q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Store this step's keys and values, then attend.

        Each token sees those of its own request up to itself, as far as the layer's window reaches.

        Args:
            layer: Whose cache, window and soft cap.
            q_TQD: Queries, rotated, in the model's dtype; heads of one token lie together.
            k_TKD: Keys, rotated, in the cache's dtype; Q is a multiple of K.
            v_TKD: Values, in the cache's dtype.

        Returns:
            ``[T, Q, D]``, dtype and device of the queries.
        """


class AttentionBackend(Protocol):
    """One way to attend over a paged cache."""

    def prepare(self, batch: ForwardBatch) -> StepAttention:
        """Work out once per step what all layers share."""


AttentionFactory = Callable[[PagedKv, AttentionTraits], AttentionBackend]
"""Makes the backend of a model over its cache."""


def kv_bytes_per_block(arch: CachedModel, block_size: int, dtype: torch.dtype) -> int:
    """Return the bytes one block takes over all layers."""
    per_token = 2 * arch.num_layers * arch.num_kv_heads * arch.head_dim
    return per_token * block_size * dtype.itemsize
