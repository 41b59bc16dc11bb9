"""Log probabilities of given tokens, of the likeliest ones, and a token's rank among all.

Shape legend: m rows, V vocabulary, K likeliest tokens, N named tokens of all rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Scores(NamedTuple):
    """What a distribution says of one token per row and of its likeliest ones."""

    logprobs_m: Tensor
    """float32."""
    top_ids_mK: Tensor
    """int64, the likeliest first."""
    top_logprobs_mK: Tensor
    """float32; -infinity for tokens that are out."""
    totals_m: Tensor
    """float32 logarithms of each row's sum of exponentials."""


def score(scores_mV: Tensor, tokens_m: Tensor, num_top: int) -> Scores:
    """Return log-softmax values without making a whole row of them.

    The likeliest token has bit for bit the value it has as the given token, so that a client can
    tell by comparing that a choice was greedy.

    Args:
        scores_mV: float32 logits, processed or not.
        tokens_m: int64 tokens to score.
        num_top: K; at most the vocabulary.
    """
    total_m1 = scores_mV.logsumexp(dim=-1, keepdim=True)
    chosen_m = (scores_mV.gather(-1, tokens_m[:, None]) - total_m1)[:, 0]
    top = scores_mV.topk(min(num_top, scores_mV.shape[-1]), dim=-1)
    return Scores(chosen_m, top.indices, top.values - total_m1, total_m1[:, 0])


def score_named(scores_mV: Tensor, totals_m: Tensor, rows_N: Tensor, ids_N: Tensor) -> Tensor:
    """Return log-softmax values of single tokens, ``[N]`` float32.

    Args:
        scores_mV: float32 logits.
        totals_m: Of these, see `Scores`.
        rows_N: int64, each token's row.
        ids_N: int64.
    """
    return scores_mV[rows_N, ids_N] - totals_m[rows_N]


def rank(scores_mV: Tensor, tokens_m: Tensor) -> Tensor:
    """Return each token's place by score, 1 for the likeliest; ties share the better place.

    Args:
        scores_mV: float32 logits.
        tokens_m: int64.

    Returns:
        ``[m]`` int64.
    """
    chosen_m1 = scores_mV.gather(-1, tokens_m[:, None])
    better_m: Tensor = (scores_mV > chosen_m1).sum(dim=-1)
    return better_m + torch.ones_like(better_m)
