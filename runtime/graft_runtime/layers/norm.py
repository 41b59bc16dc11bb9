"""Root mean square normalisation. Called by the decoder around its blocks and before the logits.

Shape legend: R rows (of any axes), H width of what is normalised, a whole row or a head.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


class RmsNorm:
    """``x / rms(x) * weight``, computed in float32 whatever the dtype.

    A weight in float32 beside inputs in a smaller dtype is multiplied before the result is rounded.
    """

    def __init__(self, weight_H: Tensor, eps: float) -> None:
        self._weight_H = weight_H
        self._eps = eps

    def __call__(self, x_RH: Tensor) -> Tensor:
        """Normalise the last axis."""
        weight_H = self._weight_H
        if x_RH.dtype == weight_H.dtype:
            return functional.rms_norm(x_RH, weight_H.shape, weight_H, self._eps)
        normed_RH = functional.rms_norm(x_RH.float(), weight_H.shape, weight_H, self._eps)
        return normed_RH.to(x_RH.dtype)
