"""Attention by torch's own flash kernel for packed sequences, on CUDA in half precision.

Where the cache's blocks are pages as the kernel wants them it reads them in place; else the blocks
that a step sees are gathered below one another first.

Shape legend: T tokens in the step, S slots that its rows see, R requests, P blocks of the longest
table, Q query heads, K key/value heads, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graft_runtime.layers.attention.base import AttentionFeatures, AttentionTraits, PagedKv
from graft_runtime.layers.batch import ForwardBatch

PAGE_MULTIPLE = 256
"""The kernel's pages are multiples of this many tokens."""

FEATURES = AttentionFeatures(
    devices=frozenset({"cuda"}),
    dtypes=frozenset({torch.float16, torch.bfloat16}),
    head_dim_multiple=8,
    max_head_dim=256,
    softcaps=False,
)

Kernel = Callable[..., Any]
"""As `torch.nn.attention.varlen.varlen_attn`."""

_NEEDED = {"scale", "window_size", "enable_gqa"}
_PAGED = {"block_table", "seqused_k"}


def find_kernel() -> Kernel | None:
    """Return torch's kernel, or None where torch has none that can do what is needed."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if _parameters(varlen_attn) >= _NEEDED else None


def _parameters(kernel: Kernel) -> set[str]:
    return set(inspect.signature(kernel).parameters)


@dataclass(frozen=True)
class _Context:
    """What the rows of a step see, as the kernel is told."""

    query_starts: Tensor
    """[R + 1] int32."""
    max_query: int
    max_context: int
    key_starts: Tensor | None = None
    """[R + 1] int32 among the gathered slots."""
    slots_S: Tensor | None = None
    seq_lens_R: Tensor | None = None
    block_table_RP: Tensor | None = None


class VarlenAttention:
    """The backend for half precision on CUDA."""

    def __init__(
        self,
        kv: PagedKv,
        traits: AttentionTraits,
        kernel: Kernel,
        page_multiple: int = PAGE_MULTIPLE,
    ) -> None:
        """Take a cache.

        Args:
            kv: The cache.
            traits: How the model's layers attend; without a soft cap.
            kernel: From `find_kernel`.
            page_multiple: Blocks of a multiple of this many tokens are read in place.
        """
        self._kv = kv
        self._traits = traits
        self._kernel = kernel
        self._is_paged = not kv.block_size % page_multiple and _parameters(kernel) >= _PAGED

    def prepare(self, batch: ForwardBatch) -> VarlenStepAttention:
        """Put lengths, and blocks or slots, where the kernel finds them."""
        device = self._kv.keys_NBKD[0].device
        counts = np.diff(batch.query_starts)
        shared = (
            _int32(batch.query_starts, device),
            int(counts.max(initial=0)),
            max(batch.seq_lens, default=0),
        )
        if self._is_paged:
            width = max((len(table) for table in batch.block_tables), default=0)
            tables = [[*table, *[0] * (width - len(table))] for table in batch.block_tables]
            context = _Context(
                *shared,
                seq_lens_R=_int32(batch.seq_lens, device),
                block_table_RP=_int32(tables, device),
            )
        else:
            context = _Context(
                *shared,
                key_starts=_int32([0, *accumulate(batch.seq_lens)], device),
                slots_S=torch.from_numpy(_slots(batch, self._kv.block_size)).to(device),
            )
        return VarlenStepAttention(
            self._kv, self._traits, self._kernel, context, batch.slot_mapping_T
        )


class VarlenStepAttention:
    """Attention for one step's rows."""

    def __init__(
        self,
        kv: PagedKv,
        traits: AttentionTraits,
        kernel: Kernel,
        context: _Context,
        slots_T: Tensor,
    ) -> None:
        self._kv = kv
        self._traits = traits
        self._kernel = kernel
        self._context = context
        self._slots_T = slots_T

    def attend(self, layer: int, q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Store this step's keys and values, then attend; returns ``[T, Q, D]``."""
        self._kv.write(layer, k_TKD, v_TKD, self._slots_T)
        keys, values = self._kv.keys_NBKD[layer], self._kv.values_NBKD[layer]
        context, options = self._context, {}
        if context.block_table_RP is not None:
            options = {"seqused_k": context.seq_lens_R, "block_table": context.block_table_RP}
        else:
            keys = keys.flatten(0, 1)[context.slots_S]
            values = values.flatten(0, 1)[context.slots_S]
        window = self._traits.windows[layer]
        out_TQD: Tensor = self._kernel(
            q_TQD.contiguous(),
            keys,
            values,
            context.query_starts,
            context.key_starts,
            context.max_query,
            context.max_context,
            scale=self._traits.scale,
            # The kernel counts the tokens to the left; ours counts the token itself, too.
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=q_TQD.shape[1] != k_TKD.shape[1],
            **options,
        )
        return out_TQD


def _slots(batch: ForwardBatch, block_size: int) -> np.ndarray:
    """Return the slots of every row's whole context, row after row."""
    parts = [np.zeros(0, dtype=np.int64)]
    for table, length in zip(batch.block_tables, batch.seq_lens, strict=True):
        at = np.arange(length)
        parts.append(np.asarray(table)[at // block_size] * block_size + at % block_size)
    return np.concatenate(parts)


def _int32(numbers: object, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32, device=device)
