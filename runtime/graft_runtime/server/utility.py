"""``/version``, ``/load`` and ``/invocations``: what platforms ask of any model server."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from graft_protocol import __version__
from graft_runtime.errors import InvalidRequestError
from graft_runtime.server import tgi
from graft_runtime.server.body import read_object
from graft_runtime.server.context import exchange_of, frontend_of
from graft_runtime.server.openai import chat, completions, embeddings

router = APIRouter()


@router.get("/version", summary="Tell the version", response_model=None)
async def version() -> Response:  # noqa: D103 - see the summary
    return JSONResponse({"version": __version__})


@router.get("/load", summary="Count the requests in the engine", response_model=None)
async def load(request: Request) -> Response:  # noqa: D103 - see the summary
    report = frontend_of(request).backend.status().load
    return JSONResponse({"server_load": report.running + report.waiting})


@router.post("/invocations", summary="Generate, in the form of the body", response_model=None)
async def invocations(request: Request) -> Response:  # noqa: D103 - see the summary
    body = await read_object(request)
    if "inputs" in body:
        return await tgi.answer_compatible(request, body)
    exchange_of(request.scope).family = "openai"
    if "messages" in body:
        return await chat.answer(request, body)
    if "prompt" in body:
        return await completions.answer(request, body)
    if "input" in body:
        return await embeddings.answer(request, body)
    message = "the body needs `inputs`, `messages`, `prompt` or `input`"
    raise InvalidRequestError(message, param="inputs")
