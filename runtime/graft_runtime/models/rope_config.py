"""Reads how a config means its rotary embedding, in today's and in older forms.

Called by `models/arch.py`. Knows no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

from graft_runtime.layers.rope_spec import RopeKind, RopeSpec, rotated_size
from graft_runtime.models.families import Family
from graft_runtime.models.hf_config import ConfigReader

_KINDS = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")
_BY_LENGTH = ("dynamic", "longrope")
_FULL, _LOCAL = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class RopeContext:
    """What a rotary embedding depends on outside its own section."""

    family: Family
    max_positions: int
    head_dim: int
    partial: float = 1.0
    original: int | None = None
    """What the config says outside the section about the original length."""


def read_ropes(
    config: ConfigReader, family: Family, max_positions: int, head_dim: int
) -> tuple[RopeSpec, RopeSpec | None]:
    """Return the rotary embedding, and that of windowed layers if they have their own.

    Args:
        config: The model's config.
        family: Says what absent fields mean.
        max_positions: Longest context of the config, in tokens.
        head_dim: Width of a head, of which a part may be rotated.

    Raises:
        ReasonedError: A kind of scaling, or a field of it, that is not understood or cannot be.
    """
    if config.has("rope_parameters") and config.has("rope_scaling"):
        raise config.unsupported("rope_scaling", config.take("rope_scaling"))
    theta = config.positive_float("rope_theta", family.rope_theta)
    context = _context(config, family, max_positions, head_dim)
    section = config.section("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
    if family.local_rope_theta is None:
        return _read(section, context, theta), None
    local_theta = config.positive_float("rope_local_base_freq", family.local_rope_theta)
    if not config.has("rope_parameters"):
        # The older form stretches the layers that see everything only.
        return _read(section, context, theta), RopeSpec(local_theta)
    full = _read(section.section(_FULL), context, theta)
    nested = section.section(_LOCAL)
    local = _read(nested, context, local_theta)
    if local.kind in _BY_LENGTH:
        raise nested.unsupported("rope_type", local.kind)
    section.finish()
    return full, local


def _context(
    config: ConfigReader, family: Family, max_positions: int, head_dim: int
) -> RopeContext:
    partial, original = 1.0, None
    if family.has_partial_rotary:
        partial = config.positive_float("partial_rotary_factor", 1.0)
    if family.original_max_positions is not None:
        original = config.positive_int(
            "original_max_position_embeddings", family.original_max_positions
        )
    return RopeContext(family, max_positions, head_dim, partial, original)


def _read(rope: ConfigReader, context: RopeContext, theta: float) -> RopeSpec:
    family = context.family
    theta = rope.positive_float("rope_theta", theta)
    name = rope.one_of("rope_type", {*_KINDS, *family.rope_aliases}, rope.take("type", "default"))
    kind = cast("RopeKind", family.rope_aliases.get(name, name))
    share = rope.positive_float("partial_rotary_factor", context.partial)
    if share > 1.0 or (share != 1.0 and not family.has_partial_rotary):
        raise rope.unsupported("partial_rotary_factor", share)
    spec = RopeSpec(theta, kind, rotated_share=share)
    size = rotated_size(spec, context.head_dim)
    if share != 1.0 and (size % 2 or not size):
        raise rope.invalid("partial_rotary_factor", share, "must leave an even part of each head")
    if kind == "linear":
        spec = replace(spec, factor=rope.positive_float("factor"))
    elif kind == "llama3":
        spec = _llama3(rope, spec, context.max_positions)
    elif kind == "yarn":
        spec = _yarn(rope, spec, context.max_positions)
    elif kind == "dynamic":
        spec = _dynamic(rope, spec, context)
    elif kind == "longrope":
        spec = _longrope(rope, spec, context)
    elif context.original is not None:
        rope.ignore("original_max_position_embeddings")
    rope.finish()
    return spec


def _dynamic(rope: ConfigReader, spec: RopeSpec, context: RopeContext) -> RopeSpec:
    if rotated_size(spec, context.head_dim) < 4:
        raise rope.invalid("rope_type", spec.kind, "needs heads of at least 4 rotated features")
    factor = rope.positive_float("factor")
    if factor < 1.0:
        raise rope.invalid("factor", factor, "must be at least 1")
    return replace(spec, factor=factor, original_max_positions=context.max_positions)


def _longrope(rope: ConfigReader, spec: RopeSpec, context: RopeContext) -> RopeSpec:
    """Source: LongRoPE, arXiv:2402.13753; defaults as in transformers."""
    inside = rope.positive_int("original_max_position_embeddings", context.max_positions)
    original = inside if context.original is None else context.original
    factor = rope.positive_float("factor", context.max_positions / original)
    default = 1.0
    if factor > 1.0 and original > 1:
        default = math.sqrt(1 + math.log(factor) / math.log(original))
    count = rotated_size(spec, context.head_dim) // 2
    return replace(
        spec,
        factor=factor,
        original_max_positions=original,
        attention_factor=rope.positive_float("attention_factor", default),
        short_factors=rope.positive_floats("short_factor", count),
        long_factors=rope.positive_floats("long_factor", count),
    )


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
