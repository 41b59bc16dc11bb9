"""``POST /v1/embeddings`` in OpenAI's form and ``/embed`` in LoRAX's: texts in, vectors out.

A vector is made of the model's last hidden states: those of the last token, or the mean of all.
"""

from __future__ import annotations

import array
import asyncio
import base64
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from graft_runtime.errors import ContextLengthError, EngineDiedError, InvalidRequestError
from graft_runtime.ipc.messages import Pooling, Sampling
from graft_runtime.server.backend import Target
from graft_runtime.server.body import off_loop, read_object
from graft_runtime.server.context import Exchange, Frontend, exchange_of, frontend_of
from graft_runtime.server.fields import (
    Fields,
    ModelName,
    RouteKey,
    Unsupported,
    check_token_ids,
    parse_fields,
)
from graft_runtime.server.generation import Job, generate
from graft_runtime.server.openai.answer import Usage, answer_whole
from graft_runtime.server.openai.completions import Prompt, parse_prompts
from graft_runtime.server.openai.shapes import PROMPT, as_shape
from graft_runtime.server.prompts import admit, encode_text, job_ids
from graft_runtime.text.model_text import ModelText

router = APIRouter()

MAX_INPUTS: Final = 2048
"""OpenAI's own limit."""
MAX_AT_ONCE: Final = 32
"""Inputs of one request that are in the engine at the same time."""

_UNSUPPORTED: Final[Unsupported] = {
    "api_token": (),
    "dimensions": (),
    "messages": (),
    "chat_template": (),
    "priority": (0,),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
}
_EMBED_UNSUPPORTED: Final[Unsupported] = {
    "adapter_source": (),
    "merged_adapters": (),
    "api_token": (),
}


class EmbeddingFields(Fields):
    """What is honoured."""

    model: ModelName | None = None
    input: Any = Field(json_schema_extra=as_shape(PROMPT))
    user: RouteKey | None = None
    encoding_format: Literal["float", "base64"] = "float"
    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = Field(default=None, ge=-1, lt=2**31)
    pooling: Pooling = "last"
    normalize: bool = True
    """Whether a vector has the length 1."""


class EmbedFields(Fields):
    """What is honoured of LoRAX's form."""

    inputs: str = Field(min_length=1)
    parameters: dict[str, Any] = Field(default={})


class EmbedParameters(Fields):
    """Of ``parameters``."""

    adapter_id: ModelName | None = None


@router.post("/v1/embeddings", summary="Turn texts into vectors", response_model=None)
async def create_embeddings(request: Request) -> Response:  # noqa: D103 - see the summary
    return await answer(request, await read_object(request))


async def answer(request: Request, body: Mapping[str, Any]) -> Response:
    """Answer a body that has been read."""
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    fields, inputs, exchange.ignored_fields = await off_loop(exchange, _read, body)
    target = frontend.backend.resolve(fields.model, exchange.route_key or fields.user)
    jobs = await _prepare(frontend, exchange, fields, inputs, target)
    return await answer_whole(request, _whole(frontend, exchange, fields, jobs))


@router.post("/embed", summary="Turn a text into a vector", response_model=None)
async def embed(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    body = await read_object(request)
    lorax, ignored = parse_fields(EmbedFields, body, {})
    parameters, more = parse_fields(
        EmbedParameters, lorax.parameters, _EMBED_UNSUPPORTED, prefix="parameters."
    )
    exchange.ignored_fields = ignored + more
    fields = EmbeddingFields(input=lorax.inputs)
    target = frontend.backend.resolve(parameters.adapter_id, exchange.route_key)
    jobs = await _prepare(frontend, exchange, fields, [lorax.inputs], target)

    async def whole() -> dict[str, Any]:
        [(vector, _)] = await _vectors(frontend, exchange, fields, jobs)
        return {"embeddings": vector.tolist()}

    return await answer_whole(request, whole())


def _read(body: Mapping[str, Any]) -> tuple[EmbeddingFields, list[Prompt], tuple[str, ...]]:
    fields, ignored = parse_fields(EmbeddingFields, body, _UNSUPPORTED)
    return fields, parse_prompts(fields.input, "input", limit=MAX_INPUTS), ignored


async def _prepare(
    frontend: Frontend,
    exchange: Exchange,
    fields: EmbeddingFields,
    inputs: Sequence[Prompt],
    target: Target,
) -> list[Job]:
    text = await admit(frontend, sum(map(len, inputs)))
    sampling = Sampling(max_tokens=1, pooling=fields.pooling)
    ids = job_ids(exchange, len(inputs))
    return [
        Job(id, await _encode(frontend, text, fields, each), sampling, target, text.tokenizer)
        for id, each in zip(ids, inputs, strict=True)
    ]


async def _encode(
    frontend: Frontend, text: ModelText, fields: EmbeddingFields, given: Prompt
) -> list[int]:
    longest = frontend.backend.max_model_len - 1
    wanted = fields.truncate_prompt_tokens
    if wanted == 0:
        message = "`truncate_prompt_tokens` must be -1 or at least 1"
        raise InvalidRequestError(message, param="truncate_prompt_tokens")
    if isinstance(given, list):
        await asyncio.to_thread(check_token_ids, given, text.tokenizer, "input")
        ids = given
    else:
        limit = frontend.backend.max_model_len if wanted is None else None
        special = fields.add_special_tokens
        ids = await encode_text(
            text.tokenizer, given, add_special_tokens=special, max_model_len=limit
        )
    if wanted is not None:
        ids = ids[-(longest if wanted == -1 else wanted) :]
    if len(ids) > longest:
        message = f"an input may have {longest} tokens, and this one has {len(ids)}"
        raise ContextLengthError(message, param="input")
    return ids


async def _whole(
    frontend: Frontend, exchange: Exchange, fields: EmbeddingFields, jobs: Sequence[Job]
) -> dict[str, Any]:
    usage = Usage(sum(len(job.token_ids) for job in jobs))
    data = []
    for index, (vector, num_cached) in enumerate(await _vectors(frontend, exchange, fields, jobs)):
        usage.cached_tokens += num_cached
        shown = vector.tolist() if fields.encoding_format == "float" else _base64(vector)
        data.append({"object": "embedding", "index": index, "embedding": shown})
    return {
        "id": f"embd-{exchange.request_id}",
        "object": "list",
        "model": jobs[0].target.served_name,
        "data": data,
        "usage": usage.to_json(),
        # LoRAX's name for the same.
        "embeddings": data if fields.encoding_format == "float" else None,
    }


async def _vectors(
    frontend: Frontend, exchange: Exchange, fields: EmbeddingFields, jobs: Sequence[Job]
) -> list[tuple[array.array[float], int]]:
    """Return each input's vector and how many of its tokens came from the cache."""
    turn = asyncio.Semaphore(MAX_AT_ONCE)

    async def one(job: Job) -> tuple[array.array[float], int]:
        async with turn:
            return await _vector(frontend, exchange, job, normalize=fields.normalize)

    tasks = [asyncio.create_task(one(job)) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _vector(
    frontend: Frontend, exchange: Exchange, job: Job, *, normalize: bool
) -> tuple[array.array[float], int]:
    async with aclosing(generate(frontend, exchange, job)) as pieces:
        async for piece in pieces:
            if piece.embedding is not None:
                return _floats(piece.embedding, normalize=normalize), piece.num_cached
    raise EngineDiedError("the engine gave no embedding")


def _floats(data: bytes, *, normalize: bool) -> array.array[float]:
    vector = array.array("f", data)
    if sys.byteorder != "little":
        vector.byteswap()
    length = math.sqrt(math.fsum(value * value for value in vector))
    if not normalize or not length:
        return vector
    return array.array("f", (value / length for value in vector))


def _base64(vector: array.array[float]) -> str:
    if sys.byteorder != "little":
        vector = array.array("f", vector)
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()
