"""Puts the surfaces together: the public application and the internal one.

Called where the pod's objects are wired. It starts nothing but a watch on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from graft_protocol import __version__
from graft_protocol.config import ServerSettings
from graft_runtime.metrics import Metrics
from graft_runtime.sampling.plugins import Plugins
from graft_runtime.server import (
    health,
    internal,
    platforms,
    tgi,
    tgi_info,
    tokens,
    utility,
    websocket,
)
from graft_runtime.server.adapter_port import RuntimeAdapters
from graft_runtime.server.anthropic import messages
from graft_runtime.server.backend import Backend
from graft_runtime.server.context import Frontend, exchange_of
from graft_runtime.server.errors import as_request_error, family_of, wire_error
from graft_runtime.server.exchange import stop
from graft_runtime.server.grammars import GrammarChecker
from graft_runtime.server.guest_templates import GuestRenderer
from graft_runtime.server.internal import BearerMiddleware
from graft_runtime.server.kserve import http as kserve
from graft_runtime.server.limits import BODY_TIMEOUT_SECONDS, LimitsMiddleware
from graft_runtime.server.openai import (
    chat,
    completions,
    embeddings,
    lora_adapters,
    models,
    responses,
)
from graft_runtime.server.openapi import describe
from graft_runtime.server.tracing import NoTracer, Tracer
from graft_runtime.text.model_text import ModelTextLoader

_SURFACES: Final = (
    completions,
    chat,
    responses,
    messages,
    embeddings,
    models,
    tgi,
    tgi_info,
    tokens,
    utility,
    platforms,
    kserve,
    websocket,
    health,
)

LAG_INTERVAL_SECONDS: Final = 1.0
INTERNAL_BODY_BYTES: Final = 64 * 1024


def create_app(
    backend: Backend,
    settings: ServerSettings,
    *,
    metrics: Metrics,
    texts: ModelTextLoader | None = None,
    tracer: Tracer | None = None,
    logs_text: bool = False,
    adapters: RuntimeAdapters | None = None,
    body_timeout_seconds: float = BODY_TIMEOUT_SECONDS,
) -> FastAPI:
    """Return the public application.

    Args:
        backend: What runs the model.
        settings: Limits and timeouts.
        metrics: What the routes count in and ``/metrics`` shows.
        texts: The text tools, if the caller shares them (to load them before the first request).
        tracer: What is told of generations that ended, if anything.
        logs_text: Whether prompts and outputs come to stand in the log.
        adapters: Who loads adapters that clients ask for; None if nobody may.
        body_timeout_seconds: How long a request's body may take to arrive.
    """
    grammars, guests = GrammarChecker(backend.tokenizer_dir), GuestRenderer()
    app = _application(_lifespan(metrics, grammars, guests))
    texts = texts or ModelTextLoader(backend.tokenizer_dir)
    app.state.frontend = Frontend(
        backend,
        settings,
        metrics,
        texts,
        grammars,
        Plugins(),
        guests,
        tracer or NoTracer(),
        logs_text=logs_text,
        adapters=adapters,
    )
    for module in _SURFACES:
        app.include_router(module.router)
    if adapters is not None:
        app.include_router(lora_adapters.router)
    app.add_middleware(
        LimitsMiddleware,
        max_body_bytes=settings.max_body_bytes,
        metrics=metrics,
        tracer=tracer,
        body_timeout_seconds=body_timeout_seconds,
    )
    _serve_description(app)
    return app


def _serve_description(app: FastAPI) -> None:
    """Serve what the application's routes are, where both OpenAI's and TGI's users look for it."""
    document = msgspec.json.encode(describe(app, __version__))

    async def description(_: Request) -> Response:
        return Response(document, media_type="application/json")

    for path in ("/openapi.json", "/api-doc/openapi.json"):
        app.add_route(path, description, include_in_schema=False)


def create_internal_app(backend: Backend, token: str) -> FastAPI:
    """Return the application of the internal port.

    Args:
        backend: Whose report it serves.
        token: The bearer token that every request needs.

    Raises:
        ValueError: The token is empty.
    """
    if not token:
        message = "the internal port needs a token: an empty one would let everybody in"
        raise ValueError(message)
    app = _application(None)
    app.include_router(internal.internal_router(backend))
    app.add_middleware(BearerMiddleware, token=token)
    app.add_middleware(LimitsMiddleware, max_body_bytes=INTERNAL_BODY_BYTES, metrics=None)
    return app


def _application(
    lifespan: Callable[[FastAPI], AsyncIterator[None]] | None,
) -> FastAPI:
    return FastAPI(
        title="Graft runtime",
        openapi_url=None,
        redirect_slashes=False,
        lifespan=None if lifespan is None else asynccontextmanager(lifespan),
        exception_handlers={HTTPException: _routing_failed},
    )


async def _routing_failed(request: Request, error: Exception) -> Response:
    """Answer an unknown path or a wrong method in the form of its family."""
    request_error = as_request_error(error, exchange_of(request.scope).request_id)
    response = wire_error(family_of(request.scope["path"]), request_error).response()
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    return response


def _lifespan(
    metrics: Metrics, grammars: GrammarChecker, guests: GuestRenderer
) -> Callable[[FastAPI], AsyncIterator[None]]:
    """Return a lifespan that measures the loop's delays and leaves no child behind."""

    async def measure() -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL_SECONDS
            await asyncio.sleep(LAG_INTERVAL_SECONDS)
            metrics.loop_lag(max(0.0, loop.time() - due))

    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(measure())
        try:
            yield
        finally:
            await stop(task)
            await grammars.close()
            await guests.close()

    return lifespan
