"""Root mean square normalisation. Called by the decoder before each block and before the logits.

Shape legend: T tokens, H hidden size.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


class RmsNorm:
    """``x / rms(x) * weight``, computed in float32 whatever the dtype."""

    def __init__(self, weight_H: Tensor, eps: float) -> None:
        self._weight_H = weight_H
        self._eps = eps

    def __call__(self, x_TH: Tensor) -> Tensor:
        """Normalise each row."""
        return functional.rms_norm(x_TH, self._weight_H.shape, self._weight_H, self._eps)
