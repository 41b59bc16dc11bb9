"""The paged KV cache and what every attention backend offers the decoder.

Shape legend: T tokens, Q query heads, K key/value heads, D head size, N blocks, B block size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

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


class PagedKv:
    """Keys and values of every layer: ``[num_blocks, block_size, kv_heads, head_dim]`` each."""

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
        shape = (num_blocks, block_size, kv_heads, head_dim)

        # Zeros, not whatever was in memory: a stale NaN would survive any mask.
        def allocate() -> list[Tensor]:
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]

        self.block_size = block_size
        self.keys_NBKD = allocate()
        self.values_NBKD = allocate()

    def write(self, layer: int, keys_TKD: Tensor, values_TKD: Tensor, slots_T: Tensor) -> None:
        """Store this step's keys and values where the slot mapping says."""
        self.keys_NBKD[layer].flatten(0, 1).index_copy_(0, slots_T, keys_TKD)
        self.values_NBKD[layer].flatten(0, 1).index_copy_(0, slots_T, values_TKD)


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
        """Store this step's keys and values, then attend; returns ``[T, Q, D]``."""


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
