"""The routes under ``/v2``."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from graft_runtime.errors import InvalidRequestError, NotSupportedError, RequestError
from graft_runtime.server.context import frontend_of
from graft_runtime.server.kserve import describe, repository
from graft_runtime.server.kserve.call import resolve_model
from graft_runtime.server.kserve.http_body import read_document
from graft_runtime.server.kserve.http_generate import answer_generate, answer_generate_stream
from graft_runtime.server.kserve.http_infer import answer_infer

router = APIRouter()

MODEL = "/v2/models/{model:path}"
BOTH = ["GET", "POST"]
# Routes are tried in their order, and a model's name may hold slashes: of two decorators the lower
# one, with the version, comes first.
VERSIONED = "/v2/models/{model:path}/versions/{version}"


@router.get("/v2", summary="Describe the server", response_model=None)
async def server_metadata() -> Response:  # noqa: D103 - see the summary
    return JSONResponse(describe.server_metadata())


@router.get("/v2/health/live", summary="Tell whether the server lives", response_model=None)
async def server_live(request: Request) -> Response:  # noqa: D103 - see the summary
    return _yes_or_no(good=frontend_of(request).backend.health().live)


@router.get("/v2/health/ready", summary="Tell whether requests succeed", response_model=None)
async def server_ready(request: Request) -> Response:  # noqa: D103 - see the summary
    return _yes_or_no(good=frontend_of(request).backend.health().ready)


@router.get("/v2/models/stats", summary="Count every model's inferences", response_model=None)
async def all_statistics(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend = frontend_of(request)
    names = [model.name for model in frontend.backend.models()]
    return JSONResponse(frontend.metrics.statistics.report(names))


@router.get(MODEL + "/ready", summary="Tell whether a model can be asked", response_model=None)
@router.get(VERSIONED + "/ready", summary="Tell whether a model can be asked", response_model=None)
async def model_ready(request: Request, model: str, version: str = "") -> Response:  # noqa: D103 - see the summary
    frontend = frontend_of(request)
    try:
        resolve_model(frontend, model, version)
    except RequestError:
        return _yes_or_no(good=False)
    return _yes_or_no(good=frontend.backend.health().ready)


@router.get(MODEL + "/config", summary="Show a model's configuration", response_model=None)
@router.get(VERSIONED + "/config", summary="Show a model's configuration", response_model=None)
async def model_config(request: Request, model: str, version: str = "") -> Response:  # noqa: D103 - see the summary
    resolve_model(frontend_of(request), model, version)
    return JSONResponse(describe.model_config(model))


@router.get(MODEL + "/stats", summary="Count a model's inferences", response_model=None)
@router.get(VERSIONED + "/stats", summary="Count a model's inferences", response_model=None)
async def model_statistics(request: Request, model: str, version: str = "") -> Response:  # noqa: D103 - see the summary
    frontend = frontend_of(request)
    resolve_model(frontend, model, version)
    return JSONResponse(frontend.metrics.statistics.report([model]))


@router.api_route("/v2/systemsharedmemory/{rest:path}", methods=BOTH, response_model=None)
@router.api_route("/v2/cudasharedmemory/{rest:path}", methods=BOTH, response_model=None)
@router.api_route("/v2/logging", methods=BOTH, response_model=None)
@router.api_route("/v2/trace/setting", methods=BOTH, response_model=None)
@router.api_route(MODEL + "/trace/setting", methods=BOTH, response_model=None)
async def not_supported(request: Request) -> Response:
    """Refuse by name what a pod among others has no use for."""
    subject = "trace" if request.url.path.endswith("/setting") else request.url.path.split("/")[2]
    raise NotSupportedError(f"{subject} is not supported")


@router.get(MODEL, summary="Describe a model", response_model=None)
@router.get(VERSIONED, summary="Describe a model", response_model=None)
async def model_metadata(request: Request, model: str, version: str = "") -> Response:  # noqa: D103 - see the summary
    resolve_model(frontend_of(request), model, version)
    return JSONResponse(describe.model_metadata(model))


@router.post(MODEL + "/infer", summary="Run an inference on tensors", response_model=None)
@router.post(VERSIONED + "/infer", summary="Run an inference on tensors", response_model=None)
async def infer(request: Request, model: str, version: str = "") -> Response:  # noqa: D103 - see the summary
    return await answer_infer(request, model, version)


@router.post(MODEL + "/generate", summary="Generate from plain JSON", response_model=None)
@router.post(VERSIONED + "/generate", summary="Generate from plain JSON", response_model=None)
async def generate(request: Request, model: str, version: str = "") -> Response:  # noqa: D103 - see the summary
    return await answer_generate(request, model, version)


@router.post(MODEL + "/generate_stream", summary="Generate as a stream", response_model=None)
@router.post(VERSIONED + "/generate_stream", summary="Generate as a stream", response_model=None)
async def generate_stream(request: Request, model: str, version: str = "") -> Response:  # noqa: D103 - see the summary
    return await answer_generate_stream(request, model, version)


@router.post("/v2/repository/index", summary="List models", response_model=None)
async def repository_index(request: Request) -> Response:  # noqa: D103 - see the summary
    body = await read_document(request, may_be_empty=True)
    only_ready = body.get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidRequestError("`ready` must be true or false", param="ready")
    backend = frontend_of(request).backend
    return JSONResponse(describe.repository_index(backend, only_ready=only_ready))


@router.post(
    "/v2/repository/models/{model:path}/load", summary="Load an adapter", response_model=None
)
async def load_model(request: Request, model: str) -> Response:  # noqa: D103 - see the summary
    body = await read_document(request, may_be_empty=True)
    parameters = body.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidRequestError("`parameters` must be an object", param="parameters")
    await repository.load(frontend_of(request), model, parameters)
    return Response()


@router.post(
    "/v2/repository/models/{model:path}/unload", summary="Unload an adapter", response_model=None
)
async def unload_model(request: Request, model: str) -> Response:  # noqa: D103 - see the summary
    await repository.unload(frontend_of(request), model)
    return Response()


def _yes_or_no(*, good: bool) -> Response:
    return Response(status_code=200 if good else 400)
