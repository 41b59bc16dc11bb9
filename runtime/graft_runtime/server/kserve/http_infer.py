"""``POST .../infer``: tensors in, tensors out, each as JSON or as bytes behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.body import off_loop
from graft_runtime.server.context import Exchange, Frontend, exchange_of, frontend_of
from graft_runtime.server.exchange import watch
from graft_runtime.server.fields import Fields, parse_fields
from graft_runtime.server.kserve.call import Call, answers, prepare
from graft_runtime.server.kserve.contract import VERSION, Inputs, read_inputs, refuse_stream
from graft_runtime.server.kserve.http_body import (
    HEADER_LENGTH,
    InferBody,
    accepted_encoding,
    compress,
    read_infer_body,
)
from graft_runtime.server.kserve.tensors import Tensor, from_bytes, from_json, to_bytes

MAX_TENSORS: Final = 64
COMPRESS_FROM_BYTES: Final = 1024
"""Shorter answers gain nothing."""


class InferInput(Fields):
    """One tensor."""

    name: str = Field(max_length=256)
    datatype: str = Field(max_length=16)
    shape: list[int] = Field(max_length=8)
    parameters: dict[str, Any] = Field(default={})
    data: Any = None


class InferOutput(Fields):
    """One tensor that is wanted back."""

    name: str = Field(max_length=256)
    parameters: dict[str, Any] = Field(default={})


class InferDocument(Fields):
    """The JSON of an inference."""

    id: str = Field(default="", max_length=1024)
    parameters: dict[str, Any] = Field(default={})
    inputs: list[InferInput] = Field(min_length=1, max_length=MAX_TENSORS)
    outputs: list[InferOutput] = Field(default=[], max_length=MAX_TENSORS)


async def answer_infer(request: Request, model: str, version: str) -> Response:
    """Run one inference and answer when it has ended, even if the model could stream it.

    Raises:
        RequestError: It is refused or fails.
    """
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    body = await read_infer_body(request)
    document, inputs = await off_loop(exchange, _understand, body)
    refuse_stream(inputs)
    call = await prepare(frontend, exchange, model, version, inputs)
    outputs = await watch(
        exchange,
        request.receive,
        _collect(frontend, exchange, call),
        timeout_seconds=frontend.settings.request_timeout_seconds,
    )
    default = body.is_raw or document.parameters.get("binary_data_output") is True
    head: dict[str, Any] = {"model_name": model, "model_version": VERSION}
    if document.id:
        head["id"] = document.id
    is_binary = {each.name: _wants_bytes(each) for each in document.outputs}
    as_bytes = {
        each.name
        for each in outputs
        if (default if (wanted := is_binary.get(each.name)) is None else wanted)
    }
    return await _response(request, head, outputs, as_bytes)


def _understand(body: InferBody) -> tuple[InferDocument, Inputs]:
    """Return what a body says and what it asks for."""
    if body.is_raw:
        raw = InferDocument(inputs=[InferInput(name="text_input", datatype="BYTES", shape=[1])])
        tensor = Tensor("text_input", "BYTES", (1,), (body.binary,))
        return raw, read_inputs([tensor], {})
    document, _ = parse_fields(InferDocument, body.document, {})
    for each in document.outputs:
        _wants_bytes(each)
    names = [each.name for each in document.outputs]
    tensors = _read_tensors(document, body)
    return document, read_inputs(tensors, document.parameters, names)


def _read_tensors(document: InferDocument, body: InferBody) -> list[Tensor]:
    """Return the inputs; bytes behind the JSON belong to them in order, and all of them do."""
    tensors = []
    position = 0
    for each in document.inputs:
        _refuse_shared_memory(each.parameters)
        size = each.parameters.get("binary_data_size")
        if size is None:
            tensors.append(from_json(each.name, each.datatype, each.shape, each.data))
            continue
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            message = "`binary_data_size` must be a number of bytes"
            raise InvalidRequestError(message, param="binary_data_size")
        data = body.binary[position : position + size]
        position += size
        tensors.append(from_bytes(each.name, each.datatype, each.shape, data))
    if position != len(body.binary):
        raise InvalidRequestError("the bytes behind the JSON are not those of its inputs")
    return tensors


def _wants_bytes(output: InferOutput) -> bool | None:
    """Return whether an output comes as bytes, where it says so itself."""
    _refuse_shared_memory(output.parameters)
    if output.parameters.get("classification"):
        raise InvalidRequestError("`classification` is not supported", param="classification")
    wanted = output.parameters.get("binary_data")
    if wanted is not None and not isinstance(wanted, bool):
        raise InvalidRequestError("`binary_data` must be true or false", param="binary_data")
    return wanted


def _refuse_shared_memory(parameters: Mapping[str, Any]) -> None:
    for name in parameters:
        if name.startswith("shared_memory_"):
            raise InvalidRequestError(
                "shared memory is not supported", param="shared_memory_region"
            )


async def _collect(frontend: Frontend, exchange: Exchange, call: Call) -> Sequence[Tensor]:
    async with aclosing(answers(frontend, exchange, call)) as replies:
        return [tensor async for reply in replies for tensor in reply.tensors]


async def _response(
    request: Request, head: dict[str, Any], outputs: Sequence[Tensor], as_bytes: set[str]
) -> Response:
    tails = []
    entries = []
    for each in outputs:
        entry: dict[str, Any] = {"name": each.name, "datatype": each.datatype, "shape": each.shape}
        if each.name in as_bytes:
            tails.append(to_bytes(each))
            entry["parameters"] = {"binary_data_size": len(tails[-1])}
        else:
            entry["data"] = each.json_data
        entries.append(entry)
    document = msgspec.json.encode({**head, "outputs": entries})
    headers = exchange_of(request.scope).headers()
    media_type = "application/json"
    if tails:
        headers[HEADER_LENGTH] = str(len(document))
        media_type = "application/octet-stream"
    data = b"".join([document, *tails])
    encoding = accepted_encoding(request.headers.get("accept-encoding", ""))
    if encoding is not None and len(data) >= COMPRESS_FROM_BYTES:
        data = await asyncio.to_thread(compress, data, encoding)
        headers["content-encoding"] = encoding
    return Response(data, media_type=media_type, headers=headers)
