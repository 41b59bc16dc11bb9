"""The kubelet's probes and the metrics page. They wait for nothing, least of all for the engine."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from graft_runtime.metrics import CONTENT_TYPE
from graft_runtime.server.backend import Health
from graft_runtime.server.context import frontend_of

router = APIRouter()


@router.get("/livez", summary="Tell whether the pod should be restarted", response_model=None)
async def livez(request: Request) -> Response:  # noqa: D103 - see the summary
    health = frontend_of(request).backend.health()
    return _answer(health, good=health.live)


@router.get("/readyz", summary="Tell whether traffic may come", response_model=None)
async def readyz(request: Request) -> Response:  # noqa: D103 - see the summary
    health = frontend_of(request).backend.health()
    return _answer(health, good=health.ready)


@router.get("/startupz", summary="Tell whether the start is over", response_model=None)
async def startupz(request: Request) -> Response:  # noqa: D103 - see the summary
    health = frontend_of(request).backend.health()
    return _answer(health, good=health.started)


@router.get("/metrics", summary="Prometheus metrics", response_model=None)
async def metrics(request: Request) -> Response:  # noqa: D103 - see the summary
    return Response(frontend_of(request).metrics.expose(), media_type=CONTENT_TYPE)


def _answer(health: Health, *, good: bool) -> Response:
    body = {"status": "ok" if good else "unavailable", "detail": health.detail}
    return JSONResponse(body, 200 if good else 503)
