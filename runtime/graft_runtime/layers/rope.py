"""Rotary position embedding: angles once per step, applied to queries and keys of each layer.

Shape legend: T tokens, N heads (queries and keys together), D head size, P = D / 2 frequencies.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from graft_runtime.layers.rope_spec import RopeSpec


class Rotation(NamedTuple):
    """The angles of one step's tokens, ready to be multiplied with heads."""

    cos_T1D: Tensor
    sin_T1D: Tensor
    """First half negated: ``rotate_half`` becomes a roll."""


class Rope:
    """Turns positions into rotations."""

    def __init__(
        self, spec: RopeSpec, head_dim: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._frequencies_P = frequencies(spec, head_dim).to(device)
        self._attention_factor = spec.attention_factor
        self._dtype = dtype

    def rotation(self, positions_T: Tensor) -> Rotation:
        """Compute the angles in float32, then round them to the model's dtype."""
        angles_TP = positions_T[:, None].float() * self._frequencies_P
        cos_TP, sin_TP = angles_TP.cos(), angles_TP.sin()
        if self._attention_factor != 1.0:
            cos_TP, sin_TP = cos_TP * self._attention_factor, sin_TP * self._attention_factor
        cos_TD = torch.cat((cos_TP, cos_TP), dim=-1).to(self._dtype)
        sin_TD = torch.cat((-sin_TP, sin_TP), dim=-1).to(self._dtype)
        return Rotation(cos_TD[:, None], sin_TD[:, None])


def rotate(x_TND: Tensor, rotation: Rotation) -> Tensor:
    """Rotate every head by its token's angles; pairs are (i, i + D / 2) as in Hugging Face."""
    half = x_TND.shape[-1] // 2
    rolled_TND = x_TND.roll(half, dims=-1)
    return (x_TND * rotation.cos_T1D).addcmul_(rolled_TND, rotation.sin_T1D)


def frequencies(spec: RopeSpec, head_dim: int) -> Tensor:
    """Return the P angular frequencies, float32, stretched as the spec says."""
    exponents_P = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    base_P = 1.0 / (spec.theta**exponents_P)
    if spec.kind == "linear":
        return base_P / spec.factor
    if spec.kind == "llama3":
        return _llama3(spec, base_P)
    if spec.kind == "yarn":
        return _yarn(spec, base_P)
    return base_P


def _llama3(spec: RopeSpec, base_P: Tensor) -> Tensor:
    """Keep short waves, stretch long ones by the factor, blend between.

    Source: Llama 3.1's published code; transformers calls it ``rope_type: llama3``.
    """
    wavelengths_P = 2 * math.pi / base_P
    turns_P = spec.original_max_positions / wavelengths_P
    span = spec.high_freq_factor - spec.low_freq_factor
    share_P = ((turns_P - spec.low_freq_factor) / span).clamp(0.0, 1.0)
    return (1 - share_P) * base_P / spec.factor + share_P * base_P


def _yarn(spec: RopeSpec, base_P: Tensor) -> Tensor:
    """Keep frequencies that turn often over the original length, stretch those that hardly turn.

    Source: YaRN, arXiv:2309.00071 section 3.2; bounds and rounding as in transformers.
    """
    dim = 2 * len(base_P)

    def index_of(turns: float) -> float:
        span = spec.original_max_positions / (turns * 2 * math.pi)
        return dim * math.log(span) / (2 * math.log(spec.theta))

    low, high = index_of(spec.beta_fast), index_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    stretched_P = ((torch.arange(len(base_P)).float() - low) / (high - low)).clamp(0.0, 1.0)
    return base_P / spec.factor * stretched_P + base_P * (1 - stretched_P)
