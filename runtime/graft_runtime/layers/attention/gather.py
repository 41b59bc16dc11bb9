"""Attention in plain torch that launches few operations, for devices where launches cost most.

Requests of similar size share one padded product over blocks gathered from the cache: any dtype,
any head size, windows and soft caps. It is what a GPU falls back to; `varlen.py` is faster where it
fits. Runs on any device, so the gate holds it to the CPU backend.

Shape legend: T tokens in the step, R pieces of one group, n their tokens (padded), L the length of
what they see (padded), Q query heads, K key/value heads, G = Q / K, D head size, N blocks, B block
size, m tokens of a group without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from graft_runtime.layers.attention.base import AttentionFeatures, AttentionTraits, PagedKv
from graft_runtime.layers.batch import ForwardBatch

FEATURES = AttentionFeatures()

MAX_GATHERED = 1 << 18
"""Most slots of the cache that one group gathers, padding included."""
MAX_SCORES = 1 << 23
"""Most pairs of token and slot in one group, per head."""


@dataclass(frozen=True)
class Piece:
    """Some neighbouring tokens of one request, and what they see of its context."""

    start: int
    """First token in T."""
    count: int
    position: int
    """Of the first token in its request."""
    first: int
    """Position of the first slot that any of them sees."""
    row: int

    @property
    def length(self) -> int:
        """Slots that any of them sees."""
        return self.position + self.count - self.first


@dataclass(frozen=True)
class Group:
    """Pieces that are computed in one product."""

    tokens_Rn: Tensor
    """Which of the T tokens; padding repeats the last one."""
    slots_RL: Tensor
    """Which slots of the cache; padding repeats the last one."""
    seen_R1nL: Tensor
    """True where a token sees a slot."""
    tokens_m: Tensor
    """The group's tokens without padding."""
    places_m: Tensor
    """Where these are in the flattened ``[R, n]``."""


class GatherAttention:
    """The backend that fits every model on every device."""

    def __init__(self, kv: PagedKv, traits: AttentionTraits) -> None:
        self._kv = kv
        self._traits = traits

    def prepare(self, batch: ForwardBatch) -> GatherStepAttention:
        """Sort a step's tokens into groups, once for each window that layers have."""
        device, block_size = self._kv.keys_NBKD[0].device, self._kv.block_size
        groups_of = {
            window: [
                _group(pieces, batch.block_tables, block_size, window, device)
                for pieces in groups(_pieces(batch, window))
            ]
            for window in set(self._traits.windows)
        }
        return GatherStepAttention(self._kv, self._traits, groups_of, batch.slot_mapping_T)


class GatherStepAttention:
    """Attention for one step's rows."""

    def __init__(
        self,
        kv: PagedKv,
        traits: AttentionTraits,
        groups_of: dict[int | None, list[Group]],
        slots_T: Tensor,
    ) -> None:
        self._kv = kv
        self._traits = traits
        self._groups_of = groups_of
        self._slots_T = slots_T

    def attend(self, layer: int, q_TQD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        """Store this step's keys and values, then attend; returns ``[T, Q, D]``."""
        self._kv.write(layer, k_TKD, v_TKD, self._slots_T)
        keys = self._kv.keys_NBKD[layer].flatten(0, 1)
        values = self._kv.values_NBKD[layer].flatten(0, 1)
        out_TQD = torch.empty_like(q_TQD, memory_format=torch.contiguous_format)
        for group in self._groups_of[self._traits.windows[layer]]:
            q_RQnD = q_TQD[group.tokens_Rn].transpose(1, 2)
            k_RKLD = keys[group.slots_RL].transpose(1, 2)
            v_RKLD = values[group.slots_RL].transpose(1, 2)
            attended_RQnD = _attend(q_RQnD, k_RKLD, v_RKLD, group.seen_R1nL, self._traits)
            flat = attended_RQnD.transpose(1, 2).flatten(0, 1)
            out_TQD.index_copy_(0, group.tokens_m, flat[group.places_m])
        return out_TQD


def groups(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Put pieces of similar size together, within the bounds on memory."""
    group: list[Piece] = []
    for piece in sorted(pieces, key=lambda one: (one.count, one.length)):
        # Sorted by count first, so the newest piece has the most tokens.
        length = max((one.length for one in (*group, piece)), default=0)
        size = (len(group) + 1) * length
        if group and (
            size > MAX_GATHERED
            or size * piece.count > MAX_SCORES
            or piece.count > 2 * group[0].count
            or length > 4 * min(one.length for one in group)
        ):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _pieces(batch: ForwardBatch, window: int | None) -> list[Piece]:
    """Cut each request's tokens so that no piece alone takes too much memory."""
    pieces = []
    for row, context in enumerate(batch.seq_lens):
        start, end = batch.query_starts[row], batch.query_starts[row + 1]
        most = max(1, MAX_SCORES // max(context, 1))
        for begin in range(start, end, most):
            count = min(most, end - begin)
            position = context - (end - begin)
            first = 0 if window is None else max(0, position - window + 1)
            pieces.append(Piece(begin, count, position, first, row))
    return pieces


def _group(
    pieces: Sequence[Piece],
    tables: Sequence[Sequence[int]],
    block_size: int,
    window: int | None,
    device: torch.device,
) -> Group:
    most = max(piece.count for piece in pieces)
    longest = max(piece.length for piece in pieces)
    tokens, slots, offsets = [], [], []
    for piece in pieces:
        tokens.append(piece.start + np.minimum(np.arange(most), piece.count - 1))
        at = piece.first + np.minimum(np.arange(longest), piece.length - 1)
        slots.append(np.asarray(tables[piece.row])[at // block_size] * block_size + at % block_size)
        offsets.append(piece.position - piece.first)
    # The last slot that each token sees, counted from the piece's first one.
    last_Rn = np.asarray(offsets)[:, None] + (np.stack(tokens) - np.stack(tokens)[:, :1])
    slot_L = np.arange(longest)
    seen_RnL = slot_L <= last_Rn[:, :, None]
    if window is not None:
        seen_RnL &= slot_L > last_Rn[:, :, None] - window
    real_Rn = np.arange(most) < np.asarray([piece.count for piece in pieces])[:, None]

    def to_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Group(
        tokens_Rn=to_device(np.stack(tokens)),
        slots_RL=to_device(np.stack(slots)),
        seen_R1nL=to_device(seen_RnL)[:, None],
        tokens_m=to_device(np.stack(tokens)[real_Rn]),
        places_m=to_device(np.flatnonzero(real_Rn)),
    )


def _attend(
    q_RQnD: Tensor, k_RKLD: Tensor, v_RKLD: Tensor, seen_R1nL: Tensor, traits: AttentionTraits
) -> Tensor:
    if traits.softcap is None:
        return functional.scaled_dot_product_attention(
            q_RQnD, k_RKLD, v_RKLD, attn_mask=seen_R1nL, scale=traits.scale, enable_gqa=True
        )
    kv_heads = k_RKLD.shape[1]
    q_RKGnD = torch.unflatten(q_RQnD, 1, (kv_heads, -1))
    scores_RKGnL = (q_RKGnD @ k_RKLD[:, :, None].mT) * traits.scale
    scores_RKGnL = (scores_RKGnL / traits.softcap).tanh() * traits.softcap
    scores_RKGnL = scores_RKGnL.masked_fill(~seen_R1nL[:, None], float("-inf"))
    shares_RKGnL = scores_RKGnL.softmax(dim=-1, dtype=torch.float32).to(q_RQnD.dtype)
    out_RKGnD: Tensor = shares_RKGnL @ v_RKLD[:, :, None]
    return out_RKGnD.flatten(1, 2)
