"""Bounds of histograms: those that dashboards for vLLM and TGI expect."""

from __future__ import annotations

from typing import Final

FIRST_TOKEN_BUCKETS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
"""Seconds; the buckets that dashboards for vLLM expect."""
INTER_TOKEN_BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
"""Seconds; vLLM's, and three finer ones for small models."""
LATENCY_BUCKETS: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
"""Seconds; vLLM's."""
TOKEN_BUCKETS: Final = (
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0),
    *(10_000.0, 20_000.0, 50_000.0, 100_000.0, 200_000.0),
)
"""Tokens; vLLM's."""
TGI_DURATION_BUCKETS: Final = tuple(0.00015 * 1.5**power for power in range(35))
"""Seconds; TGI's."""
LOAD_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Seconds; the promise is one second, five at worst."""
HOST_BUCKETS: Final = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.00125, 0.0015, 0.002, 0.0025, 0.003),
    *(0.004, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1),
)
"""Seconds; the promise is 1.5 milliseconds with 256 requests."""
ITERATION_BUCKETS: Final = (1.0, *(float(2**power) for power in range(3, 15)))
"""Tokens of a step; vLLM's."""
COUNT_BUCKETS: Final = (1.0, 2.0, 5.0, 10.0, 20.0)
"""Choices of a request; vLLM's."""
PREEMPTION_BUCKETS: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
"""Times that one request gave way."""
BATCH_BUCKETS: Final = tuple(float(size) for size in range(1, 1025))
"""Requests that begin together; TGI's."""
HTTP_BUCKETS: Final = (0.1, 0.5, 1.0)
"""Seconds, by route; those of vLLM's instrumentation."""
HTTP_FINE_BUCKETS: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0),
    *(7.5, 10.0, 30.0, 60.0),
)
"""Seconds, of all routes together; likewise."""


def hundredths(most: int) -> tuple[float, ...]:
    """Return TGI's buckets for lengths: a hundred steps up to the longest.

    Args:
        most: Tokens.
    """
    return tuple(most * (step + 1) / 100 for step in range(100))
