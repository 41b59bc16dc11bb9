"""Inferences per model, as KServe's and Triton's clients ask for them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from graft_runtime.metrics.requests import Course


@dataclass
class _Sum:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float | None) -> None:
        if seconds is not None:
            self.count += 1
            self.seconds += seconds

    def to_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


@dataclass
class _Model:
    last_ms: int = 0
    num_steps: int = 0
    success: _Sum = field(default_factory=_Sum)
    fail: _Sum = field(default_factory=_Sum)
    queue: _Sum = field(default_factory=_Sum)
    infer: _Sum = field(default_factory=_Sum)


class Statistics:
    """Counts by the name that was asked for. Only names that something served get in."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}

    def record(self, model: str, course: Course, *, is_success: bool) -> None:
        """Count one generation that ended, on whatever surface."""
        entry = self._models.setdefault(model, _Model())
        entry.last_ms = time.time_ns() // 1_000_000
        entry.num_steps += course.num_output
        (entry.success if is_success else entry.fail).add(course.total)
        entry.queue.add(course.queue)
        entry.infer.add(course.inference)

    def report(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the counts of some models in the protocol's form."""
        return {"model_stats": [_entry(name, self._models.get(name, _Model())) for name in names]}


def _entry(name: str, model: _Model) -> dict[str, Any]:
    nothing = _Sum().to_json()
    return {
        "name": name,
        "version": "1",
        "last_inference": model.last_ms,
        "inference_count": model.success.count,
        "execution_count": model.num_steps,
        "inference_stats": {
            "success": model.success.to_json(),
            "fail": model.fail.to_json(),
            "queue": model.queue.to_json(),
            "compute_input": nothing,
            "compute_infer": model.infer.to_json(),
            "compute_output": nothing,
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
    }
