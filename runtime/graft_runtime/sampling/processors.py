"""Narrow a row's distribution before drawing: each returns scores with what is out at -infinity.

All take float32 scores ``[n, V]`` and one value per row, and return scores of the same shape and
dtype; the caller's are left alone. A row whose value is off comes back as it was.

Shape legend: n rows, V vocabulary, M candidates, m rows that need more candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CANDIDATES = 1024
"""Top-p looks at this many best tokens before it sorts the whole vocabulary."""


def keep_top_k(scores_nV: Tensor, top_k_n: Tensor) -> Tensor:
    """Keep each row's k best tokens, and any that tie with the last of them; k = 0 keeps all.

    Source: arXiv:1805.04833.
    """
    vocab = scores_nV.shape[-1]
    k_n = top_k_n.long().clamp(max=vocab)
    k_n = torch.where(k_n == 0, vocab, k_n)
    is_limited_n = k_n < vocab
    if not bool(is_limited_n.any()):
        return scores_nV
    most = int(k_n[is_limited_n].max())
    best_nM = scores_nV.topk(most, dim=-1).values
    last_n1 = best_nM.gather(-1, (k_n.clamp(max=most) - 1)[:, None])
    is_out_nV = (scores_nV < last_n1) & is_limited_n[:, None]
    return scores_nV.masked_fill(is_out_nV, float("-inf"))


def keep_top_p(scores_nV: Tensor, top_p_n: Tensor) -> Tensor:
    """Keep each row's fewest best tokens that together reach probability p, and ties of the last.

    At least one token stays; p >= 1 keeps all.

    Source: arXiv:1904.09751.
    """
    is_limited_n = top_p_n < 1
    total_n1 = scores_nV.logsumexp(dim=-1, keepdim=True)
    vocab = scores_nV.shape[-1]
    count = min(_CANDIDATES, vocab)
    last_n1, is_found_n = _last_kept(scores_nV.topk(count, dim=-1).values, total_n1, top_p_n)
    wide_m = (~is_found_n & is_limited_n).nonzero()[:, 0]
    if count < vocab and len(wide_m):
        # Only of the rows that need it: a sort takes ten times as long as all the rest.
        every_mV = scores_nV[wide_m].sort(dim=-1, descending=True).values
        last_n1[wide_m], _ = _last_kept(every_mV, total_n1[wide_m], top_p_n[wide_m])
    is_out_nV = (scores_nV < last_n1) & is_limited_n[:, None]
    return scores_nV.masked_fill(is_out_nV, float("-inf"))


def keep_min_p(scores_nV: Tensor, min_p_n: Tensor) -> Tensor:
    """Keep tokens at least ``min_p`` times as probable as the row's best; 0 keeps all.

    Source: arXiv:2407.01082.
    """
    # Of logarithms: no softmax is needed, and a very small p cannot round to zero.
    least_n1 = scores_nV.amax(dim=-1, keepdim=True) + min_p_n.log()[:, None]
    return scores_nV.masked_fill(scores_nV < least_n1, float("-inf"))


def keep_typical(scores_nV: Tensor, mass_n: Tensor) -> Tensor:
    """Keep the tokens whose surprise is nearest to the row's entropy, until they reach the mass.

    At least one token stays; a mass of 1 keeps all.

    Source: arXiv:2202.00666.
    """
    log_probs_nV = scores_nV.log_softmax(dim=-1)
    probs_nV = log_probs_nV.exp()
    # A token that is out has a product of NaN, and adds nothing.
    entropy_n1 = -(log_probs_nV * probs_nV).nansum(dim=-1, keepdim=True)
    distance_nV = (-log_probs_nV - entropy_n1).abs()
    nearest = distance_nV.sort(dim=-1, stable=True)
    reached_nV = probs_nV.gather(-1, nearest.indices).cumsum(dim=-1, dtype=torch.float64)
    last_n1 = (reached_nV < mass_n[:, None]).sum(dim=-1, keepdim=True)
    last_n1.clamp_(max=scores_nV.shape[-1] - 1)
    is_out_nV = distance_nV > nearest.values.gather(-1, last_n1)
    return scores_nV.masked_fill(is_out_nV & (mass_n < 1)[:, None], float("-inf"))


def _last_kept(best_nM: Tensor, total_n1: Tensor, top_p_n: Tensor) -> tuple[Tensor, Tensor]:
    """Return the score of each row's last kept token, and whether p was reached among the M."""
    probs_nM = (best_nM - total_n1).exp()
    before_nM = probs_nM.cumsum(dim=-1, dtype=torch.float64) - probs_nM
    is_kept_nM = before_nM < top_p_n[:, None]
    is_kept_nM[:, 0] = True
    count_n1 = is_kept_nM.sum(dim=-1, keepdim=True)
    is_found_n = count_n1[:, 0] < best_nM.shape[-1]
    return best_nM.gather(-1, count_n1 - 1), is_found_n
