"""``GET /v1/models``: what can be asked for, the base model first."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from graft_runtime.errors import ModelNotFoundError
from graft_runtime.server.backend import ServedModel
from graft_runtime.server.context import frontend_of

router = APIRouter()


@router.get("/v1/models", summary="List models and adapters", response_model=None)
async def list_models(request: Request) -> Response:  # noqa: D103 - see the summary
    models = frontend_of(request).backend.models()
    return JSONResponse({"object": "list", "data": [card(model) for model in models]})


@router.get("/v1/models/{name:path}", summary="Show one model", response_model=None)
async def show_model(request: Request, name: str) -> Response:  # noqa: D103 - see the summary
    for model in frontend_of(request).backend.models():
        if model.name == name:
            return JSONResponse(card(model))
    raise ModelNotFoundError("The model does not exist.", param="model")


def card(model: ServedModel) -> dict[str, Any]:
    """Return a model in the form of vLLM's list, which holds OpenAI's."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "graft",
        "root": model.root,
        "parent": model.parent,
        "max_model_len": model.max_model_len,
        "permission": [_permission(model)],
    }


def _permission(model: ServedModel) -> dict[str, Any]:
    return {
        "id": f"modelperm-{model.name}",
        "object": "model_permission",
        "created": model.created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
