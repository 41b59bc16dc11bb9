"""Rotary position embedding: angles once per step, applied to queries and keys of each layer.

Shape legend: T tokens, N heads (queries and keys together), D head size, E the part of it
that is rotated, P = E / 2 frequencies, R requests.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.layers.rope_spec import RopeSpec, rotated_size


class Rotation(NamedTuple):
    """The angles of one step's tokens, ready to be multiplied with heads."""

    cos_T1E: Tensor
    sin_T1E: Tensor
    """First half negated: ``rotate_half`` becomes a roll."""


class Rope:
    """Turns positions into rotations."""

    def __init__(
        self, spec: RopeSpec, head_dim: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._spec = spec
        self._head_dim = head_dim
        self._frequencies_P = frequencies(spec, head_dim).to(device)
        self._dtype = dtype

    def step_rotation(self, batch: ForwardBatch) -> Rotation:
        """Compute the angles of a step, each request with the variant it was given."""
        if not any(batch.rope_variants):
            return self.rotation(batch.positions_T)
        device = self._frequencies_P.device
        variants = batch.rope_variants
        rows_RP = torch.stack([frequencies(self._spec, self._head_dim, one) for one in variants])
        counts_R = torch.tensor(batch.query_starts).diff()
        frequencies_TP = rows_RP.repeat_interleave(counts_R, dim=0).to(device)
        return self.rotation(batch.positions_T, frequencies_TP)

    def rotation(self, positions_T: Tensor, frequencies_TP: Tensor | None = None) -> Rotation:
        """Compute the angles in float32, then round them to the model's dtype.

        Args:
            positions_T: int64 places of the tokens in their requests.
            frequencies_TP: float32, where they differ from token to token.
        """
        frequencies = self._frequencies_P if frequencies_TP is None else frequencies_TP
        angles_TP = positions_T[:, None].float() * frequencies
        cos_TP, sin_TP = angles_TP.cos(), angles_TP.sin()
        factor = self._spec.attention_factor
        if factor != 1.0:
            cos_TP, sin_TP = cos_TP * factor, sin_TP * factor
        cos_TE = torch.cat((cos_TP, cos_TP), dim=-1).to(self._dtype)
        sin_TE = torch.cat((-sin_TP, sin_TP), dim=-1).to(self._dtype)
        return Rotation(cos_TE[:, None], sin_TE[:, None])


def rotate(x_TND: Tensor, rotation: Rotation) -> Tensor:
    """Rotate every head by its token's angles; pairs are (i, i + E / 2) as in Hugging Face.

    Args:
        x_TND: Heads, in the model's dtype. What is behind their first E features stays.
        rotation: From `Rope.step_rotation`, of the same T tokens.

    Returns:
        ``[T, N, D]``, a new tensor of the same dtype.

    Source: RoFormer, arXiv:2104.09864.
    """
    rotated = rotation.cos_T1E.shape[-1]
    if rotated == x_TND.shape[-1]:
        return _rotate(x_TND, rotation)
    turned_TNE = _rotate(x_TND[..., :rotated], rotation)
    return torch.cat((turned_TNE, x_TND[..., rotated:]), dim=-1)


def _rotate(x_TNE: Tensor, rotation: Rotation) -> Tensor:
    half = x_TNE.shape[-1] // 2
    rolled_TNE = x_TNE.roll(half, dims=-1)
    return (x_TNE * rotation.cos_T1E).addcmul_(rolled_TNE, rotation.sin_T1E)


@lru_cache(maxsize=512)
def frequencies(spec: RopeSpec, head_dim: int, variant: int = 0) -> Tensor:
    """Return the angular frequencies, stretched as the spec says. The tensor is not to be changed.

    Args:
        spec: The rotary embedding.
        head_dim: D.
        variant: See `RopeSpec.variant`.

    Returns:
        ``[P]`` float32 on the CPU, radians per position.

    Source: RoFormer, arXiv:2104.09864; dynamic: transformers' ``rope_type: dynamic``; longrope:
    arXiv:2402.13753; the others are named where they are computed.
    """
    rotated = rotated_size(spec, head_dim)
    exponents_P = torch.arange(0, rotated, 2, dtype=torch.int64).float() / rotated
    theta = spec.theta
    if spec.kind == "dynamic" and variant:
        growth = spec.factor * variant / spec.original_max_positions - (spec.factor - 1)
        theta = theta * growth ** (rotated / (rotated - 2))
    base_P = 1.0 / (theta**exponents_P)
    if spec.kind == "linear":
        return base_P / spec.factor
    if spec.kind == "llama3":
        return _llama3(spec, base_P)
    if spec.kind == "yarn":
        return _yarn(spec, base_P)
    if spec.kind == "longrope":
        return base_P / torch.tensor(spec.long_factors if variant else spec.short_factors)
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
