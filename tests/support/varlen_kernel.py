"""What torch's kernel for packed sequences promises, in plain torch: it runs on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

# Shape legend: T queries of all requests, S keys of all requests, n queries of one request, L its
# keys, Q/K query and key/value heads, D head size, N blocks, B block size, R requests.


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
) -> Tensor:
    """Attend; the last query of each request stands at its last key."""
    assert cu_seq_q.dtype == torch.int32
    assert query.is_contiguous()
    assert enable_gqa or query.shape[1] == key.shape[-2]
    out = torch.empty_like(query)
    for row in range(len(cu_seq_q) - 1):
        part = slice(int(cu_seq_q[row]), int(cu_seq_q[row + 1]))
        if block_table is not None:
            assert seqused_k is not None
            assert block_table.dtype == seqused_k.dtype == torch.int32
            length = int(seqused_k[row])
            k_LKD, v_LKD = (one[block_table[row]].flatten(0, 1)[:length] for one in (key, value))
        else:
            assert cu_seq_k is not None
            span = slice(int(cu_seq_k[row]), int(cu_seq_k[row + 1]))
            k_LKD, v_LKD = key[span], value[span]
        assert part.stop - part.start <= max_q
        assert len(k_LKD) <= max_k
        out[part] = _attend(query[part], k_LKD, v_LKD, scale or 1.0, window_size)
    return out


def _attend(
    q_nQD: Tensor, k_LKD: Tensor, v_LKD: Tensor, scale: float, window: tuple[int, int]
) -> Tensor:
    groups = q_nQD.shape[1] // k_LKD.shape[1]
    k_LQD, v_LQD = (one.repeat_interleave(groups, dim=1) for one in (k_LKD, v_LKD))
    scores = torch.einsum("nqd,lqd->qnl", q_nQD, k_LQD) * scale
    at_n = torch.arange(len(q_nQD))[:, None] + len(k_LKD) - len(q_nQD)
    at_L = torch.arange(len(k_LKD))
    left, right = window
    seen = torch.ones(len(q_nQD), len(k_LKD), dtype=torch.bool)
    if right >= 0:
        seen &= at_L <= at_n + right
    if left >= 0:
        seen &= at_L >= at_n - left
    scores = scores.masked_fill(~seen, float("-inf"))
    return torch.einsum("qnl,lqd->nqd", scores.softmax(dim=-1), v_LQD)
