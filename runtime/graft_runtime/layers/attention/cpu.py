"""Attention in plain torch over views of the paged cache; the reference for every other backend.

Each request is one call of scaled dot product attention. A request whose blocks ascend without gaps
reads the cache in place; any other has its blocks gathered.

Shape legend: T tokens in the step, n tokens of one request, L its context length, Q query heads,
K key/value heads, G = Q / K, D head size, N blocks, B block size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from graft_runtime.layers.attention.base import PagedKv
from graft_runtime.layers.batch import ForwardBatch


@dataclass(frozen=True)
class _Row:
    """One request's share of a step."""

    start: int
    """First of its tokens in T."""
    end: int
    length: int
    """Tokens it attends to, its own included."""
    first_block: int
    """Where its run of blocks begins, unless they are gathered."""
    blocks: Tensor | None
    """Block ids to gather; None when they are one ascending run."""
    mask_nL: Tensor | None
    """Added to the scores; None when nothing or exactly the upper triangle is hidden."""


class CpuAttention:
    """The backend for CPUs. It runs on any device, only not fast."""

    def __init__(self, kv: PagedKv) -> None:
        self._kv = kv

    def prepare(self, batch: ForwardBatch) -> CpuStepAttention:
        """Find each request's blocks and masks."""
        bounds = zip(batch.query_starts[:-1], batch.query_starts[1:], strict=True)
        rows = [
            self._row(start, end, length, table)
            for (start, end), length, table in zip(
                bounds, batch.seq_lens, batch.block_tables, strict=True
            )
            if end > start
        ]
        return CpuStepAttention(self._kv, rows, batch.slot_mapping_T)

    def _row(self, start: int, end: int, length: int, table: list[int]) -> _Row:
        keys = self._kv.keys_NBKD[0]
        used = table[: -(-length // self._kv.block_size)]
        is_run = used == list(range(used[0], used[0] + len(used)))
        blocks = None if is_run else torch.tensor(used, dtype=torch.int64, device=keys.device)
        count = end - start
        needs_mask = 1 < count < length
        mask = _chunk_mask(count, length, keys.dtype, keys.device) if needs_mask else None
        return _Row(start, end, length, used[0], blocks, mask)


class CpuStepAttention:
    """Attention for one step's rows."""

    def __init__(self, kv: PagedKv, rows: list[_Row], slots_T: Tensor) -> None:
        self._kv = kv
        self._rows = rows
        self._slots_T = slots_T

    def attend(self, layer: int, q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Store this step's keys and values, then attend; returns ``[T, Q, D]``."""
        self._kv.write(layer, k_TKD, v_TKD, self._slots_T)
        keys, values = self._kv.keys_NBKD[layer], self._kv.values_NBKD[layer]
        num_tokens, num_heads, head_dim = q_TQD.shape
        q_TKGD = q_TQD.view(num_tokens, k_TKD.shape[1], -1, head_dim)
        parts = []
        for row in self._rows:
            k_KLD, v_KLD = _context(keys, row), _context(values, row)
            q_nKGD = q_TKGD[row.start : row.end]
            if row.end - row.start == 1:
                parts.append(_attend_decode(q_nKGD, k_KLD, v_KLD))
            else:
                parts.append(_attend_chunk(q_nKGD, k_KLD, v_KLD, row.mask_nL))
        out_TKGD = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out_TKGD.reshape(num_tokens, num_heads, head_dim)


def _context(cache_NBKD: Tensor, row: _Row) -> Tensor:
    """Return the keys or values a row attends to, ``[K, L, D]``, in place where they lie so."""
    first_block = row.first_block
    if row.blocks is not None:
        cache_NBKD, first_block = cache_NBKD.index_select(0, row.blocks), 0
    _, block_size, kv_heads, head_dim = cache_NBKD.shape
    # One call instead of flatten, slice and transpose: this runs per row and layer.
    return cache_NBKD.as_strided(
        (kv_heads, row.length, head_dim),
        (head_dim, kv_heads * head_dim, 1),
        first_block * block_size * kv_heads * head_dim,
    )


def _attend_decode(q_1KGD: Tensor, k_KLD: Tensor, v_KLD: Tensor) -> Tensor:
    """Attend from one token: the queries of a group are rows against their shared key head.

    The newest token sees everything, so there is nothing to mask.
    """
    return functional.scaled_dot_product_attention(q_1KGD, k_KLD[None], v_KLD[None])


def _attend_chunk(q_nKGD: Tensor, k_KLD: Tensor, v_KLD: Tensor, mask_nL: Tensor | None) -> Tensor:
    """Attend from a piece of a prompt; key heads are the batch, stretched without a copy."""
    kv_heads, length, head_dim = k_KLD.shape
    shape = (kv_heads, q_nKGD.shape[2], length, head_dim)
    out_KGnD = functional.scaled_dot_product_attention(
        q_nKGD.permute(1, 2, 0, 3),
        k_KLD[:, None].expand(shape),
        v_KLD[:, None].expand(shape),
        attn_mask=mask_nL,
        is_causal=mask_nL is None,
    )
    return out_KGnD.permute(2, 0, 1, 3)


def _chunk_mask(count: int, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Hide what comes after each of a context's last ``count`` tokens."""
    mask_nL = torch.full((count, length), float("-inf"), dtype=dtype, device=device)
    return mask_nL.triu_(length - count + 1)
