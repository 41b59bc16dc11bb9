"""Change single tokens' scores: biases, bans, allowed sets, forced tokens, for all rows at once.

The order is vLLM's: what is allowed, biases, then penalties (`graft_runtime.sampling.counts`).

Shape legend: S rows of the step, n rows that are processed, V vocabulary, E entries of any kind, B
biased and A allowed tokens of all rows, F rows whose token is settled.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft_runtime.sampling.batch import Edits, ForcedTokens


def apply_edits(scores_nV: Tensor, edits: Edits, rows: npt.NDArray[np.intp]) -> None:
    """Change scores in place.

    Args:
        scores_nV: float32 logits of some rows.
        edits: Of the whole step.
        rows: Which row of the step each of the n is, ascending; all edited ones are among them.
    """
    if len(edits.allowed_rows_A):
        _allow(scores_nV, *_place(edits.allowed_rows_A, edits.allowed_ids_A, rows, scores_nV))
    if len(edits.bias_rows_B):
        place = _place(edits.bias_rows_B, edits.bias_ids_B, rows, scores_nV)
        bias_B = torch.from_numpy(edits.bias_B).to(scores_nV)
        scores_nV.index_put_(place, bias_B, accumulate=True)


def force_tokens(scores_nV: Tensor, forced: ForcedTokens, rows: npt.NDArray[np.intp]) -> None:
    """Leave rows nothing but their settled token, in place, whatever was done to them before.

    Args:
        scores_nV: float32 logits of some rows.
        forced: Of the whole step.
        rows: Which row of the step each of the n is, ascending; all forced ones are among them.
    """
    rows_F, ids_F = _place(forced.rows_F, forced.ids_F, rows, scores_nV)
    scores_nV[rows_F] = float("-inf")
    scores_nV[rows_F, ids_F] = 0.0


def _place(
    rows_E: npt.NDArray[np.int64],
    ids_E: npt.NDArray[np.int64],
    rows: npt.NDArray[np.intp],
    like: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return where entries lie among the n rows."""
    local_E = np.searchsorted(rows, rows_E)
    return torch.from_numpy(local_E).to(like.device), torch.from_numpy(ids_E).to(like.device)


def _allow(scores_nV: Tensor, rows_A: Tensor, ids_A: Tensor) -> None:
    is_out_nV = torch.zeros_like(scores_nV, dtype=torch.bool)
    is_out_nV[rows_A] = True
    is_out_nV[rows_A, ids_A] = False
    scores_nV.masked_fill_(is_out_nV, float("-inf"))
