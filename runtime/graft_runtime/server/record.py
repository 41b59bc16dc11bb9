"""The course of one generation: its metrics, and its line in the access log. Never its text."""

from __future__ import annotations

import asyncio
import logging
import time
from types import TracebackType
from typing import Literal, Self

from graft_runtime.errors import RequestError
from graft_runtime.metrics import FinishedReason, Metrics
from graft_runtime.metrics.statistics import Course
from graft_runtime.server.backend import Target
from graft_runtime.server.context import Exchange
from graft_runtime.server.errors import tgi_cause

_logger = logging.getLogger("graft_runtime.access")

EndReason = Literal["length", "eos", "stop_token", "stop_string", "abort"]


class Record:
    """Watches one generation from its submission to its end.

    Used as a context: what leaves it tells how the generation ended, unless `close` was called.
    """

    def __init__(
        self, metrics: Metrics, exchange: Exchange, job_id: str, target: Target, prompt_tokens: int
    ) -> None:
        """Begin.

        Args:
            metrics: Where the course is counted.
            exchange: The HTTP request behind it; times count from its arrival.
            job_id: The engine's id for it.
            target: What it asks.
            prompt_tokens: Length of its prompt.
        """
        self.end: EndReason | None = None
        self._metrics = metrics
        self._exchange = exchange
        self._job_id = job_id
        self._target = target
        self._prompt_tokens = prompt_tokens
        self._completion_tokens = 0
        self._submitted_seconds = exchange.elapsed()
        self._first_token_seconds: float | None = None
        self._last_token_at = 0.0
        self._closed = False
        self._adapter = None if target.revision is None else target.served_name

    def __enter__(self) -> Self:
        if self._adapter is not None:
            self._metrics.adapter_requests.wait(self._adapter)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(error)

    def tokens(self, count: int) -> None:
        """Record that tokens arrived."""
        if not count:
            return
        now = time.perf_counter()
        if self._first_token_seconds is None:
            self._first_token_seconds = now - self._exchange.arrived
            self._metrics.first_token(self._first_token_seconds)
            if self._adapter is not None:
                self._metrics.adapter_requests.run(self._adapter)
        else:
            for _ in range(count):
                self._metrics.inter_token((now - self._last_token_at) / count)
        self._last_token_at = now
        self._completion_tokens += count

    def close(self, error: BaseException | None = None) -> None:
        """Record the end, once."""
        if self._closed:
            return
        self._closed = True
        if self._adapter is not None:
            was_running = self._first_token_seconds is not None
            self._metrics.adapter_requests.leave(self._adapter, was_running=was_running)
        reason, cause = self._outcome(error)
        self._metrics.finished(reason, self._exchange.elapsed())
        self._metrics.statistics.record(
            self._target.served_name,
            self._course(),
            self._completion_tokens,
            is_success=reason in ("stop", "length"),
        )
        self._log(reason, cause)

    def _outcome(self, error: BaseException | None) -> tuple[FinishedReason, str]:
        """Return the metric's reason and, for the log, what lies behind it."""
        if self.end is not None:
            if self.end == "abort":
                self._metrics.aborted("engine")
                return "abort", "engine"
            return ("length" if self.end == "length" else "stop"), self.end
        if error is None or isinstance(error, GeneratorExit | asyncio.CancelledError):
            self._metrics.aborted(self._exchange.abort_reason)
            return "abort", self._exchange.abort_reason
        self._exchange.failure_counted = True
        if isinstance(error, RequestError):
            self._metrics.tgi_failed(tgi_cause(error))
            return "error", error.code
        self._metrics.tgi_failed("generation")
        return "error", "internal_error"

    def _course(self) -> Course:
        total = self._exchange.elapsed()
        first = self._first_token_seconds
        return Course(
            queue=None,
            prefill=None if first is None else first - self._submitted_seconds,
            decode=None if first is None else total - first,
            total=total,
        )

    def _log(self, reason: FinishedReason, cause: str) -> None:
        _logger.info(
            "generated",
            extra={
                "request_id": self._exchange.request_id,
                "engine_request_id": self._job_id,
                "path": self._exchange.path,
                "model": self._target.served_name,
                "revision": self._target.revision,
                "prompt_tokens": self._prompt_tokens,
                "completion_tokens": self._completion_tokens,
                "prepare_seconds": _rounded(self._submitted_seconds),
                "first_token_seconds": _rounded(self._first_token_seconds),
                "total_seconds": _rounded(self._exchange.elapsed()),
                "finish_reason": reason,
                "cause": cause,
            },
        )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
