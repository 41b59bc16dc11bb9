"""vLLM's ``/v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, where they are allowed."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from graft_runtime.errors import InvalidRequestError, NoSuchRouteError
from graft_runtime.server.adapter_port import RuntimeAdapters, source_uri
from graft_runtime.server.body import read_object
from graft_runtime.server.context import exchange_of, frontend_of
from graft_runtime.server.fields import Fields, ModelName, Unsupported, parse_fields

router = APIRouter()

_UNSUPPORTED: Final[Unsupported] = {"api_token": (), "base_model_name": ()}


class LoadFields(Fields):
    """What a load says."""

    lora_name: ModelName = ""
    lora_path: str = ""
    load_inplace: bool = False


class UnloadFields(Fields):
    """What an unload says."""

    lora_name: ModelName = ""
    lora_int_id: int | None = None
    """An engine's own number in vLLM; the name alone decides here."""


@router.post("/v1/load_lora_adapter", summary="Load an adapter", response_model=None)
async def load(request: Request) -> Response:  # noqa: D103 - see the summary
    body = await read_object(request)
    fields, exchange_of(request.scope).ignored_fields = parse_fields(LoadFields, body, _UNSUPPORTED)
    if not fields.lora_name or not fields.lora_path:
        message = "Both 'lora_name' and 'lora_path' must be provided."
        raise InvalidRequestError(message, param="lora_path" if fields.lora_name else "lora_name")
    uri = source_uri(fields.lora_path)
    await _adapters(request).load(fields.lora_name, uri, in_place=fields.load_inplace)
    return PlainTextResponse(f"Success: LoRA adapter '{fields.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter", summary="Unload an adapter", response_model=None)
async def unload(request: Request) -> Response:  # noqa: D103 - see the summary
    body = await read_object(request)
    fields, exchange_of(request.scope).ignored_fields = parse_fields(
        UnloadFields, body, _UNSUPPORTED
    )
    if not fields.lora_name:
        raise InvalidRequestError("'lora_name' needs to be provided.", param="lora_name")
    await _adapters(request).unload(fields.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{fields.lora_name}' removed successfully.")


def _adapters(request: Request) -> RuntimeAdapters:
    adapters = frontend_of(request).adapters
    if adapters is None:  # the routes are there only with them
        raise NoSuchRouteError("Not Found")
    return adapters
