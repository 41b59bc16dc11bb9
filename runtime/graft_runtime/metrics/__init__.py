"""The pod's Prometheus metrics. `page` holds all of them; the rest are its parts."""

from graft_runtime.metrics.collectors import TgiFailure
from graft_runtime.metrics.page import (
    CONTENT_TYPE,
    AbortReason,
    EngineCounters,
    FinishedReason,
    Metrics,
)

__all__ = [
    "CONTENT_TYPE",
    "AbortReason",
    "EngineCounters",
    "FinishedReason",
    "Metrics",
    "TgiFailure",
]
