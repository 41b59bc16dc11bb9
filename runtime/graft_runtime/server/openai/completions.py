"""``POST /v1/completions``: text or tokens in, text out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.backend import Target
from graft_runtime.server.body import read_object
from graft_runtime.server.context import Exchange, Frontend, exchange_of, frontend_of
from graft_runtime.server.fields import PositiveInt, Unsupported, check_token_ids, parse_fields
from graft_runtime.server.generation import Job, Piece, Token, generate
from graft_runtime.server.merge import merge
from graft_runtime.server.openai.answer import (
    Usage,
    answer_stream,
    answer_whole,
    finish_reason,
    round_logprob,
    stop_reason,
)
from graft_runtime.server.openai.sampling import UNSUPPORTED, SamplingFields
from graft_runtime.server.prompts import admit, encode_text, fit_output, job_ids
from graft_runtime.server.sse import DONE, event
from graft_runtime.text.tokenizer import Tokenizer

router = APIRouter()

DEFAULT_MAX_TOKENS: Final = 16
MAX_PROMPTS: Final = 32
"""Prompts of one request; each becomes a request of its own in the engine."""

_UNSUPPORTED: Final[Unsupported] = {
    **UNSUPPORTED,
    "echo": (False,),
    "suffix": ("",),
    "prompt_embeds": (),
}

Prompt = str | list[int]


class CompletionFields(SamplingFields):
    """What this surface honours."""

    prompt: Any
    max_tokens: PositiveInt | None = None
    logprobs: int | None = Field(default=None)
    add_special_tokens: bool = True


@dataclass
class _Choice:
    """One choice of a whole answer, as it grows."""

    text: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    last: Piece | None = None


@dataclass(frozen=True)
class _Call:
    """A request ready to run."""

    id: str
    created: int
    fields: CompletionFields
    target: Target
    jobs: tuple[Job, ...]

    def envelope(self) -> dict[str, Any]:
        """Return what every object of the answer begins with."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.target.served_name,
        }

    def usage(self) -> Usage:
        """Return the counts before any output."""
        return Usage(sum(len(job.token_ids) for job in self.jobs))


@router.post("/v1/completions", summary="Complete prompts", response_model=None)
async def create_completion(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    body = await read_object(request)
    fields, exchange.ignored_fields = parse_fields(CompletionFields, body, _UNSUPPORTED)
    call = await _prepare(frontend, exchange, fields)
    if fields.stream:
        return answer_stream(request, _events(frontend, exchange, call))
    return await answer_whole(request, _whole(frontend, exchange, call))


async def _prepare(frontend: Frontend, exchange: Exchange, fields: CompletionFields) -> _Call:
    if fields.logprobs:
        message = "`logprobs` above 0 is not supported: only the chosen token's is known"
        raise InvalidRequestError(message, param="logprobs")
    prompts = parse_prompts(fields.prompt)
    target = frontend.backend.resolve(fields.model)
    text = await admit(frontend, sum(map(len, prompts)))
    limit = frontend.backend.max_model_len
    jobs = []
    for id, prompt in zip(job_ids(exchange, len(prompts)), prompts, strict=True):
        ids = await _encode(text.tokenizer, prompt, fields, limit)
        sampling = fields.sampling(
            text.tokenizer,
            max_tokens=fit_output(len(ids), fields.max_tokens, DEFAULT_MAX_TOKENS, limit),
            logprobs=fields.logprobs is not None,
        )
        keep = fields.include_stop_str_in_output
        jobs.append(Job(id, ids, sampling, target, text.tokenizer, fields.stop, keep))
    name = f"cmpl-{exchange.request_id}"
    return _Call(name, int(time.time()), fields, target, tuple(jobs))


async def _encode(
    tokenizer: Tokenizer, prompt: Prompt, fields: CompletionFields, limit: int
) -> list[int]:
    if isinstance(prompt, list):
        check_token_ids(prompt, tokenizer, "prompt")
        return prompt
    return await encode_text(
        tokenizer, prompt, add_special_tokens=fields.add_special_tokens, max_model_len=limit
    )


def parse_prompts(value: Any) -> list[Prompt]:
    """Return the prompts in any of their four forms: text, texts, tokens, lists of tokens.

    Raises:
        InvalidRequestError: None of these, empty, or too many.
    """
    if isinstance(value, str) or _is_tokens(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise _bad_prompt("must be a string, a list of strings, token ids or lists of token ids")
    if len(value) > MAX_PROMPTS:
        raise _bad_prompt(f"has more than {MAX_PROMPTS} prompts")
    if not (all(isinstance(each, str) for each in value) or all(map(_is_tokens, value))):
        raise _bad_prompt("must hold only strings, or only lists of token ids")
    if not all(value):
        raise _bad_prompt("must not be empty")
    return value


def _is_tokens(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, int) and not isinstance(each, bool) for each in value)
    )


def _bad_prompt(fault: str) -> InvalidRequestError:
    return InvalidRequestError(f"`prompt` {fault}", param="prompt")


async def _whole(frontend: Frontend, exchange: Exchange, call: _Call) -> dict[str, Any]:
    choices = [_Choice() for _ in call.jobs]
    usage = call.usage()
    async with aclosing(merge([generate(frontend, exchange, job) for job in call.jobs])) as pieces:
        async for index, piece in pieces:
            choice = choices[index]
            choice.text.append(piece.text)
            choice.tokens += piece.tokens
            choice.last = piece
            usage.add(piece)
    wants_logprobs = call.fields.logprobs is not None
    return {
        **call.envelope(),
        "choices": [
            {
                "index": index,
                "text": "".join(choice.text),
                "logprobs": logprobs_json(choice.tokens, 0) if wants_logprobs else None,
                "finish_reason": finish_reason(choice.last.end if choice.last else None),
                "stop_reason": stop_reason(choice.last.end if choice.last else None),
            }
            for index, choice in enumerate(choices)
        ],
        "usage": usage.to_json(),
    }


async def _events(
    frontend: Frontend, exchange: Exchange, call: _Call
) -> AsyncGenerator[bytes, None]:
    usage = call.usage()
    offsets = [0] * len(call.jobs)
    async with aclosing(merge([generate(frontend, exchange, job) for job in call.jobs])) as pieces:
        async for index, piece in pieces:
            usage.add(piece)
            logprobs = None
            if call.fields.logprobs is not None:
                logprobs = logprobs_json(piece.tokens, offsets[index])
                offsets[index] += sum(len(token.text) for token in piece.tokens)
            chunk = {**call.envelope(), "choices": [_chunk_choice(index, piece, logprobs)]}
            if call.fields.wants_running_usage:
                chunk["usage"] = usage.to_json()
            if piece.text or piece.end or logprobs:
                yield event(chunk)
    if call.fields.wants_usage:
        yield event({**call.envelope(), "choices": [], "usage": usage.to_json()})
    yield DONE


def _chunk_choice(index: int, piece: Piece, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "index": index,
        "text": piece.text,
        "logprobs": logprobs,
        "finish_reason": finish_reason(piece.end),
        "stop_reason": stop_reason(piece.end),
    }


def logprobs_json(tokens: list[Token] | tuple[Token, ...], offset: int) -> dict[str, Any]:
    """Return the log probabilities of chosen tokens, in OpenAI's form of parallel lists.

    Args:
        tokens: What was generated.
        offset: Where in the text the first of them begins.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    values = [round_logprob(token.logprob) for token in tokens]
    return {
        "text_offset": offsets,
        "token_logprobs": values,
        "tokens": [token.text for token in tokens],
        "top_logprobs": [{token.text: value} for token, value in zip(tokens, values, strict=True)],
    }
