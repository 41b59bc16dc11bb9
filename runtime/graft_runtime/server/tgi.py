"""``POST /``, ``/generate`` and ``/generate_stream``: Text Generation Inference's surface.

Answers are the union of what TGI's and LoRAX's clients read; each ignores the other's fields.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from graft_runtime.errors import ContextLengthError, RequestError
from graft_runtime.server.backend import Target
from graft_runtime.server.body import read_object
from graft_runtime.server.context import Exchange, Frontend, exchange_of, frontend_of
from graft_runtime.server.errors import tgi_error
from graft_runtime.server.exchange import watch
from graft_runtime.server.generation import End, Job, Piece, Token, generate
from graft_runtime.server.prompts import admit, encode_text, fit_output, job_ids
from graft_runtime.server.sse import SseResponse, event
from graft_runtime.server.tgi_fields import GenerateFields, Parameters, parse_body

router = APIRouter()


@dataclass(frozen=True)
class _Call:
    """A request ready to run."""

    inputs: str
    parameters: Parameters
    target: Target
    job: Job
    returns_prompt: bool
    validated_seconds: float

    @property
    def seed(self) -> int | None:
        """The seed, where one had a say."""
        return self.job.sampling.seed if self.parameters.samples else None

    def full_text(self, text: str) -> str:
        """Return the output, with the prompt before it if asked for."""
        return self.inputs + text if self.returns_prompt else text


@router.post("/", summary="Generate, streaming if asked", response_model=None)
async def generate_compatible(request: Request) -> Response:  # noqa: D103 - see the summary
    fields, parameters = await _read(request)
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
    fields, parameters, ignored = parse_body(await read_object(request))
    exchange_of(request.scope).ignored_fields = ignored
    return fields, parameters


async def _prepare(
    request: Request,
    fields: GenerateFields,
    parameters: Parameters,
    *,
    returns_prompt_by_default: bool = False,
) -> _Call:
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    target = frontend.backend.resolve(parameters.adapter_id)
    text = await admit(frontend, len(fields.inputs))
    limit = frontend.backend.max_model_len
    ids = await encode_text(
        text.tokenizer, fields.inputs, add_special_tokens=True, max_model_len=limit
    )
    if parameters.truncate is not None:
        ids = ids[-parameters.truncate :]
    sampling = parameters.sampling(max_tokens=_room(len(ids), parameters, limit))
    id = job_ids(exchange, 1)[0]
    job = Job(id, ids, sampling, target, text.tokenizer, parameters.stop, keep_stop=True)
    wants_prompt = parameters.return_full_text
    returns_prompt = returns_prompt_by_default if wants_prompt is None else wants_prompt
    return _Call(fields.inputs, parameters, target, job, returns_prompt, exchange.elapsed())


def _room(num_inputs: int, parameters: Parameters, limit: int) -> int:
    """Return the length of the output, or refuse in TGI's words."""
    try:
        return fit_output(num_inputs, parameters.max_new_tokens, None, limit)
    except ContextLengthError as error:
        wanted = parameters.max_new_tokens
        if wanted is None:
            message = f"`inputs` must have less than {limit} tokens. Given: {num_inputs}"
        else:
            message = (
                f"`inputs` tokens + `max_new_tokens` must be <= {limit}. "
                f"Given: {num_inputs} `inputs` tokens and {wanted} `max_new_tokens`"
            )
        raise ContextLengthError(message, param=error.param) from error


async def _whole(request: Request, call: _Call, *, as_list: bool = False) -> Response:
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    text, tokens, end = await watch(
        exchange,
        request.receive,
        _collect(frontend, exchange, call.job),
        timeout_seconds=frontend.settings.request_timeout_seconds,
    )
    body: dict[str, Any] = {"generated_text": call.full_text(text)}
    if call.parameters.details:
        body["details"] = _details(call, tokens, end)
    headers = {**exchange.headers(), **_timing(call, exchange, len(tokens))}
    return Response(
        msgspec.json.encode([body] if as_list else body),
        media_type="application/json",
        headers=headers,
    )


async def _collect(
    frontend: Frontend, exchange: Exchange, job: Job
) -> tuple[str, list[Token], End | None]:
    text: list[str] = []
    tokens: list[Token] = []
    end: End | None = None
    async with aclosing(generate(frontend, exchange, job)) as pieces:
        async for piece in pieces:
            text.append(piece.text)
            tokens += piece.tokens
            end = piece.end
    return "".join(text), tokens, end


def _stream(request: Request, call: _Call) -> Response:
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    return SseResponse(
        exchange,
        _events(frontend, exchange, call),
        error_events=_stream_error,
        timeout_seconds=frontend.settings.request_timeout_seconds,
        headers={**exchange.headers(), **_about(call)},
    )


async def _events(
    frontend: Frontend, exchange: Exchange, call: _Call
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
                payload = {"index": count, "token": _token(token), "generated_text": None}
                payload["details"] = None
                if is_last:
                    payload["generated_text"] = call.full_text("".join(text))
                    if call.parameters.details:
                        payload["details"] = _stream_details(call, count, piece.end)
                yield event(payload)


def _at_least_one(piece: Piece) -> Sequence[Token]:
    """Return a piece's tokens; an end without any still needs an event to stand in."""
    if piece.tokens or piece.end is None:
        return piece.tokens
    return (Token(0, "", 0.0, special=True),)


def _stream_error(error: RequestError) -> Sequence[bytes]:
    return (event(tgi_error(error).body),)


def _finish_reason(end: End | None) -> str:
    if end is None or end.reason in ("length", "abort"):
        return "length"
    return "stop_sequence" if end.reason == "stop_string" else "eos_token"


def _token(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "text": token.text,
        "logprob": token.logprob,
        "special": token.special,
        "skipped": False,
    }


def _details(call: _Call, tokens: list[Token], end: End | None) -> dict[str, Any]:
    return {
        "finish_reason": _finish_reason(end),
        "prompt_tokens": len(call.job.token_ids),
        "generated_tokens": len(tokens),
        "skipped_tokens": 0,
        "seed": call.seed,
        "prefill": [],
        "tokens": [_token(token) for token in tokens],
    }


def _stream_details(call: _Call, num_tokens: int, end: End | None) -> dict[str, Any]:
    return {
        "finish_reason": _finish_reason(end),
        "generated_tokens": num_tokens,
        "skipped_tokens": 0,
        "seed": call.seed,
        "input_length": len(call.job.token_ids),
        "prompt_tokens": len(call.job.token_ids),
    }


def _about(call: _Call) -> dict[str, str]:
    """Return the headers that are known before the output."""
    return {
        "x-compute-type": "graft",
        "x-compute-characters": str(len(call.inputs)),
        "x-prompt-tokens": str(len(call.job.token_ids)),
    }


def _timing(call: _Call, exchange: Exchange, num_tokens: int) -> dict[str, str]:
    """Return TGI's headers of a whole answer; all times but the first are milliseconds."""
    total = exchange.elapsed()
    inference = total - call.validated_seconds
    return {
        **_about(call),
        "x-compute-time": f"{total:.6f}",
        "x-generated-tokens": str(num_tokens),
        "x-total-tokens": str(len(call.job.token_ids) + num_tokens),
        "x-total-time": _milliseconds(total),
        "x-validation-time": _milliseconds(call.validated_seconds),
        "x-inference-time": _milliseconds(inference),
        "x-time-per-token": _milliseconds(inference / max(num_tokens, 1)),
    }


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
