"""What the engine does step by step: vLLM's tokens per iteration and TGI's families of batches.

Batches are neither filtered nor put together between steps here, so these families stay at zero.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable
from typing import Final, Literal, Protocol

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from graft_runtime.metrics.buckets import (
    BATCH_BUCKETS,
    ITERATION_BUCKETS,
    TGI_DURATION_BUCKETS,
)

Method = Literal["prefill", "decode"]
METHODS: Final[tuple[Method, ...]] = ("prefill", "decode")
_OUTCOMES: Final = ("count", "success", "failure")
_REASONS: Final = ("backpressure", "chunking", "wait_exceeded")


class StepFacts(Protocol):
    """What is known of one step; `graft_runtime.ipc.messages.StepFacts` fits."""

    @property
    def prompt_tokens(self) -> int: ...  # noqa: D102 - named by the metric it feeds
    @property
    def output_tokens(self) -> int: ...  # noqa: D102
    @property
    def seconds(self) -> float: ...  # noqa: D102
    @property
    def host_seconds(self) -> float: ...  # noqa: D102
    @property
    def failed(self) -> bool: ...  # noqa: D102


class StepHistograms(Collector):
    """The families that each step is counted in."""

    def __init__(self, registry: CollectorRegistry, labels: dict[str, str]) -> None:
        """Register them.

        Args:
            registry: Where.
            labels: Of vLLM's family; TGI's have the method alone.
        """
        self._tokens = Histogram(
            "vllm:iteration_tokens_total",
            "Tokens of a step, prompts and outputs together.",
            tuple(labels),
            registry=registry,
            buckets=ITERATION_BUCKETS,
        ).labels(*labels.values())
        self._counts: Tally[tuple[str, Method]] = Tally()
        registry.register(self)

        def seconds(name: str, text: str, methods: Iterable[Method]) -> dict[Method, Histogram]:
            family = Histogram(
                name, text, ("method",), registry=registry, buckets=TGI_DURATION_BUCKETS
            )
            return {method: family.labels(method) for method in methods}

        self._inference = seconds("tgi_batch_inference_duration", "A step, all in all.", METHODS)
        self._forward = seconds(
            "tgi_batch_forward_duration", "A step but for the engine's own loop.", METHODS
        )
        self._decode = seconds("tgi_batch_decode_duration", "The engine's own loop.", METHODS)
        seconds("tgi_batch_filter_duration", "Nothing is filtered: always 0.", METHODS)
        seconds("tgi_batch_concat_duration", "Nothing is put together: always 0.", ("decode",))
        self._next_size = Histogram(
            "tgi_batch_next_size",
            "Requests that begin in one step.",
            registry=registry,
            buckets=BATCH_BUCKETS,
        )

    def observe(self, step: StepFacts) -> None:
        """Count one step."""
        method: Method = "prefill" if step.prompt_tokens else "decode"
        self._counts["count", method] += 1
        self._counts["failure" if step.failed else "success", method] += 1
        if step.failed:
            return
        self._tokens.observe(step.prompt_tokens + step.output_tokens)
        self._inference[method].observe(step.seconds)
        self._forward[method].observe(max(0.0, step.seconds - step.host_seconds))
        self._decode[method].observe(step.host_seconds)

    def begun(self, num_requests: int) -> None:
        """Count the requests that began in one step."""
        self._next_size.observe(num_requests)

    def collect(self) -> Iterable[Metric]:
        """Return TGI's counters, whose names lack the suffix that the library would add."""
        for outcome in _OUTCOMES:
            family = Metric(f"tgi_batch_inference_{outcome}", f"Steps: {outcome}.", "unknown")
            for method in METHODS:
                value = self._counts[outcome, method]
                family.add_sample(family.name, {"method": method}, value)
            yield family
        concat = Metric("tgi_batch_concat", "Nothing is put together: always 0.", "unknown")
        for reason in _REASONS:
            concat.add_sample(concat.name, {"reason": reason}, 0)
        yield concat
