"""The pod's Prometheus metrics: vLLM's and TGI's names where they exist, ``graft_*`` for the rest.

One `Metrics` per process, made where objects are wired; the server and the pod call its methods,
and ``/metrics`` shows it. Labels take values from closed sets and known names, never from requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from graft_protocol.reasons import AdapterState
from graft_runtime.metrics.buckets import (
    FIRST_TOKEN_BUCKETS,
    HOST_BUCKETS,
    INTER_TOKEN_BUCKETS,
    LATENCY_BUCKETS,
    LOAD_BUCKETS,
)
from graft_runtime.metrics.collectors import AdapterRequests, TgiFailure, TgiRequests
from graft_runtime.metrics.http import HttpMetrics
from graft_runtime.metrics.requests import Course, RequestHistograms
from graft_runtime.metrics.statistics import Statistics
from graft_runtime.metrics.steps import StepHistograms

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

FinishedReason = Literal["stop", "length", "abort", "error"]
AbortReason = Literal["client_disconnect", "slow_reader", "deadline", "shutdown", "engine"]

_LAYOUT: Final = (
    "block_size",
    "num_gpu_blocks",
    "enable_prefix_caching",
    "cache_dtype",
    "kv_cache_size_tokens",
    "kv_cache_max_concurrency",
)
"""Labels of the cache's layout."""


class EngineCounters(Protocol):
    """What the engine reports with every step; `graft_runtime.ipc.messages.EngineStats` fits."""

    @property
    def running(self) -> int: ...  # noqa: D102 - named by the metric it feeds
    @property
    def waiting(self) -> int: ...  # noqa: D102
    @property
    def deferred(self) -> int: ...  # noqa: D102
    @property
    def kv_blocks_used(self) -> int: ...  # noqa: D102
    @property
    def kv_blocks_total(self) -> int: ...  # noqa: D102
    @property
    def prompt_tokens(self) -> int: ...  # noqa: D102
    @property
    def generation_tokens(self) -> int: ...  # noqa: D102
    @property
    def preemptions(self) -> int: ...  # noqa: D102
    @property
    def prefix_queries(self) -> int: ...  # noqa: D102
    @property
    def prefix_hits(self) -> int: ...  # noqa: D102


class Metrics:
    """All metrics of one server process."""

    def __init__(self, model_name: str) -> None:
        """Register every family, so that each is there from the first scrape on.

        Args:
            model_name: The base model's served name; the label of all ``vllm:*`` families.
        """
        self.model_name = model_name
        self.registry = CollectorRegistry()
        self.adapter_requests = AdapterRequests()
        self.tgi = TgiRequests()
        self.statistics = Statistics()
        self.registry.register(self.adapter_requests)
        self.registry.register(self.tgi)
        self._model = {"model_name": model_name, "engine": "0"}
        self._register_vllm()
        self._register_states()
        self._requests = RequestHistograms(self.registry, self._model)
        self.steps = StepHistograms(self.registry, self._model)
        self.http = HttpMetrics(self.registry)
        self._longest = 0
        self._register_graft()
        self._tgi_queue = self._gauge("tgi_queue_size", "Requests waiting in the engine.")
        self._tgi_batch = self._gauge("tgi_batch_current_size", "Requests in the running batch.")
        self._engine_totals: dict[str, int] = {}
        self._tgi_tokens = self._gauge(
            "tgi_batch_current_max_tokens", "Tokens for which the running batch has cache."
        )
        self._tgi_max_tokens = self._gauge(
            "tgi_batch_max_total_tokens", "Tokens for which there is cache."
        )
        self._block_size = 0
        self.load: dict[str, float] = {"kv_cache_usage_perc": 0.0, "num_requests_waiting": 0}
        """What gateways choose a pod by, as last known; the names are those of ``vllm:*``."""

    def _gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(name, text, tuple(labels), registry=self.registry)

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(name, text, tuple(labels), registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: Iterable[str] = ()
    ) -> Histogram:
        return Histogram(name, text, tuple(labels), buckets=buckets, registry=self.registry)

    def _register_vllm(self) -> None:
        names, values = tuple(self._model), tuple(self._model.values())

        def gauge(name: str, text: str) -> Gauge:
            return self._gauge(f"vllm:{name}", text, names).labels(*values)

        def counter(name: str, text: str) -> Counter:
            return self._counter(f"vllm:{name}", text, names).labels(*values)

        def seconds(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return self._histogram(f"vllm:{name}", text, buckets, names).labels(*values)

        self._running = gauge("num_requests_running", "Requests in the running batch.")
        self._waiting = gauge("num_requests_waiting", "Requests waiting in the engine.")
        self._kv_usage = gauge("kv_cache_usage_perc", "Used share of the KV cache, 0 to 1.")
        self._totals = {
            "prompt_tokens": counter("prompt_tokens", "Prompt tokens computed."),
            "generation_tokens": counter("generation_tokens", "Tokens generated."),
            "preemptions": counter("num_preemptions", "Requests preempted."),
            "prefix_queries": counter("prefix_cache_queries", "Prompt tokens looked up."),
            "prefix_hits": counter("prefix_cache_hits", "Prompt tokens found in the cache."),
        }
        self._success = self._counter(
            "vllm:request_success", "Requests that ended, by reason.", (*names, "finished_reason")
        )
        for reason in ("stop", "length", "abort", "error"):
            self._success.labels(*values, reason)
        self._old_kv_usage = gauge("gpu_cache_usage_perc", "kv_cache_usage_perc, as it was called.")
        self._cache_config = self._gauge(
            "vllm:cache_config_info",
            "The KV cache's layout, as labels.",
            (*names, *_LAYOUT),
        )
        self._first_token = seconds(
            "time_to_first_token_seconds", "From arrival to the first token.", FIRST_TOKEN_BUCKETS
        )
        self._inter_token = seconds(
            "inter_token_latency_seconds", "From one token to the next.", INTER_TOKEN_BUCKETS
        )
        # Its older name, which dashboards still read.
        self._per_output_token = seconds(
            "time_per_output_token_seconds", "From one token to the next.", INTER_TOKEN_BUCKETS
        )
        self._latency = seconds(
            "e2e_request_latency_seconds", "From arrival to the end.", LATENCY_BUCKETS
        )

    def _register_states(self) -> None:
        names, values = tuple(self._model), tuple(self._model.values())
        self._waiting_by_reason = self._gauge(
            "vllm:num_requests_waiting_by_reason",
            "Requests waiting in the engine, for room or for their adapter.",
            (*names, "reason"),
        )
        for reason in ("capacity", "deferred"):
            self._waiting_by_reason.labels(*values, reason)
        sleep = self._gauge(
            "vllm:engine_sleep_state", "1 at the state it is in.", (*names, "sleep_state")
        )
        for state in ("awake", "weights_offloaded", "discard_all"):
            sleep.labels(*values, state).set(state == "awake")

    def _register_graft(self) -> None:
        self._adapters = self._gauge("graft_adapters", "Revisions, by state.", ("state",))
        self.adapter_states({})
        self._adapter_load = self._histogram(
            "graft_adapter_load_seconds", "From learning of a revision to serving it.", LOAD_BUCKETS
        )
        self._engine_restarts = self._counter(
            "graft_engine_restarts", "Times the engine process was started again."
        )
        self._host_time = self._histogram(
            "graft_engine_host_seconds",
            "Processor time of the engine's own loop per step, the device's work not counted.",
            HOST_BUCKETS,
        )
        self._aborted = self._counter(
            "graft_aborted", "Requests given up before their end, by reason.", ("reason",)
        )
        self._rejected = self._counter(
            "graft_rejected", "Requests refused, by error code.", ("reason",)
        )
        self._kv_blocks = self._gauge("graft_kv_blocks", "Blocks of the KV cache.", ("state",))
        self._loop_lag = self._gauge(
            "graft_loop_lag_seconds", "How late the server's event loop last woke up."
        )

    # What the pod tells

    def observe_stats(self, stats: EngineCounters) -> None:
        """Take over the engine's gauges and counters.

        The engine counts since its own start; a smaller number than last time means a new engine.
        """
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        self._wait_for(stats.waiting - stats.deferred, stats.deferred)
        self._tgi_batch.set(stats.running)
        self._tgi_queue.set(stats.waiting)
        total = stats.kv_blocks_total
        usage = stats.kv_blocks_used / total if total else 0.0
        self._kv_usage.set(usage)
        self._old_kv_usage.set(usage)
        self.load = {"kv_cache_usage_perc": usage, "num_requests_waiting": stats.waiting}
        self._kv_blocks.labels("used").set(stats.kv_blocks_used)
        self._kv_blocks.labels("total").set(total)
        self._tgi_tokens.set(stats.kv_blocks_used * self._block_size)
        self._count_up("prompt_tokens", stats.prompt_tokens)
        self._count_up("generation_tokens", stats.generation_tokens)
        self._count_up("preemptions", stats.preemptions)
        self._count_up("prefix_queries", stats.prefix_queries)
        self._count_up("prefix_hits", stats.prefix_hits)

    def _wait_for(self, capacity: int, deferred: int) -> None:
        values = tuple(self._model.values())
        self._waiting_by_reason.labels(*values, "capacity").set(max(0, capacity))
        self._waiting_by_reason.labels(*values, "deferred").set(deferred)

    def _count_up(self, name: str, total: int) -> None:
        last = self._engine_totals.get(name, 0)
        self._totals[name].inc(total - last if total >= last else total)
        self._engine_totals[name] = total

    def engine_gone(self) -> None:
        """Empty the engine's gauges, when there is none to report."""
        for gauge in (self._running, self._waiting, self._kv_usage, self._old_kv_usage):
            gauge.set(0)
        self.load = dict.fromkeys(self.load, 0.0)
        self._wait_for(0, 0)
        self._kv_blocks.labels("used").set(0)
        self._tgi_tokens.set(0)
        self._tgi_batch.set(0)
        self._tgi_queue.set(0)

    def host_time(self, seconds: float) -> None:
        """Record what a step took of the engine's own loop."""
        self._host_time.observe(seconds)

    def engine_restarted(self) -> None:
        """Count another start of the engine process."""
        self._engine_restarts.inc()

    def adapter_states(self, counts: Mapping[AdapterState, int]) -> None:
        """Set how many revisions are in each state; states left out have none."""
        for state in AdapterState:
            self._adapters.labels(state.value).set(counts.get(state, 0))

    def adapter_loaded(self, seconds: float) -> None:
        """Record how long a revision took to become available."""
        self._adapter_load.observe(seconds)

    def set_max_lora(self, count: int) -> None:
        """Set how many adapters the device can hold at once."""
        self.adapter_requests.max_lora = count

    def cache_layout(self, block_size: int, num_blocks: int, max_model_len: int) -> None:
        """Set what the engine's cache looks like; one series, whatever engines there were.

        Args:
            block_size: Tokens of a block.
            num_blocks: How many there are.
            max_model_len: Longest prompt plus output, tokens.
        """
        if max_model_len != self._longest:
            self._requests.fit(max_model_len)
            self._longest = max_model_len
        self._block_size = block_size
        size = block_size * num_blocks
        self._tgi_max_tokens.set(size)
        self._cache_config.clear()
        concurrency = f"{size / max_model_len:.2f}"
        layout = (block_size, num_blocks, True, "auto", size, concurrency)
        self._cache_config.labels(*self._model.values(), *map(str, layout)).set(1)

    # What the server tells

    def first_token(self, seconds: float) -> None:
        """Record the time from a request's arrival to its first token."""
        self._first_token.observe(seconds)

    def inter_token(self, seconds: float) -> None:
        """Record the time between two tokens of a request."""
        self._inter_token.observe(seconds)
        self._per_output_token.observe(seconds)

    def finished(self, reason: FinishedReason, model: str, course: Course) -> None:
        """Count a request that ended.

        Args:
            reason: How it ended.
            model: The served name that it asked.
            course: How it went.
        """
        self._success.labels(*self._model.values(), reason).inc()
        self._latency.observe(course.total)
        is_success = reason in ("stop", "length")
        self.statistics.record(model, course, is_success=is_success)
        if is_success:
            self._requests.observe(course)
        if reason != "error":
            self.tgi.count += 1
            self.tgi.success += reason != "abort"

    def choices(self, count: int, longest: int) -> None:
        """Count a request whose choices have all ended.

        Args:
            count: How many there were.
            longest: Tokens of the longest.
        """
        self._requests.choices(count, longest)

    def aborted(self, reason: AbortReason) -> None:
        """Count a request that was given up before its end."""
        self._aborted.labels(reason).inc()

    def rejected(self, code: str) -> None:
        """Count a refused request.

        Args:
            code: The error class's own code, never text from a request.
        """
        self._rejected.labels(code).inc()

    def tgi_failed(self, cause: TgiFailure) -> None:
        """Count a failed request under TGI's name for the cause."""
        self.tgi.count += 1
        self.tgi.failures[cause] += 1

    def loop_lag(self, seconds: float) -> None:
        """Set how late the event loop last woke up."""
        self._loop_lag.set(seconds)

    def expose(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
