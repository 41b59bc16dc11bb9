"""Reads how a config means its rotary embedding, in today's and in older forms.

Called by `models/arch.py`. Knows no torch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

from graft_runtime.layers.rope_spec import RopeKind, RopeSpec
from graft_runtime.models.families import Family
from graft_runtime.models.hf_config import ConfigReader

_KINDS = ("default", "linear", "llama3", "yarn")
_FULL, _LOCAL = "full_attention", "sliding_attention"


def read_ropes(
    config: ConfigReader, family: Family, max_positions: int
) -> tuple[RopeSpec, RopeSpec | None]:
    """Return the rotary embedding, and that of windowed layers if they have their own."""
    if config.has("rope_parameters") and config.has("rope_scaling"):
        raise config.unsupported("rope_scaling", config.take("rope_scaling"))
    theta = config.positive_float("rope_theta", family.rope_theta)
    section = config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    if family.local_rope_theta is None:
        return _read(section, theta, max_positions), None
    local_theta = config.positive_float("rope_local_base_freq", family.local_rope_theta)
    if not config.has("rope_parameters"):
        # The older form stretches the layers that see everything only.
        return _read(section, theta, max_positions), RopeSpec(local_theta)
    full = _read(section.section(_FULL), theta, max_positions)
    local = _read(section.section(_LOCAL), local_theta, max_positions)
    section.finish()
    return full, local


def _read(rope: ConfigReader, theta: float, max_positions: int) -> RopeSpec:
    theta = rope.positive_float("rope_theta", theta)
    legacy_kind = rope.take("type", "default")
    kind = cast("RopeKind", rope.one_of("rope_type", _KINDS, legacy_kind))
    if rope.positive_float("partial_rotary_factor", 1.0) != 1.0:
        raise rope.unsupported("partial_rotary_factor", rope.take("partial_rotary_factor"))
    spec = RopeSpec(theta, kind)
    if kind == "linear":
        spec = replace(spec, factor=rope.positive_float("factor"))
    elif kind == "llama3":
        spec = _llama3(rope, spec, max_positions)
    elif kind == "yarn":
        spec = _yarn(rope, spec, max_positions)
    rope.finish()
    return spec


def _llama3(rope: ConfigReader, spec: RopeSpec, max_positions: int) -> RopeSpec:
    low, high = rope.positive_float("low_freq_factor"), rope.positive_float("high_freq_factor")
    if high <= low:
        raise rope.invalid("high_freq_factor", high, "must exceed low_freq_factor")
    return replace(
        spec,
        factor=rope.positive_float("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=rope.positive_int("original_max_position_embeddings", max_positions),
    )


def _yarn(rope: ConfigReader, spec: RopeSpec, max_positions: int) -> RopeSpec:
    original = rope.positive_int("original_max_position_embeddings", max_positions)
    factor = rope.positive_float("factor", max_positions / original)
    return replace(
        spec,
        factor=factor,
        original_max_positions=original,
        attention_factor=rope.positive_float("attention_factor", _yarn_attention(rope, factor)),
        beta_fast=rope.positive_float("beta_fast", 32.0),
        beta_slow=rope.positive_float("beta_slow", 1.0),
        truncate=rope.flag("truncate", default=True),
    )


def _yarn_attention(rope: ConfigReader, factor: float) -> float:
    """Return the default factor on cosines and sines. Source: YaRN, arXiv:2309.00071 eq. 22."""

    def temperature(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    scales = [
        rope.positive_float(name) if rope.has(name) else None
        for name in ("mscale", "mscale_all_dim")
    ]
    if scales[0] is not None and scales[1] is not None:
        return temperature(scales[0]) / temperature(scales[1])
    return temperature(1.0)
