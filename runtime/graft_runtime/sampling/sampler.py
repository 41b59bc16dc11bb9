"""From logits to tokens: greedy, or one uniform per row through the inverse of its distribution.

Each row's token depends on its own logits and parameters alone, whatever batch it came in.

Shape legend: S rows, V vocabulary, n rows that are processed (drawn or edited), d rows that are
drawn (not greedy), K likeliest tokens, N named tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft_runtime.sampling.batch import SamplingBatch
from graft_runtime.sampling.counts import CountTable, penalise
from graft_runtime.sampling.edits import apply_edits, force_tokens
from graft_runtime.sampling.greedy import best_tokens
from graft_runtime.sampling.logprobs import Scores, score, score_named
from graft_runtime.sampling.masks import apply_masks
from graft_runtime.sampling.philox import uniforms
from graft_runtime.sampling.processed_rows import apply_processors
from graft_runtime.sampling.processors import keep_min_p, keep_top_k, keep_top_p, keep_typical
from graft_runtime.sampling.watermark import apply_watermarks

NOT_FINITE = -1
"""Stands in for the token of a row whose logits hold NaN or infinity."""
NO_TOKEN = -2
"""Stands in for the token of a row whose own rules forbid every token."""

Rows = npt.NDArray[np.intp]


class Sampled(NamedTuple):
    """What `sample` returns, on the device of the logits."""

    token_ids_S: Tensor
    """int64; `NOT_FINITE` or `NO_TOKEN` where there is none."""
    logprobs_S: Tensor | None
    """float32 log-softmax at the token; NaN where there is none."""
    top_ids_SK: Tensor | None = None
    """int64, the likeliest first; None when nobody wants any."""
    top_logprobs_SK: Tensor | None = None
    """float32; -infinity for tokens that are out."""
    named_N: Tensor | None = None
    """float32 log-softmax of the logits at the tokens that rows name; None when none does."""


def sample(logits_SV: Tensor, batch: SamplingBatch, counts: CountTable | None = None) -> Sampled:
    """Choose a token for each row. A broken row does not fail its neighbours.

    Args:
        logits_SV: float32, not changed.
        batch: What each row asks for.
        counts: What the device knows of penalised requests from earlier steps, to which the new
            tokens are added; None knows nothing, so that the batch must tell it all.
    """
    is_finite_S = _is_finite(logits_SV)
    tokens_S = best_tokens(logits_SV)
    is_stuck_S = torch.zeros_like(is_finite_S)
    rows = _processed_rows(batch)
    counts = CountTable(logits_SV.device) if counts is None else counts
    scores_nV = counted = None
    if len(rows):
        rows_n = torch.from_numpy(rows).to(logits_SV.device)
        scores_nV = logits_SV[rows_n]
        if batch.edits is not None:
            apply_edits(scores_nV, batch.edits, rows)
        if batch.penalties is not None:
            counted = counts.look_up(batch.penalties, batch.position_S)
            penalise(scores_nV, counted, batch.penalties, rows)
        if batch.masks is not None:
            apply_masks(scores_nV, batch.masks, rows)
        if batch.device_calls:
            apply_processors(scores_nV, batch.device_calls, rows)
            is_finite_S[rows_n] &= ~scores_nV.isnan().any(dim=-1)
        if batch.forced is not None:
            force_tokens(scores_nV, batch.forced, rows)
        if batch.edits is not None or batch.masks is not None or batch.device_calls:
            is_stuck_S[rows_n] = scores_nV.amax(dim=-1) == float("-inf")
        tokens_S[rows_n] = _choose(scores_nV, batch, rows)
    scored = _score(logits_SV, scores_nV, tokens_S, batch, rows) if batch.wants_logprobs else None
    tokens_S.masked_fill_(is_stuck_S, NO_TOKEN).masked_fill_(~is_finite_S, NOT_FINITE)
    if counted is not None:
        counts.add(counted, tokens_S)
    if scored is None:
        return Sampled(tokens_S, None)
    scores, named_N = scored
    logprobs_S = scores.logprobs_m.masked_fill_(tokens_S < 0, float("nan"))
    if not scores.top_ids_mK.shape[1]:
        return Sampled(tokens_S, logprobs_S, named_N=named_N)
    return Sampled(tokens_S, logprobs_S, scores.top_ids_mK, scores.top_logprobs_mK, named_N)


def _is_finite(logits_SV: Tensor) -> Tensor:
    """Tell which rows hold only numbers: both extremes pass on a NaN, and show an infinity.

    A tenth of the time of looking at each number.
    """
    return logits_SV.amax(dim=-1).isfinite() & logits_SV.amin(dim=-1).isfinite()


def _processed_rows(batch: SamplingBatch) -> Rows:
    """Return the rows that are more than the best of their logits, ascending."""
    rows: Rows = np.flatnonzero(batch.temperature_S > 0)
    if batch.edits is not None:
        rows = np.union1d(rows, batch.edits.rows())
    if batch.penalties is not None:
        rows = np.union1d(rows, batch.penalties.rows_Q)
    if batch.masks is not None:
        rows = np.union1d(rows, batch.masks.rows_G)
    if batch.forced is not None:
        rows = np.union1d(rows, batch.forced.rows_F)
    named = [one.row for one in batch.watermarked] + [call.index for call in batch.device_calls]
    return np.union1d(rows, np.array(named, dtype=np.intp)) if named else rows


def _choose(scores_nV: Tensor, batch: SamplingBatch, rows: Rows) -> Tensor:
    """Return the rows' tokens, and leave in ``scores_nV`` what they were chosen from."""
    drawn = np.flatnonzero(batch.temperature_S[rows] > 0)
    drawn_d = torch.from_numpy(drawn).to(scores_nV.device)
    every = len(drawn) == len(rows)
    if len(drawn):
        kept_dV = _narrow(scores_nV if every else scores_nV[drawn_d], batch, rows[drawn])
        scores_nV[drawn_d] = kept_dV
    if batch.watermarked:
        apply_watermarks(scores_nV, batch.watermarked, rows)
    if not len(drawn):
        return best_tokens(scores_nV)
    scores_dV = scores_nV if every else scores_nV[drawn_d]
    tokens_d = _draw(scores_dV, batch, rows[drawn])
    if every:
        return tokens_d
    tokens_n = best_tokens(scores_nV)
    tokens_n[drawn_d] = tokens_d
    return tokens_n


def _narrow(logits_dV: Tensor, batch: SamplingBatch, rows: Rows) -> Tensor:
    """Apply temperature, then take out tokens, in the order of transformers."""
    temperature_d = torch.from_numpy(batch.temperature_S[rows]).to(logits_dV.device)
    # The maximum goes to zero before the division: a tiny temperature must not reach infinity.
    shifted_dV = logits_dV - logits_dV.amax(dim=-1, keepdim=True)
    scores_dV = shifted_dV / temperature_d[:, None]
    steps: tuple[tuple[Callable[[Tensor, Tensor], Tensor], npt.NDArray[np.generic], float], ...] = (
        (keep_top_k, batch.top_k_S, 0),
        (keep_top_p, batch.top_p_S, 1),
        (keep_min_p, batch.min_p_S, 0),
        (keep_typical, batch.typical_p_S, 1),
    )
    for keep, column_S, off in steps:
        values = column_S[rows]
        limited = np.flatnonzero(values != off)
        if len(limited):
            scores_dV = keep(scores_dV, torch.from_numpy(values).to(scores_dV.device))
    return scores_dV


def _draw(scores_dV: Tensor, batch: SamplingBatch, rows: Rows) -> Tensor:
    numbers = uniforms(batch.seed_S[rows], batch.position_S[rows], batch.sample_index_S[rows])
    uniform_d = torch.from_numpy(numbers).to(scores_dV.device)
    return _invert(scores_dV.softmax(dim=-1), uniform_d)


def _invert(probs_dV: Tensor, uniform_d: Tensor) -> Tensor:
    """Find the token at which the cumulative probability passes the uniform number."""
    # float64: over a large vocabulary float32 sums lose tokens of small probability.
    cumulative_dV = probs_dV.cumsum(dim=-1, dtype=torch.float64)
    total_d1 = cumulative_dV[:, -1:]
    # Just below the total, so that rounding cannot point past the last possible token.
    target_d1 = torch.minimum(uniform_d[:, None] * total_d1, total_d1.nextafter(total_d1 * 0))
    token_d1 = torch.searchsorted(cumulative_dV, target_d1, right=True)
    # Only rows of NaN go past the end, and those are not finite anyway.
    return token_d1[:, 0].clamp_(max=probs_dV.shape[-1] - 1)


def _score(
    logits_SV: Tensor,
    scores_nV: Tensor | None,
    tokens_S: Tensor,
    batch: SamplingBatch,
    rows: Rows,
) -> tuple[Scores, Tensor | None]:
    """Score the tokens by their logits, or by what they were chosen from where that is wanted.

    Named tokens are always scored by their logits.
    """
    num_top = int(batch.num_top_S.max(initial=0))
    scores = score(logits_SV, tokens_S, num_top)
    named_N = None
    if batch.named is not None:
        place = (torch.from_numpy(each) for each in (batch.named.rows_N, batch.named.ids_N))
        rows_N, ids_N = (each.to(logits_SV.device) for each in place)
        named_N = score_named(logits_SV, scores.totals_m, rows_N, ids_N)
    processed = np.flatnonzero(batch.is_processed_S[rows])
    if scores_nV is not None and len(processed):
        local_m = torch.from_numpy(processed).to(logits_SV.device)
        rows_m = torch.from_numpy(rows[processed]).to(logits_SV.device)
        own = score(scores_nV[local_m], tokens_S[rows_m], num_top)
        for whole, part in zip(scores, own, strict=True):
            whole[rows_m] = part
    return scores, named_N
