"""What every route needs, and what belongs to one HTTP exchange.

Made by `app` and `limits`, read by the routes.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, cast

from starlette.requests import Request
from starlette.types import Scope

from graft_protocol.config import ServerSettings
from graft_runtime.metrics import AbortReason, Metrics
from graft_runtime.sampling.plugins import Plugins
from graft_runtime.server.adapter_port import RuntimeAdapters
from graft_runtime.server.backend import DEFAULT_TERMS, Backend, Terms
from graft_runtime.server.grammars import GrammarChecker
from graft_runtime.server.guest_templates import GuestRenderer
from graft_runtime.server.tracing import NoTracer, Tracer
from graft_runtime.text.model_text import ModelTextLoader

SAFE_ID: Final = r"[A-Za-z0-9._:+/=-]{1,128}"
"""Ids of requests that may stand in headers and logs."""


@dataclass(frozen=True)
class Frontend:
    """The long-lived objects behind all routes."""

    backend: Backend
    settings: ServerSettings
    metrics: Metrics
    texts: ModelTextLoader
    grammars: GrammarChecker
    plugins: Plugins
    guests: GuestRenderer = field(default_factory=GuestRenderer)
    tracer: Tracer = field(default_factory=NoTracer)
    logs_text: bool = False
    """Whether prompts and outputs come to stand in the log."""
    adapters: RuntimeAdapters | None = None
    """None unless the service allows loading by API."""


@dataclass(eq=False)
class Exchange:
    """One HTTP request and its answer."""

    request_id: str
    """The client's, or one drawn for it; safe to log and to send back."""
    path: str
    arrived: float = field(default_factory=time.perf_counter)
    """Seconds on the monotonic clock."""
    timeout_seconds: float | None = None
    """What the client gave it, if anything, from admission to the last token."""
    ignored_fields: tuple[str, ...] = ()
    """Fields of the body that nobody here knows."""
    route_key: str | None = None
    """What the client wants its requests to be routed alike by."""
    terms: Terms = DEFAULT_TERMS
    """What its headers say of its order and its cache; what a body says comes before that."""
    is_named: bool = False
    """Whether its headers brought the id."""
    num_body_bytes: int = 0
    abort_reason: AbortReason = "client_disconnect"
    """Why its generation was closed early, if it was."""
    family: Literal["openai", "tgi", "triton", "anthropic"] | None = None
    """Whose error form its answer takes, where the body decides and not the path."""
    trace_parent: Mapping[str, str] = field(default_factory=dict)
    """The headers that name the caller's span."""
    failure_counted: bool = False
    """Whether its failure is in the metrics already."""

    def elapsed(self) -> float:
        """Return the seconds since arrival."""
        return time.perf_counter() - self.arrived

    def name(self, request_id: str | None) -> None:
        """Take the id that a body brings, unless the headers brought one."""
        if request_id is not None and not self.is_named:
            self.request_id, self.is_named = request_id, True

    def headers(self) -> dict[str, str]:
        """Return the headers that every good answer to a generation request carries."""
        if not self.ignored_fields:
            return {}
        return {"x-graft-ignored-fields": ", ".join(self.ignored_fields)}


def safe_request_id(given: str) -> str:
    """Return the client's id for a request if it is harmless, else a new one."""
    return given if re.fullmatch(SAFE_ID, given) else uuid.uuid4().hex


def frontend_of(request: Request) -> Frontend:
    """Return the application's long-lived objects."""
    return cast("Frontend", request.app.state.frontend)


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange that `limits` opened for this request."""
    return cast("Exchange", scope["state"]["exchange"])
