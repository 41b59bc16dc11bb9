"""``endpoint-load-metrics``: whoever asks for it learns from any answer how busy the pod is.

The form is that of Open Request Cost Aggregation (ORCA), as Triton and vLLM send it; gateways
choose pods by it. `limits` adds it to answers.
"""

from __future__ import annotations

from typing import Final

import msgspec

from graft_runtime.metrics import Metrics

ASKED_BY: Final = b"endpoint-load-metrics-format"
NAME: Final = b"endpoint-load-metrics"


def load_header(headers: list[tuple[bytes, bytes]], metrics: Metrics) -> list[tuple[bytes, bytes]]:
    """Return the header, or nothing where it was not asked for or in no form that there is.

    Args:
        headers: The request's.
        metrics: What the pod knows of its load.
    """
    form = next((value.lower() for name, value in headers if name == ASKED_BY), b"")
    if form == b"json":
        return [(NAME, b"JSON " + msgspec.json.encode({"named_metrics": metrics.load}))]
    if form == b"text":
        pairs = (f"named_metrics.{name}={value}" for name, value in metrics.load.items())
        return [(NAME, f"TEXT {', '.join(pairs)}".encode())]
    return []
