"""Attention in plain torch over views of the paged cache; the reference for every other backend.

Each request is one call of scaled dot product attention, over the part of its context that the
layer's window shows. A request whose blocks ascend without gaps reads the cache in place; any other
has its blocks gathered.

Shape legend: T tokens in the step, n tokens of one request, L the length of what they see, Q query
heads, K key/value heads, G = Q / K, D head size, N blocks, B block size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from graft_runtime.layers.attention.base import AttentionTraits, PagedKv
from graft_runtime.layers.batch import ForwardBatch


@dataclass(frozen=True)
class _Row:
    """One request's share of a step, in layers of one window."""

    start: int
    """First of its tokens in T."""
    end: int
    length: int
    """Tokens that any of its tokens sees, itself included."""
    first_slot: int
    """Where these begin in the cache, or in the gathered blocks."""
    blocks: Tensor | None
    """Block ids to gather; None when they are one ascending run."""
    mask_nL: Tensor | None
    """Added to the scores; None when nothing or exactly the upper triangle is hidden."""


class CpuAttention:
    """The backend for CPUs. It runs on any device, only not fast."""

    def __init__(self, kv: PagedKv, traits: AttentionTraits) -> None:
        self._kv = kv
        self._traits = traits
        self._windows = sorted(set(traits.windows), key=lambda window: window or 0)

    def prepare(self, batch: ForwardBatch) -> CpuStepAttention:
        """Find each request's blocks and masks, once for each window that layers have."""
        rows_of = {window: self._rows(batch, window) for window in self._windows}
        return CpuStepAttention(self._kv, self._traits, rows_of, batch.slot_mapping_T)

    def _rows(self, batch: ForwardBatch, window: int | None) -> list[_Row]:
        bounds = zip(batch.query_starts[:-1], batch.query_starts[1:], strict=True)
        return [
            self._row((start, end), length, table, window)
            for (start, end), length, table in zip(
                bounds, batch.seq_lens, batch.block_tables, strict=True
            )
            if end > start
        ]

    def _row(
        self, bounds: tuple[int, int], context: int, table: list[int], window: int | None
    ) -> _Row:
        start, end = bounds
        keys, block_size = self._kv.keys_NBKD[0], self._kv.block_size
        count = end - start
        first = 0 if window is None else max(0, context - count - window + 1)
        used = table[first // block_size : -(-context // block_size)]
        is_run = used == list(range(used[0], used[0] + len(used)))
        blocks = None if is_run else torch.tensor(used, dtype=torch.int64, device=keys.device)
        first_slot = first % block_size + (used[0] * block_size if is_run else 0)
        length = context - first
        is_triangle = count == length and (window is None or count <= window)
        mask = None
        if count > 1 and (self._traits.softcap is not None or not is_triangle):
            mask = _chunk_mask(count, length, window, keys)
        return _Row(start, end, length, first_slot, blocks, mask)


class CpuStepAttention:
    """Attention for one step's rows."""

    def __init__(
        self,
        kv: PagedKv,
        traits: AttentionTraits,
        rows_of: dict[int | None, list[_Row]],
        slots_T: Tensor,
    ) -> None:
        self._kv = kv
        self._traits = traits
        self._rows_of = rows_of
        self._slots_T = slots_T

    def attend(self, layer: int, q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Store this step's keys and values, then attend; returns ``[T, Q, D]``."""
        self._kv.write(layer, k_TKD, v_TKD, self._slots_T)
        keys, values = self._kv.keys_NBKD[layer], self._kv.values_NBKD[layer]
        traits = self._traits
        num_tokens, num_heads, head_dim = q_TQD.shape
        q_TKGD = q_TQD.view(num_tokens, k_TKD.shape[1], -1, head_dim)
        parts = []
        for row in self._rows_of[traits.windows[layer]]:
            k_KLD, v_KLD = _context(keys, row), _context(values, row)
            q_nKGD = q_TKGD[row.start : row.end]
            if traits.softcap is not None:
                parts.append(
                    _attend_capped(q_nKGD, k_KLD, v_KLD, row.mask_nL, traits.scale, traits.softcap)
                )
            elif row.end - row.start == 1:
                parts.append(_attend_decode(q_nKGD, k_KLD, v_KLD, traits.scale))
            else:
                parts.append(_attend_chunk(q_nKGD, k_KLD, v_KLD, row.mask_nL, traits.scale))
        out_TKGD = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out_TKGD.reshape(num_tokens, num_heads, head_dim)


def _context(cache_NBKD: Tensor, row: _Row) -> Tensor:
    """Return the keys or values a row attends to, ``[K, L, D]``, in place where they lie so."""
    if row.blocks is not None:
        cache_NBKD = cache_NBKD.index_select(0, row.blocks)
    kv_heads, head_dim = cache_NBKD.shape[2:]
    # One call instead of flatten, slice and transpose: this runs per row and layer.
    return cache_NBKD.as_strided(
        (kv_heads, row.length, head_dim),
        (head_dim, kv_heads * head_dim, 1),
        row.first_slot * kv_heads * head_dim,
    )


def _attend_decode(q_1KGD: Tensor, k_KLD: Tensor, v_KLD: Tensor, scale: float) -> Tensor:
    """Attend from one token: the queries of a group are rows against their shared key head.

    The newest token sees everything that was selected, so there is nothing to mask.
    """
    return functional.scaled_dot_product_attention(q_1KGD, k_KLD[None], v_KLD[None], scale=scale)


def _attend_chunk(
    q_nKGD: Tensor, k_KLD: Tensor, v_KLD: Tensor, mask_nL: Tensor | None, scale: float
) -> Tensor:
    """Attend from a piece of a prompt; key heads are the batch, stretched without a copy."""
    kv_heads, length, head_dim = k_KLD.shape
    shape = (kv_heads, q_nKGD.shape[2], length, head_dim)
    out_KGnD = functional.scaled_dot_product_attention(
        q_nKGD.permute(1, 2, 0, 3),
        k_KLD[:, None].expand(shape),
        v_KLD[:, None].expand(shape),
        attn_mask=mask_nL,
        is_causal=mask_nL is None,
        scale=scale,
    )
    return out_KGnD.permute(2, 0, 1, 3)


def _attend_capped(
    q_nKGD: Tensor,
    k_KLD: Tensor,
    v_KLD: Tensor,
    mask_nL: Tensor | None,
    scale: float,
    softcap: float,
) -> Tensor:
    """Attend with bounded scores, which no fused call of torch knows."""
    scores_KGnL = (q_nKGD.permute(1, 2, 0, 3) @ k_KLD[:, None].mT).float()
    scores_KGnL.mul_(scale / softcap).tanh_().mul_(softcap)
    if mask_nL is not None:
        scores_KGnL += mask_nL
    out_KGnD = scores_KGnL.softmax(dim=-1).to(v_KLD.dtype) @ v_KLD[:, None]
    return out_KGnD.permute(2, 0, 1, 3)


def _chunk_mask(count: int, length: int, window: int | None, like: Tensor) -> Tensor:
    """Hide from each of a context's last ``count`` tokens what is after it or out of its window."""
    hidden_nL = torch.full((count, length), float("-inf"), dtype=like.dtype, device=like.device)
    mask_nL = hidden_nL.triu(length - count + 1)
    if window is not None:
        mask_nL += hidden_nL.tril_(length - count - window)
    return mask_nL
