"""``GET /info``, ``/health``, ``/ping`` and ``/``: what TGI's clients ask before they generate."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from graft_protocol import __version__
from graft_runtime.server.context import Frontend, frontend_of
from graft_runtime.server.fields import MAX_CHOICES, MAX_STOPS
from graft_runtime.server.openai.completions import MAX_PROMPTS

router = APIRouter()


@router.get("/info", summary="Describe the model and the limits", response_model=None)
async def info(request: Request) -> Response:  # noqa: D103 - see the summary
    return JSONResponse(_info(frontend_of(request)))


@router.get("/", summary="Tell whether requests succeed", response_model=None)
@router.get("/health", summary="Tell whether requests succeed", response_model=None)
@router.get("/ping", summary="Tell whether requests succeed", response_model=None)
async def health(request: Request) -> Response:  # noqa: D103 - see the summary
    if frontend_of(request).backend.health().ready:
        return Response()
    return JSONResponse({"error": "unhealthy", "error_type": "healthcheck"}, 503)


def _info(frontend: Frontend) -> dict[str, Any]:
    """Return the union of what several versions of TGI and LoRAX told, as far as there is such."""
    backend = frontend.backend
    base, limit, capacity = backend.models()[:1], backend.max_model_len, backend.capacity()
    info: dict[str, Any] = {
        "model_id": base[0].name if base else "",
        "model_pipeline_tag": "text-generation",
        "max_best_of": MAX_CHOICES,
        "max_stop_sequences": MAX_STOPS,
        "max_input_tokens": max(limit - 1, 0),
        "max_input_length": max(limit - 1, 0),
        "max_total_tokens": limit,
        "validation_workers": 1,
        "max_client_batch_size": MAX_PROMPTS,
        "router": "graft-runtime",
        "version": __version__,
    }
    if capacity is None:
        return info
    return info | {
        "model_sha": capacity.model_digest,
        "model_dtype": f"torch.{capacity.dtype}",
        "model_device_type": capacity.device,
        "max_concurrent_requests": capacity.max_requests,
        "max_batch_total_tokens": capacity.kv_tokens,
    }
