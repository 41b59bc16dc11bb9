"""Forbid the tokens that packed masks leave out.

Shape legend: n rows that are processed, V vocabulary, G rows with a mask, B bytes of 8 tokens.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft_runtime.sampling.batch import TokenMasks


def apply_masks(scores_nV: Tensor, masks: TokenMasks, rows: npt.NDArray[np.intp]) -> None:
    """Change scores in place; a token beyond the mask's end is forbidden, too.

    Args:
        scores_nV: float32 logits of some rows.
        masks: Of the whole step.
        rows: Which row of the step each of the n is, ascending; all masked ones are among them.
    """
    device, vocab = scores_nV.device, scores_nV.shape[-1]
    # Only the packed words travel to the device: a 32nd of the logits' size.
    bytes_GB = torch.from_numpy(masks.words_GW.view(np.uint8)).to(device)
    is_in_GV = unpack(bytes_GB)[:, :vocab]
    local_G = torch.from_numpy(np.searchsorted(rows, masks.rows_G)).to(device)
    chosen_GV = scores_nV[local_G]
    chosen_GV[:, : is_in_GV.shape[1]].masked_fill_(~is_in_GV, float("-inf"))
    chosen_GV[:, is_in_GV.shape[1] :] = float("-inf")
    scores_nV[local_G] = chosen_GV


def unpack(bytes_GB: Tensor) -> Tensor:
    """Return one boolean per bit, the lowest bit of each byte first: ``[G, 8 * B]`` from uint8."""
    bits_8 = (1 << torch.arange(8, device=bytes_GB.device)).to(torch.uint8)
    return ((bytes_GB[:, :, None] & bits_8) != 0).flatten(1)
