"""``POST /v1/completions``: text or tokens in, text out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from fastapi import APIRouter
from pydantic import Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.body import off_loop, read_object
from graft_runtime.server.choices import fork
from graft_runtime.server.context import Exchange, Frontend, exchange_of, frontend_of
from graft_runtime.server.fields import NumTop, Unsupported, check_token_ids, parse_fields
from graft_runtime.server.generation import Job
from graft_runtime.server.openai.answer import answer_stream, answer_whole
from graft_runtime.server.openai.completion_answer import Completion, Prompted, events, whole
from graft_runtime.server.openai.shapes import PROMPT, as_shape
from graft_runtime.server.openai.shown_fields import SHOWN_UNSUPPORTED, ShownFields
from graft_runtime.server.prompts import admit, encode_text, fit_output, job_ids
from graft_runtime.server.structured import constrain
from graft_runtime.server.thought_limits import limit_after
from graft_runtime.text.tokenizer import Tokenizer

router = APIRouter()

DEFAULT_MAX_TOKENS: Final = 16
MAX_PROMPTS: Final = 32
"""Prompts of one request; each becomes a request of its own in the engine."""

_UNSUPPORTED: Final[Unsupported] = {
    **SHOWN_UNSUPPORTED,
    "suffix": ("",),
    "prompt_embeds": (),
}

Prompt = str | list[int]


class CompletionFields(ShownFields):
    """What this surface honours."""

    prompt: Any = Field(json_schema_extra=as_shape(PROMPT))
    max_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    logprobs: NumTop | None = None
    echo: bool = False
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _no_output_needs_an_echo(self) -> CompletionFields:
        if self.max_tokens == 0 and not self.echo:
            message = "`max_tokens` must be at least 1 without `echo`"
            raise InvalidRequestError(message, param="max_tokens")
        if self.max_tokens == 0 and self.logprob_token_ids is not None:
            message = "`logprob_token_ids` needs an output: `max_tokens` must not be 0"
            raise InvalidRequestError(message, param="logprob_token_ids")
        return self


@router.post("/v1/completions", summary="Complete prompts", response_model=None)
async def create_completion(request: Request) -> Response:  # noqa: D103 - see the summary
    return await answer(request, await read_object(request))


async def answer(request: Request, body: Mapping[str, Any]) -> Response:
    """Answer a body that has been read."""
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    fields, prompts, exchange.ignored_fields = await off_loop(exchange, _read, body)
    call = await _prepare(frontend, exchange, fields, prompts)
    if fields.stream:
        return answer_stream(request, events(frontend, exchange, call))
    return await answer_whole(request, whole(frontend, exchange, call))


async def open_events(
    frontend: Frontend, exchange: Exchange, body: Mapping[str, Any]
) -> AsyncGenerator[bytes, None]:
    """Return the events of a body that has been read and asks for a stream."""
    fields, prompts, exchange.ignored_fields = await off_loop(exchange, _read, body)
    call = await _prepare(frontend, exchange, fields, prompts)
    return events(frontend, exchange, call)


def _read(body: Mapping[str, Any]) -> tuple[CompletionFields, list[Prompt], tuple[str, ...]]:
    fields, ignored = parse_fields(CompletionFields, body, _UNSUPPORTED)
    prompts = parse_prompts(fields.prompt)
    if len(prompts) * fields.n > MAX_PROMPTS:
        message = f"`prompt` and `n` ask for more than {MAX_PROMPTS} choices"
        raise InvalidRequestError(message, param="n")
    return fields, prompts, ignored


async def _prepare(
    frontend: Frontend, exchange: Exchange, fields: CompletionFields, prompts: list[Prompt]
) -> Completion:
    target = await fields.target(frontend, exchange)
    text = await admit(frontend, sum(map(len, prompts)))
    fields = fields.with_defaults(text.sampling_defaults)
    limit = frontend.backend.max_model_len
    groups = []
    for id, prompt in zip(job_ids(exchange, len(prompts)), prompts, strict=True):
        ids = await _encode(text.tokenizer, prompt, fields, limit)
        # Without output one token is generated all the same, and left out of the answer.
        wanted = 1 if fields.max_tokens == 0 else fields.max_tokens
        thoughts = await limit_after(fields.thinking_token_budget, text, ids)
        sampling = fields.sampling(
            text.tokenizer,
            frontend.settings,
            max_tokens=fit_output(len(ids), wanted, DEFAULT_MAX_TOKENS, limit),
            top_logprobs=fields.logprobs,
            prompt_logprobs=fields.logprobs if fields.echo else None,
            thought_limit=thoughts,
        )
        sampling = await constrain(frontend, sampling, fields.form)
        job = Job(
            id=id,
            token_ids=ids,
            sampling=sampling,
            target=target,
            tokenizer=text.tokenizer,
            stops=fields.stop,
            keep_stop=fields.include_stop_str_in_output,
            skip_specials=fields.skip_special_tokens,
            terms=fields.terms,
            stream_interval=fields.stream_interval,
        )
        shown = await _shown(text.tokenizer, prompt) if fields.echo else ""
        groups.append(Prompted(shown, tuple(fork(job, fields.n))))
    return Completion(
        id=f"cmpl-{exchange.request_id}",
        created=int(time.time()),
        groups=tuple(groups),
        num_top=fields.logprobs,
        num_prompt_top=fields.prompt_logprobs,
        echoes=fields.echo,
        has_output=fields.max_tokens != 0,
        wants_usage=fields.wants_usage,
        wants_running_usage=fields.wants_running_usage,
        returns_ids=fields.return_token_ids,
        names_by_id=fields.return_tokens_as_token_ids,
    )


async def _shown(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """Return a prompt as it is echoed, without stalling the loop."""
    if isinstance(prompt, str):
        return prompt
    return await asyncio.to_thread(tokenizer.decode, prompt, skip_special_tokens=False)


async def _encode(
    tokenizer: Tokenizer, prompt: Prompt, fields: CompletionFields, limit: int
) -> list[int]:
    if isinstance(prompt, list):
        await asyncio.to_thread(check_token_ids, prompt, tokenizer, "prompt")
        return fields.truncated(prompt, limit)
    ids = await encode_text(
        tokenizer,
        prompt,
        add_special_tokens=fields.add_special_tokens,
        max_model_len=None if fields.truncates else limit,
    )
    return fields.truncated(ids, limit)


def parse_prompts(value: Any, param: str = "prompt", *, limit: int = MAX_PROMPTS) -> list[Prompt]:
    """Return the prompts in any of their four forms: text, texts, tokens, lists of tokens.

    Args:
        value: The field.
        param: Its name.
        limit: How many there may be.

    Raises:
        InvalidRequestError: None of these, empty, or too many.
    """
    if isinstance(value, str) or _is_tokens(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise _bad(param, "must be a string, a list of strings, token ids or lists of token ids")
    if len(value) > limit:
        raise _bad(param, f"has more than {limit} prompts")
    if not (all(isinstance(each, str) for each in value) or all(map(_is_tokens, value))):
        raise _bad(param, "must hold only strings, or only lists of token ids")
    if not all(value):
        raise _bad(param, "must not be empty")
    return value


def _is_tokens(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, int) and not isinstance(each, bool) for each in value)
    )


def _bad(param: str, fault: str) -> InvalidRequestError:
    return InvalidRequestError(f"`{param}` {fault}", param=param)
