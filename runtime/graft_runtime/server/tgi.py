"""``POST /``, ``/generate`` and ``/generate_stream``: Text Generation Inference's surface.

Answers are the union of what TGI's and LoRAX's clients read; each ignores the other's fields.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from graft_runtime.errors import ContextLengthError, RequestError
from graft_runtime.server.body import read_object
from graft_runtime.server.choices import fork, generate_groups
from graft_runtime.server.context import Exchange, Frontend, exchange_of, frontend_of
from graft_runtime.server.errors import tgi_error
from graft_runtime.server.exchange import watch
from graft_runtime.server.generation import Job, Piece, Token, generate
from graft_runtime.server.prompts import (
    admit,
    draw_seed,
    encode_text,
    fit_output,
    job_ids,
)
from graft_runtime.server.sse import SseResponse, event
from graft_runtime.server.structured import constrain
from graft_runtime.server.tgi_details import (
    Call,
    Output,
    details,
    stream_details,
    token_json,
    top_tokens,
)
from graft_runtime.server.tgi_fields import GenerateFields, Parameters, parse_body

router = APIRouter()

CHECKED_TOKENS: Final = 1024
"""TGI looks no further whether an output fits; a longer one ends where the context does."""


@router.post("/", summary="Generate, streaming if asked", response_model=None)
async def generate_compatible(request: Request) -> Response:  # noqa: D103 - see the summary
    return await answer_compatible(request, await read_object(request))


async def answer_compatible(request: Request, body: dict[str, Any]) -> Response:
    """Answer a body that has been read: as a list or as a stream, prompt included by default."""
    fields, parameters = _parse(request, body)
    call = await _prepare(request, fields, parameters, returns_prompt_by_default=True)
    if fields.stream:
        return _stream(request, call)
    return await _whole(request, call, as_list=True)


@router.post("/generate", summary="Generate", response_model=None)
async def generate_whole(request: Request) -> Response:  # noqa: D103 - see the summary
    fields, parameters = await _read(request)
    return await _whole(request, await _prepare(request, fields, parameters))


@router.post("/generate_stream", summary="Generate as a stream", response_model=None)
async def generate_stream(request: Request) -> Response:  # noqa: D103 - see the summary
    fields, parameters = await _read(request)
    return _stream(request, await _prepare(request, fields, parameters))


async def _read(request: Request) -> tuple[GenerateFields, Parameters]:
    return _parse(request, await read_object(request))


def _parse(request: Request, body: dict[str, Any]) -> tuple[GenerateFields, Parameters]:
    fields, parameters, ignored = parse_body(body)
    exchange_of(request.scope).ignored_fields = ignored
    return fields, parameters


async def _prepare(
    request: Request,
    fields: GenerateFields,
    parameters: Parameters,
    *,
    returns_prompt_by_default: bool = False,
) -> Call:
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    name = await parameters.chosen_name(
        frontend, parameters.adapter_id, param="adapter_id", prefix="parameters."
    )
    target = frontend.backend.resolve(name, exchange.route_key)
    text = await admit(frontend, len(fields.inputs))
    limit = frontend.backend.max_model_len
    ids = await encode_text(
        text.tokenizer,
        fields.inputs,
        add_special_tokens=True,
        max_model_len=limit if parameters.truncate is None else None,
    )
    if parameters.truncate is not None:
        ids = ids[-parameters.truncate :]
    room = _room(len(ids), parameters, limit)
    sampling = parameters.sampling(frontend.settings, max_tokens=room)
    sampling = await constrain(frontend, sampling, parameters.form)
    id = job_ids(exchange, 1)[0]
    job = Job(id, ids, sampling, target, text.tokenizer, parameters.stop, keep_stop=True)
    first, *rest = fork(job, parameters.best_of)
    wants_prompt = parameters.return_full_text
    returns_prompt = returns_prompt_by_default if wants_prompt is None else wants_prompt
    jobs = (first, *map(_reseeded, rest))
    return Call(
        fields.inputs,
        parameters,
        jobs,
        returns_prompt,
        exchange.elapsed(),
        frontend.metrics.model_name,
    )


def _reseeded(job: Job) -> Job:
    """Give one of several answers a seed of its own, with which it can be had again alone."""
    sampling = msgspec.structs.replace(job.sampling, seed=draw_seed(), sample_index=0)
    return replace(job, sampling=sampling)


def _room(num_inputs: int, parameters: Parameters, limit: int) -> int:
    """Return the length of the output, or refuse in TGI's words."""
    wanted = parameters.max_new_tokens
    if wanted is not None and num_inputs + min(wanted, CHECKED_TOKENS) <= limit:
        wanted = min(wanted, limit - num_inputs)  # it simply ends there
    try:
        return fit_output(num_inputs, wanted, None, limit)
    except ContextLengthError as error:
        if wanted is None:
            message = f"`inputs` must have less than {limit} tokens. Given: {num_inputs}"
        else:
            message = (
                f"`inputs` tokens + `max_new_tokens` must be <= {limit}. "
                f"Given: {num_inputs} `inputs` tokens and {wanted} `max_new_tokens`"
            )
        raise ContextLengthError(message, param=error.param) from error


async def _whole(request: Request, call: Call, *, as_list: bool = False) -> Response:
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    outputs = await watch(
        exchange,
        request.receive,
        _collect(frontend, exchange, call.jobs),
        timeout_seconds=frontend.settings.request_timeout_seconds,
    )
    best = max(outputs, key=Output.mean_logprob)
    body: dict[str, Any] = {"generated_text": call.full_text(best.text)}
    if call.parameters.has_details:
        body["details"] = details(call, best, outputs)
    num_tokens = sum(len(output.tokens) for output in outputs)
    headers = {**exchange.headers(), **_timing(call, exchange, best, num_tokens)}
    return Response(
        msgspec.json.encode([body] if as_list else body),
        media_type="application/json",
        headers=headers,
    )


async def generated_text(request: Request, body: dict[str, Any]) -> str:
    """Return the text alone that a body asks for."""
    fields, parameters = _parse(request, body)
    call = await _prepare(request, fields, parameters)
    outputs = await _collect(frontend_of(request), exchange_of(request.scope), call.jobs)
    return call.full_text(max(outputs, key=Output.mean_logprob).text)


async def _collect(frontend: Frontend, exchange: Exchange, jobs: Sequence[Job]) -> list[Output]:
    outputs = [Output(job) for job in jobs]
    async with aclosing(generate_groups(frontend, exchange, [jobs])) as pieces:
        async for index, piece in pieces:
            outputs[index].add(piece)
    return outputs


def _stream(request: Request, call: Call) -> Response:
    call.parameters.check_streamable()
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    return SseResponse(
        exchange,
        _events(frontend, exchange, call),
        error_events=_stream_error,
        timeout_seconds=frontend.settings.request_timeout_seconds,
        headers={**exchange.headers(), **_about(call)},
    )


async def _events(
    frontend: Frontend, exchange: Exchange, call: Call
) -> AsyncGenerator[bytes, None]:
    """Yield one event per token; the last also carries the whole text."""
    text: list[str] = []
    count = 0
    async with aclosing(generate(frontend, exchange, call.job)) as pieces:
        async for piece in pieces:
            text.append(piece.text)
            for position, token in enumerate(_at_least_one(piece)):
                count += 1
                is_last = piece.end is not None and position == max(len(piece.tokens) - 1, 0)
                payload = {
                    "index": count,
                    "token": token_json(token, call.parameters),
                    "generated_text": None,
                }
                payload["details"] = None
                if call.parameters.top_n_tokens:
                    payload["top_tokens"] = top_tokens(token, call.parameters.top_n_tokens)
                if is_last:
                    payload["generated_text"] = call.full_text("".join(text))
                    if call.parameters.has_details:
                        payload["details"] = stream_details(call, count, piece.end)
                yield event(payload)


def _at_least_one(piece: Piece) -> Sequence[Token]:
    """Return a piece's tokens; an end without any still needs an event to stand in."""
    if piece.tokens or piece.end is None:
        return piece.tokens
    return (Token(0, "", 0.0, special=True),)


def _stream_error(error: RequestError) -> Sequence[bytes]:
    return (event(tgi_error(error).body),)


def _about(call: Call) -> dict[str, str]:
    """Return the headers that are known before the output."""
    target = call.job.target
    adapter = {} if target.revision is None else {"x-adapter-id": _header_value(target.served_name)}
    source = call.parameters.adapter_source
    if source is not None:
        adapter["x-adapter-source"] = source  # one of those that can be loaded from
    return {
        "x-model-id": _header_value(call.model),
        "x-compute-type": "graft",
        "x-compute-characters": str(len(call.inputs)),
        "x-prompt-tokens": str(len(call.job.token_ids)),
        "x-skipped-tokens": "0",
        "x-accel-buffering": "no",
        **adapter,
    }


def _header_value(text: str) -> str:
    """Return a name as it may stand in a header."""
    return quote(text, safe="/@:.-_ ")


def _timing(call: Call, exchange: Exchange, best: Output, num_tokens: int) -> dict[str, str]:
    """Return TGI's and LoRAX's headers of a whole answer; all times but the first are in ms."""
    total = exchange.elapsed()
    # The engine's clock is another: what lies between the two must not become less than nothing.
    inference = max(0.0, total - call.validated_seconds - best.queue_seconds)
    per_token = _milliseconds(inference / max(num_tokens, 1))
    return {
        **_about(call),
        "x-compute-time": f"{total:.6f}",
        "x-generated-tokens": str(num_tokens),
        "x-total-tokens": str(len(call.job.token_ids) + num_tokens),
        "x-total-time": _milliseconds(total),
        "x-validation-time": _milliseconds(call.validated_seconds),
        "x-queue-time": _milliseconds(best.queue_seconds),
        "x-inference-time": _milliseconds(inference),
        "x-time-to-first-token": _milliseconds(best.first_token_seconds),
        "x-time-per-token": per_token,
        "x-time-per-output-token": per_token,
    }


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
