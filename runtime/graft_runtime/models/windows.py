"""Reads which layers of a model see a window of the context only. Called by `models/arch.py`."""

from __future__ import annotations

from graft_runtime.models.families import Family
from graft_runtime.models.hf_config import ConfigReader

_FULL, _SLIDING = "full_attention", "sliding_attention"

_DEFAULT_FIRST_LAYER = 28
"""Qwen's default for ``max_window_layers``."""


def read_windows(config: ConfigReader, family: Family, num_layers: int) -> tuple[int | None, ...]:
    """Return for each layer how many tokens a token sees, itself included; None is all.

    Raises:
        ReasonedError: InvalidConfig if layers have a window of no size.
    """
    if family.window_rule == "none":
        return (None,) * num_layers
    if family.window_rule == "off":
        _require_off(config, num_layers)
        return (None,) * num_layers
    is_on = family.window_rule != "from_layer" or config.flag("use_sliding_window", default=False)
    if not is_on:
        config.ignore("sliding_window")
    window = _window(config, family) if is_on else None
    kinds = _layer_kinds(config, family, num_layers, has_window=window is not None)
    if window is None and _SLIDING in kinds:
        raise config.invalid("sliding_window", None, f"must be set: layer_types has {_SLIDING}")
    return tuple(window if kind == _SLIDING else None for kind in kinds)


def _require_off(config: ConfigReader, num_layers: int) -> None:
    """Refuse windows that are switched on; what is said about them while they are off is void."""
    config.require({"use_sliding_window": False})
    config.ignore("sliding_window")
    config.ignore("max_window_layers")
    config.require({"layer_types": [_FULL] * num_layers})


def _window(config: ConfigReader, family: Family) -> int | None:
    if config.is_explicit_null("sliding_window"):
        return None
    if family.window is None and not config.has("sliding_window"):
        return None
    return config.positive_int("sliding_window", family.window)


def _layer_kinds(
    config: ConfigReader, family: Family, num_layers: int, *, has_window: bool
) -> list[str]:
    if family.window_rule == "all":
        return [_SLIDING if has_window else _FULL] * num_layers
    first, every = 0, family.window_pattern
    if family.window_rule == "from_layer":
        first = config.count("max_window_layers", _DEFAULT_FIRST_LAYER)
    elif family.has_pattern_field:
        every = config.positive_int("sliding_window_pattern", every)
    kinds = config.take("layer_types")
    if kinds is None:
        if family.window_rule == "from_layer":
            return [_SLIDING if has_window and i >= first else _FULL for i in range(num_layers)]
        return [_SLIDING if (i + 1) % every else _FULL for i in range(num_layers)]
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise config.invalid("layer_types", kinds, f"must name the kind of {num_layers} layers")
    for kind in kinds:
        if kind not in (_FULL, _SLIDING):
            raise config.unsupported("layer_types", kind)
    return kinds
