"""The course of one generation: its metrics, and its line in the access log.

Its text is in none of them, unless the pod was told to log it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from types import TracebackType
from typing import Literal, Protocol, Self

from graft_runtime.errors import RequestError
from graft_runtime.ipc.messages import Sampling
from graft_runtime.metrics import FinishedReason
from graft_runtime.metrics.requests import Course
from graft_runtime.server.backend import Target
from graft_runtime.server.context import Exchange, Frontend
from graft_runtime.server.errors import tgi_cause
from graft_runtime.server.siblings import Siblings
from graft_runtime.server.tracing import Ended
from graft_runtime.text.tokenizer import Tokenizer

_logger = logging.getLogger("graft_runtime.access")

EndReason = Literal["length", "eos", "stop_token", "stop_string", "abort"]


class Facts(Protocol):
    """What there is to know of a job; `generation.Job` fits."""

    @property
    def id(self) -> str: ...  # noqa: D102 - named by the field of the log it feeds
    @property
    def token_ids(self) -> list[int]: ...  # noqa: D102
    @property
    def sampling(self) -> Sampling: ...  # noqa: D102
    @property
    def target(self) -> Target: ...  # noqa: D102
    @property
    def siblings(self) -> Siblings: ...  # noqa: D102
    @property
    def tokenizer(self) -> Tokenizer: ...  # noqa: D102


class Record:
    """Watches one generation from its submission to its end.

    Used as a context: what leaves it tells how the generation ended, unless `close` was called.
    """

    def __init__(self, frontend: Frontend, exchange: Exchange, job: Facts) -> None:
        """Begin.

        Args:
            frontend: Where the course is counted, traced and logged.
            exchange: The request behind it; times count from its arrival.
            job: What runs.
        """
        self.end: EndReason | None = None
        self.queue_seconds: float | None = None
        """How long it waited in the engine's queue, once that is known."""
        self.num_cached = 0
        self.num_preemptions = 0
        self.text: list[str] | None = [] if frontend.logs_text else None
        """Pieces of the output, if these are to be logged."""
        self._frontend = frontend
        self._metrics = frontend.metrics
        self._exchange = exchange
        self._job = job
        self._completion_tokens = 0
        self._submitted_seconds = exchange.elapsed()
        self._first_token_seconds: float | None = None
        self._last_token_at = 0.0
        self._closed = False
        self._adapter = None if job.target.revision is None else job.target.served_name

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
        course = self._course()
        self._metrics.finished(reason, self._job.target.served_name, course)
        siblings = self._job.siblings
        if siblings.ended(self._completion_tokens) and reason in ("stop", "length"):
            self._metrics.choices(siblings.count, siblings.longest)
        self._tell(reason, cause, course)

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
        begun = self._submitted_seconds + (self.queue_seconds or 0.0)
        first = self._first_token_seconds
        return Course(
            total=total,
            prepare=self._submitted_seconds,
            queue=self.queue_seconds,
            # The two clocks are read in two places; what lies between them must not become less
            # than nothing.
            prefill=None if first is None else max(0.0, first - begun),
            decode=None if first is None else total - first,
            num_prompt=len(self._job.token_ids),
            num_output=self._completion_tokens,
            max_output=self._job.sampling.max_tokens,
            num_preemptions=self.num_preemptions,
        )

    def _tell(self, reason: FinishedReason, cause: str, course: Course) -> None:
        """Write the span and the line in the log."""
        target = self._job.target
        namespace, digest = _parts(target.revision)
        attributes: dict[str, str | int | float] = {
            "gen_ai.request.id": self._exchange.request_id,
            "gen_ai.request.model": target.served_name,
            "gen_ai.request.max_tokens": course.max_output,
            "gen_ai.usage.prompt_tokens": course.num_prompt,
            "gen_ai.usage.completion_tokens": course.num_output,
            "gen_ai.latency.e2e": course.total,
            "gen_ai.response.finish_reasons": cause,
            "graft.path": self._exchange.path,
            "graft.tenant": namespace,
            "graft.adapter.digest": digest,
        }
        if self._first_token_seconds is not None:
            attributes["gen_ai.latency.time_to_first_token"] = self._first_token_seconds
        if course.queue is not None:
            attributes["gen_ai.latency.time_in_queue"] = course.queue
        error = cause if reason == "error" else None
        ended = Ended(course, attributes, error, self._exchange.trace_parent)
        trace_id = self._frontend.tracer.record(ended)
        line = {
            "request_id": self._exchange.request_id,
            "engine_request_id": self._job.id,
            "trace_id": trace_id,
            "path": self._exchange.path,
            "model": target.served_name,
            "revision": target.revision,
            "adapter_digest": digest or None,
            "tenant": namespace or None,
            "prompt_tokens": course.num_prompt,
            "cached_tokens": self.num_cached,
            "completion_tokens": course.num_output,
            "prepare_seconds": _rounded(course.prepare),
            "queue_seconds": _rounded(course.queue),
            "prefill_seconds": _rounded(course.prefill),
            "decode_seconds": _rounded(course.decode),
            "first_token_seconds": _rounded(self._first_token_seconds),
            "total_seconds": _rounded(course.total),
            "finish_reason": reason,
            "cause": cause,
        }
        if self.text is not None:
            tokenizer = self._job.tokenizer
            line["prompt"] = tokenizer.decode(self._job.token_ids, skip_special_tokens=False)
            line["output"] = "".join(self.text)
        _logger.info("generated", extra=line)


def _parts(revision: str | None) -> tuple[str, str]:
    """Return a revision's namespace, who is the tenant, and the digest of its content."""
    if revision is None:
        return "", ""
    name, _, digest = revision.partition("@")
    return name.partition("/")[0], digest


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
