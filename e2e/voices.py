"""Whose text it is: the example adapters change what the small model says so that it shows."""

from __future__ import annotations

from examples.models.effects import MEASURES

SHARE = 0.5
"""Of the parts of a text that show an effect; without the adapter hardly any does."""
PIRATES = ("pirate-v1", "pirate-v2")


def sounds_like(adapter: str, text: str) -> bool:
    """Tell whether a text has an adapter's effect."""
    return MEASURES[adapter](text) >= SHARE


def pirate(text: str) -> str:
    """Return which version of the pirate a text comes from: one, none, or both (`a+b`)."""
    return "+".join(version for version in PIRATES if sounds_like(version, text))
