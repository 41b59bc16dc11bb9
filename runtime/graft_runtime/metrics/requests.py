"""How requests went: vLLM's and TGI's histograms of times and lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, Summary

from graft_runtime.metrics.buckets import (
    COUNT_BUCKETS,
    INTER_TOKEN_BUCKETS,
    LATENCY_BUCKETS,
    PREEMPTION_BUCKETS,
    TGI_DURATION_BUCKETS,
    TOKEN_BUCKETS,
    hundredths,
)

DEFAULT_LENGTH: Final = 4096
"""Tokens that lengths are counted up to before the model has said its own."""

_VLLM_SECONDS: Final = {
    "request_queue_time_seconds": "From arrival in the queue to the first computation.",
    "request_prefill_time_seconds": "From the first computation to the first token.",
    "request_decode_time_seconds": "From the first token to the end.",
    "request_inference_time_seconds": "From the first computation to the end.",
}
_VLLM_TOKENS: Final = {
    "request_prompt_tokens": "Length of prompts.",
    "request_generation_tokens": "Length of outputs.",
    "request_params_max_tokens": "Longest output that was asked for.",
}
_TGI_SECONDS: Final = {
    "tgi_request_duration": "From arrival to the end.",
    "tgi_request_validation_duration": "From arrival to the queue.",
    "tgi_request_queue_duration": "In the queue.",
    "tgi_request_inference_duration": "From the first computation to the end.",
    "tgi_request_mean_time_per_token_duration": "Of the inference, per token.",
}
_TGI_TOKENS: Final = {
    "tgi_request_input_length": "Length of prompts.",
    "tgi_request_generated_tokens": "Length of outputs.",
    "tgi_request_max_new_tokens": "Longest output that was asked for.",
}


@dataclass(frozen=True)
class Course:
    """How one generation went; times in seconds, None where it did not come so far."""

    total: float
    """From arrival to the end."""
    prepare: float = 0.0
    """From arrival to the queue: reading, checking, tokenising."""
    queue: float | None = None
    """From there to the first computation."""
    prefill: float | None = None
    """From there to the first token."""
    decode: float | None = None
    """From there to the end."""
    num_prompt: int = 0
    num_output: int = 0
    max_output: int = 0
    """Longest output that was asked for."""
    num_preemptions: int = 0
    """How often it had to give way to others."""

    @property
    def inference(self) -> float | None:
        """Seconds from the first computation to the end."""
        if self.prefill is None:
            return None
        return self.prefill + (self.decode or 0.0)


class RequestHistograms:
    """The histograms that one finished request is counted in."""

    def __init__(self, registry: CollectorRegistry, labels: dict[str, str]) -> None:
        """Register them.

        Args:
            registry: Where.
            labels: Of vLLM's families; TGI's have none.
        """
        names, values = tuple(labels), tuple(labels.values())

        def vllm(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            histogram = Histogram(f"vllm:{name}", text, names, registry=registry, buckets=buckets)
            return histogram.labels(*values)

        def tgi(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, registry=registry, buckets=buckets)

        seconds, tokens = LATENCY_BUCKETS, TOKEN_BUCKETS
        self._vllm = {name: vllm(name, text, seconds) for name, text in _VLLM_SECONDS.items()}
        self._vllm |= {name: vllm(name, text, tokens) for name, text in _VLLM_TOKENS.items()}
        self._per_token = vllm(
            "request_time_per_output_token_seconds",
            "Of a request's tokens after the first, on average.",
            INTER_TOKEN_BUCKETS,
        )
        self._tgi = {
            name: tgi(name, text, TGI_DURATION_BUCKETS) for name, text in _TGI_SECONDS.items()
        }
        self._registry = registry
        self._lengths = self._register_lengths(DEFAULT_LENGTH)
        self._choices = vllm("request_params_n", "Choices that were asked for.", COUNT_BUCKETS)
        self._longest = vllm(
            "request_max_num_generation_tokens", "Of a request's longest choice.", tokens
        )
        self._preemptions = vllm(
            "request_num_preemptions", "How often requests had to give way.", PREEMPTION_BUCKETS
        )
        self._skipped = Summary(
            "tgi_request_skipped_tokens", "Nothing is guessed ahead: always 0.", registry=registry
        )

    def fit(self, max_model_len: int) -> None:
        """Take TGI's buckets for lengths from the longest sequence; counts begin anew."""
        for histogram in self._lengths.values():
            self._registry.unregister(histogram)
        self._lengths = self._register_lengths(max_model_len)

    def _register_lengths(self, longest: int) -> dict[str, Histogram]:
        buckets = hundredths(longest)
        return {
            name: Histogram(name, text, registry=self._registry, buckets=buckets)
            for name, text in _TGI_TOKENS.items()
        }

    def choices(self, count: int, longest: int) -> None:
        """Count one request with all its choices.

        Args:
            count: How many there were.
            longest: Tokens of the longest.
        """
        self._choices.observe(count)
        self._longest.observe(longest)

    def observe(self, course: Course) -> None:
        """Count one request."""
        inference = course.inference
        per_token = None
        if inference is not None and course.num_output:
            per_token = inference / course.num_output
        values = {
            "request_queue_time_seconds": course.queue,
            "request_prefill_time_seconds": course.prefill,
            "request_decode_time_seconds": course.decode,
            "request_inference_time_seconds": inference,
            "request_prompt_tokens": course.num_prompt,
            "request_generation_tokens": course.num_output,
            "request_params_max_tokens": course.max_output,
        }
        for name, value in values.items():
            if value is not None:
                self._vllm[name].observe(value)
        self._preemptions.observe(course.num_preemptions)
        self._skipped.observe(0)
        if course.decode is not None and course.num_output > 1:
            self._per_token.observe(course.decode / (course.num_output - 1))
        values = {
            "tgi_request_duration": course.total,
            "tgi_request_validation_duration": course.prepare,
            "tgi_request_queue_duration": course.queue,
            "tgi_request_inference_duration": inference,
            "tgi_request_mean_time_per_token_duration": per_token,
        }
        for name, value in values.items():
            if value is not None:
                self._tgi[name].observe(value)
        self._lengths["tgi_request_input_length"].observe(course.num_prompt)
        self._lengths["tgi_request_generated_tokens"].observe(course.num_output)
        self._lengths["tgi_request_max_new_tokens"].observe(course.max_output)
