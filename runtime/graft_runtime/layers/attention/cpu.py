"""Attention in plain torch over the paged cache; the reference for every other backend.

A piece of a prompt is one call of scaled dot product attention, over the part of its context that
the layer's window shows. A request whose blocks ascend without gaps reads the cache in place; any
other has its blocks gathered. Requests that decode are computed together (`cpu_decode.py`).

Shape legend: T tokens in the step, n tokens of one request, R requests of a group, L the length of
what they see, Q query heads, K key/value heads, G = Q / K, D head size, N blocks, B block size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from graft_runtime.layers.attention.base import AttentionTraits, PagedKv
from graft_runtime.layers.attention.cpu_decode import (
    LEAST_ROWS,
    BlockBuffer,
    Decode,
    DecodeGroup,
    attend_group,
    build_group,
    group_decodes,
)
from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.layers.linear import multiplies_natively


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


class _Step(NamedTuple):
    """A step's rows in layers of one window."""

    rows: list[_Row]
    """Computed one by one."""
    groups: list[DecodeGroup]


class CpuAttention:
    """The backend for CPUs. It runs on any device, only not fast."""

    def __init__(self, kv: PagedKv, traits: AttentionTraits) -> None:
        self._kv = kv
        self._traits = traits
        self._windows = sorted(set(traits.windows), key=lambda window: window or 0)
        self._groups_decodes = multiplies_natively(kv.keys_NBKD[0])
        self._buffer = BlockBuffer()

    def prepare(self, batch: ForwardBatch) -> CpuStepAttention:
        """Find each request's blocks and masks, once for each window that layers have."""
        self._kv.clear(_begun_blocks(batch, self._kv.block_size))
        steps = {window: self._step(batch, window) for window in self._windows}
        return CpuStepAttention(self._kv, self._traits, steps, batch.slot_mapping_T, self._buffer)

    def _step(self, batch: ForwardBatch, window: int | None) -> _Step:
        rows: list[_Row] = []
        decodes: list[Decode] = []
        bounds = zip(batch.query_starts[:-1], batch.query_starts[1:], strict=True)
        for (start, end), context, table in zip(
            bounds, batch.seq_lens, batch.block_tables, strict=True
        ):
            if end == start + 1 and self._groups_decodes:
                decodes.append(self._decode(start, context, table, window))
            elif end > start:
                rows.append(self._row((start, end), context, table, window))
        groups: list[DecodeGroup] = []
        for group in group_decodes(decodes, self._kv.block_size):
            if len(group) >= LEAST_ROWS:
                groups.append(build_group(group, self._kv.block_size))
            else:
                rows += [self._single(one) for one in group]
        return _Step(rows, groups)

    def _decode(self, token: int, context: int, table: list[int], window: int | None) -> Decode:
        block_size = self._kv.block_size
        first = 0 if window is None else max(0, context - window)
        used = table[first // block_size : -(-context // block_size)]
        return Decode(token, used, first % block_size, context - first)

    def _single(self, one: Decode) -> _Row:
        first_slot, blocks = self._place(one.blocks, one.first)
        return _Row(one.token, one.token + 1, one.length, first_slot, blocks, None)

    def _row(
        self, bounds: tuple[int, int], context: int, table: list[int], window: int | None
    ) -> _Row:
        start, end = bounds
        block_size = self._kv.block_size
        count = end - start
        first = 0 if window is None else max(0, context - count - window + 1)
        used = table[first // block_size : -(-context // block_size)]
        first_slot, blocks = self._place(used, first % block_size)
        length = context - first
        is_triangle = count == length and (window is None or count <= window)
        mask = None
        if count > 1 and (self._traits.softcap is not None or not is_triangle):
            mask = _chunk_mask(count, length, window, self._kv.keys_NBKD[0])
        return _Row(start, end, length, first_slot, blocks, mask)

    def _place(self, used: Sequence[int], offset: int) -> tuple[int, Tensor | None]:
        """Return where a context begins, and the blocks to gather if they are no ascending run."""
        if list(used) == list(range(used[0], used[0] + len(used))):
            return offset + used[0] * self._kv.block_size, None
        device = self._kv.keys_NBKD[0].device
        return offset, torch.tensor(used, dtype=torch.int64, device=device)


class CpuStepAttention:
    """Attention for one step's rows."""

    def __init__(
        self,
        kv: PagedKv,
        traits: AttentionTraits,
        steps: dict[int | None, _Step],
        slots_T: Tensor,
        buffer: BlockBuffer,
    ) -> None:
        self._kv = kv
        self._traits = traits
        self._steps = steps
        self._slots_T = slots_T
        self._buffer = buffer

    def attend(self, layer: int, q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Store this step's keys and values, then attend; returns ``[T, Q, D]``."""
        self._kv.write(layer, k_TKD, v_TKD, self._slots_T)
        traits = self._traits
        num_tokens, num_heads, head_dim = q_TQD.shape
        q_TKGD = q_TQD.view(num_tokens, k_TKD.shape[1], -1, head_dim)
        out_TKGD = torch.empty_like(q_TKGD, memory_format=torch.contiguous_format)
        step = self._steps[traits.windows[layer]]
        for row in step.rows:
            out_TKGD[row.start : row.end] = self._attend_row(layer, row, q_TKGD)
        for group in step.groups:
            part_RKGD = attend_group(self._kv, layer, group, q_TKGD, traits, self._buffer)
            out_TKGD.index_copy_(0, group.tokens_R, part_RKGD)
        return out_TKGD.view(num_tokens, num_heads, head_dim)

    def _attend_row(self, layer: int, row: _Row, q_TKGD: Tensor) -> Tensor:
        keys, values = self._kv.keys_NBKD[layer], self._kv.values_NBKD[layer]
        k_KLD, v_KLD = _context(keys, row), _context(values, row)
        q_nKGD = q_TKGD[row.start : row.end]
        scale, softcap = self._traits.scale, self._traits.softcap
        if softcap is not None:
            return _attend_capped(q_nKGD, k_KLD, v_KLD, row.mask_nL, scale, softcap)
        if row.end - row.start == 1:
            return _attend_decode(q_nKGD, k_KLD, v_KLD, scale)
        return _attend_chunk(q_nKGD, k_KLD, v_KLD, row.mask_nL, scale)


def _begun_blocks(batch: ForwardBatch, block_size: int) -> list[int]:
    """Return the blocks whose first token this step writes."""
    begun: list[int] = []
    bounds = zip(batch.query_starts[:-1], batch.query_starts[1:], strict=True)
    for (start, end), context, table in zip(
        bounds, batch.seq_lens, batch.block_tables, strict=True
    ):
        past = context - (end - start)
        begun += table[-(-past // block_size) : -(-context // block_size)]
    return begun


def _context(cache_NBKD: Tensor, row: _Row) -> Tensor:
    """Return the keys or values a row attends to, ``[K, L, D]``, in place where they lie so."""
    cache_KND = cache_NBKD.permute(2, 0, 1, 3)
    if row.blocks is not None:
        cache_KND = cache_KND.index_select(1, row.blocks)
    return cache_KND.flatten(1, 2)[:, row.first_slot : row.first_slot + row.length]


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
