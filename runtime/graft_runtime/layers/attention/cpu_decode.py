"""Attention of many single tokens at once on a CPU: a few batched products over gathered blocks.

One call of scaled dot product attention per request costs more in the call than in what it
computes. Here requests whose contexts are of similar length share one gather and two products. It
reads whole blocks: what lies outside a request's context is masked, and must be finite
(`PagedKv.clear`).

Shape legend: T tokens in the step, R requests of one group, P blocks of one of them (padded), L = P
times the block size, Q query heads, K key/value heads, G = Q / K, D head size, N blocks, B block
size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graft_runtime.layers.attention.base import AttentionTraits, PagedKv

LEAST_ROWS = 3
"""Fewer requests are faster one by one (measured at 192 and 1024 tokens of context)."""
MAX_GATHERED = 1 << 13
"""Most tokens that one group gathers, padding included: more do not fit a core's share of cache."""
SPARE_BLOCKS = 16
"""Padding up to which one group is always faster than two (a group costs about as much as this)."""


@dataclass(frozen=True)
class Decode:
    """One request's newest token, and the blocks that it sees."""

    token: int
    """Its place in T."""
    blocks: list[int]
    first: int
    """Offset of the first token that it sees, in the first of these blocks."""
    length: int
    """How many tokens it sees."""


@dataclass(frozen=True)
class DecodeGroup:
    """Requests that are computed in one product."""

    tokens_R: Tensor
    """Places in T."""
    blocks_RP: Tensor
    """Flat block numbers; padding repeats a request's last block."""
    num_rows: int
    hidden_R1L: Tensor
    """float32, added to scores: -infinity where a slot is not the request's to see."""


def group_decodes(decodes: Sequence[Decode], block_size: int) -> Iterator[list[Decode]]:
    """Put requests together whose contexts are about as long, within the bound on memory."""
    group: list[Decode] = []
    used = 0
    for decode in sorted(decodes, key=lambda one: len(one.blocks), reverse=True):
        # The first of a group has the most blocks.
        most = len(group[0].blocks) if group else len(decode.blocks)
        size = (len(group) + 1) * most
        padding = size - used - len(decode.blocks)
        too_much = padding > max(SPARE_BLOCKS, used // 4) or size * block_size > MAX_GATHERED
        if group and too_much:
            yield group
            group, used = [], 0
        group.append(decode)
        used += len(decode.blocks)
    if group:
        yield group


def build_group(decodes: Sequence[Decode], block_size: int) -> DecodeGroup:
    """Lay out a group's blocks and what of them is hidden."""
    most = max(len(one.blocks) for one in decodes)
    blocks_RP = np.array(
        [[*one.blocks, *one.blocks[-1:] * (most - len(one.blocks))] for one in decodes],
        dtype=np.int64,
    )
    first_R1 = np.array([[one.first] for one in decodes])
    end_R1 = first_R1 + np.array([[one.length] for one in decodes])
    slots_L = np.arange(most * block_size)
    hidden_RL = np.where((slots_L < first_R1) | (slots_L >= end_R1), -np.inf, 0.0)
    return DecodeGroup(
        tokens_R=torch.tensor([one.token for one in decodes], dtype=torch.int64),
        blocks_RP=torch.from_numpy(blocks_RP.reshape(-1)),
        num_rows=len(decodes),
        hidden_R1L=torch.from_numpy(hidden_RL.astype(np.float32))[:, None],
    )


class BlockBuffer:
    """Memory for one gather at a time, kept between steps: new pages cost as much as the copy."""

    def __init__(self) -> None:
        self._flat: Tensor | None = None

    def gather(self, cache_NBKD: Tensor, blocks: Tensor) -> Tensor:
        """Copy blocks to ``[K, len(blocks), B, D]``; the last gather's content is lost.

        Args:
            cache_NBKD: Keys or values of one layer; the copy has its dtype.
            blocks: int64 block ids; one may come several times.
        """
        cache_KNBD = cache_NBKD.permute(2, 0, 1, 3)
        kv_heads, _, block_size, head_dim = cache_KNBD.shape
        shape = (kv_heads, len(blocks), block_size, head_dim)
        size = kv_heads * len(blocks) * block_size * head_dim
        if self._flat is None or len(self._flat) < size:
            self._flat = cache_NBKD.new_empty(size)
        out = self._flat[:size].view(shape)
        return torch.index_select(cache_KNBD, 1, blocks, out=out)


def attend_group(
    kv: PagedKv,
    layer: int,
    group: DecodeGroup,
    q_TKGD: Tensor,
    traits: AttentionTraits,
    buffer: BlockBuffer,
) -> Tensor:
    """Attend from a group's tokens.

    Args:
        kv: The cache; this step's keys and values are in it.
        layer: Whose keys and values.
        group: From `build_group`.
        q_TKGD: The step's queries.
        traits: How the layer attends. Its window is in the group already.
        buffer: Overwritten.

    Returns:
        ``[R, K, G, D]`` in the dtype of the queries. Scores are rounded to it once, as in the plain
        form of attention; what follows up to the shares is float32.
    """
    kv_heads, num_rows = q_TKGD.shape[1], group.num_rows
    each = (kv_heads * num_rows, -1, q_TKGD.shape[-1])
    q_KRGD = q_TKGD.index_select(0, group.tokens_R).transpose(0, 1).reshape(each)
    k_KRLD = buffer.gather(kv.keys_NBKD[layer], group.blocks_RP).view(each)
    scores_KRGL = torch.unflatten(torch.bmm(q_KRGD, k_KRLD.mT), 0, (kv_heads, num_rows)).float()
    if traits.softcap is None:
        scores_KRGL.mul_(traits.scale)
    else:
        scores_KRGL.mul_(traits.scale / traits.softcap).tanh_().mul_(traits.softcap)
    shares_KRGL = scores_KRGL.add_(group.hidden_R1L).softmax(dim=-1).to(q_TKGD.dtype)
    v_KRLD = buffer.gather(kv.values_NBKD[layer], group.blocks_RP).view(each)
    out_KRGD = torch.bmm(shares_KRGL.flatten(0, 1), v_KRLD)
    return torch.unflatten(out_KRGD, 0, (kv_heads, num_rows)).transpose(0, 1)
