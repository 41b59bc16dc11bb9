"""Percentiles, and how a series is printed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def show(what: str, seconds: Sequence[float]) -> dict[str, Any]:
    """Print and return the figures of one series."""
    figures = {
        "count": len(seconds),
        "p50": round(statistics.median(seconds), 3),
        "p99": round(percentile(seconds, 0.99), 3),
        "min": round(min(seconds), 3),
        "max": round(max(seconds), 3),
    }
    print(f"{what}: {figures}", flush=True)
    return figures
