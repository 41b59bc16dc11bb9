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
        is_run = all(block == used[0] + index for index, block in enumerate(used))
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
        out_TQD = torch.empty_like(q_TQD, memory_format=torch.contiguous_format)
        for row in self._rows:
            k_LKD, v_LKD = self._context(keys, row), self._context(values, row)
            attend_one = _attend_decode if row.end - row.start == 1 else _attend_chunk
            out_TQD[row.start : row.end] = attend_one(
                q_TQD[row.start : row.end], k_LKD, v_LKD, row.mask_nL
            )
        return out_TQD

    @staticmethod
    def _context(cache_NBKD: Tensor, row: _Row) -> Tensor:
        if row.blocks is not None:
            return cache_NBKD.index_select(0, row.blocks).flatten(0, 1)[: row.length]
        start = row.first_block * cache_NBKD.shape[1]
        return cache_NBKD.flatten(0, 1)[start : start + row.length]


def _attend_decode(q_1QD: Tensor, k_LKD: Tensor, v_LKD: Tensor, mask: Tensor | None) -> Tensor:
    """Attend from one token: the queries of a group are rows against their shared key head."""
    del mask  # the newest token sees everything
    kv_heads = k_LKD.shape[1]
    q_1KGD = q_1QD.view(1, kv_heads, -1, q_1QD.shape[-1])
    out_1KGD = functional.scaled_dot_product_attention(
        q_1KGD, k_LKD.transpose(0, 1)[None], v_LKD.transpose(0, 1)[None]
    )
    return out_1KGD.reshape(q_1QD.shape)


def _attend_chunk(q_nQD: Tensor, k_LKD: Tensor, v_LKD: Tensor, mask_nL: Tensor | None) -> Tensor:
    """Attend from a piece of a prompt; key heads are the batch, stretched without a copy."""
    count, num_heads, head_dim = q_nQD.shape
    length, kv_heads, _ = k_LKD.shape
    q_KGnD = q_nQD.view(count, kv_heads, -1, head_dim).permute(1, 2, 0, 3)
    shape = (kv_heads, num_heads // kv_heads, length, head_dim)
    out_KGnD = functional.scaled_dot_product_attention(
        q_KGnD,
        k_LKD.transpose(0, 1)[:, None].expand(shape),
        v_LKD.transpose(0, 1)[:, None].expand(shape),
        attn_mask=mask_nL,
        is_causal=mask_nL is None,
    )
    return out_KGnD.permute(2, 0, 1, 3).reshape(q_nQD.shape)


def _chunk_mask(count: int, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Hide what comes after each of a context's last ``count`` tokens."""
    mask_nL = torch.full((count, length), float("-inf"), dtype=dtype, device=device)
    return mask_nL.triu_(length - count + 1)
