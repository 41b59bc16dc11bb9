"""A linear layer that owns its weight's format. Called by the decoder; knows nothing of adapters.

Shape legend: T tokens, I/O features in/out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class Linear:
    """``x @ weight.T + bias``.

    On a CPU that multiplies bfloat16 natively the weight is reordered once into the blocks oneDNN
    computes with; otherwise it stays as it came.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self._bias_O = bias_O
        self._is_packed = _can_pack(weight_OI)
        self._weight = _pack(weight_OI) if self._is_packed else weight_OI

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Multiply each row."""
        if self._is_packed:
            return _packed_linear(x_TI, self._weight, self._bias_O)
        return functional.linear(x_TI, self._weight, self._bias_O)


# torch has no public name for these; torch.compile's own CPU backend emits the same calls.
_bf16_is_native = torch.ops.mkldnn._is_mkldnn_bf16_supported  # noqa: SLF001
_reorder = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001
_linear_pointwise = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001


def multiplies_natively(like: Tensor) -> bool:
    """Tell whether products of small matrices in a tensor's dtype, on its device, are fast."""
    return like.dtype == torch.float32 or _can_pack(like)


def _can_pack(weight_OI: Tensor) -> bool:
    return (
        weight_OI.device.type == "cpu"
        and weight_OI.dtype == torch.bfloat16
        and bool(torch._C._has_mkldnn)  # noqa: SLF001 - what torch.backends.mkldnn returns, typed
        and bool(_bf16_is_native())
    )


def _pack(weight_OI: Tensor) -> Tensor:
    packed: Tensor = _reorder(weight_OI)
    return packed


def _packed_linear(x_TI: Tensor, packed: Tensor, bias_O: Tensor | None) -> Tensor:
    out_TO: Tensor = _linear_pointwise(x_TI, packed, bias_O, "none", [], "")
    return out_TO
