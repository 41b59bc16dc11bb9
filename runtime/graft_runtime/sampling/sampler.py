"""From logits to tokens: greedy, or one uniform per row through the inverse of its distribution.

Each row's token depends on its own logits and parameters alone, whatever batch it came in.

Shape legend: S rows, V vocabulary, n rows that are drawn (not greedy).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft_runtime.sampling.philox import uniforms
from graft_runtime.sampling.processors import keep_top_k, keep_top_p

NOT_FINITE = -1
"""Stands in for the token of a row whose logits hold NaN or infinity."""


@dataclass(frozen=True)
class SamplingBatch:
    """Parameters of each row, as arrays on the host."""

    temperature_S: npt.NDArray[np.float32]
    """0 is greedy."""
    top_k_S: npt.NDArray[np.int32]
    """0 is off."""
    top_p_S: npt.NDArray[np.float32]
    """1 is off."""
    seed_S: npt.NDArray[np.uint64]
    position_S: npt.NDArray[np.int64]
    """Index of the token in its request's output."""
    logprobs: bool
    """Whether anyone wants log probabilities."""


class Sampled(NamedTuple):
    """What `sample` returns, on the device of the logits."""

    token_ids_S: Tensor
    """int64; `NOT_FINITE` where a row's logits are broken."""
    logprobs_S: Tensor | None
    """float32 log-softmax of the unprocessed logits at the token; NaN where there is none."""


def sample(logits_SV: Tensor, batch: SamplingBatch) -> Sampled:
    """Choose a token for each row. Raises nothing: a broken row must not fail its neighbours."""
    is_finite_S = torch.isfinite(logits_SV).all(dim=-1)
    tokens_S = logits_SV.argmax(dim=-1)
    drawn = np.flatnonzero(batch.temperature_S > 0)
    if len(drawn):
        rows_n = torch.from_numpy(drawn).to(logits_SV.device)
        tokens_S[rows_n] = _draw(logits_SV[rows_n], batch, drawn)
    logprobs_S = _logprobs(logits_SV, tokens_S, is_finite_S) if batch.logprobs else None
    return Sampled(tokens_S.masked_fill_(~is_finite_S, NOT_FINITE), logprobs_S)


def _draw(logits_nV: Tensor, batch: SamplingBatch, rows: npt.NDArray[np.intp]) -> Tensor:
    device = logits_nV.device
    temperature_n = torch.from_numpy(batch.temperature_S[rows]).to(device)
    # The maximum goes to zero before the division: a tiny temperature must not reach infinity.
    shifted_nV = logits_nV - logits_nV.amax(dim=-1, keepdim=True)
    scores_nV = shifted_nV / temperature_n[:, None]
    top_k, top_p = batch.top_k_S[rows], batch.top_p_S[rows]
    if (top_k > 0).any():
        scores_nV = keep_top_k(scores_nV, torch.from_numpy(top_k).to(device))
    if (top_p < 1).any():
        scores_nV = keep_top_p(scores_nV, torch.from_numpy(top_p).to(device))
    uniform_n = torch.from_numpy(uniforms(batch.seed_S[rows], batch.position_S[rows]))
    return _invert(scores_nV.softmax(dim=-1), uniform_n.to(device))


def _invert(probs_nV: Tensor, uniform_n: Tensor) -> Tensor:
    """Find the token at which the cumulative probability passes the uniform number."""
    # float64: over a large vocabulary float32 sums lose tokens of small probability.
    cumulative_nV = probs_nV.cumsum(dim=-1, dtype=torch.float64)
    total_n1 = cumulative_nV[:, -1:]
    # Just below the total, so that rounding cannot point past the last possible token.
    target_n1 = torch.minimum(uniform_n[:, None] * total_n1, total_n1.nextafter(total_n1 * 0))
    token_n1 = torch.searchsorted(cumulative_nV, target_n1, right=True)
    # Only rows of NaN go past the end, and those are not finite anyway.
    return token_n1[:, 0].clamp_(max=probs_nV.shape[-1] - 1)


def _logprobs(logits_SV: Tensor, tokens_S: Tensor, is_finite_S: Tensor) -> Tensor:
    chosen_S = logits_SV.gather(-1, tokens_S[:, None])[:, 0]
    logprobs_S = chosen_S - logits_SV.logsumexp(dim=-1)
    return logprobs_S.masked_fill_(~is_finite_S, float("nan"))
