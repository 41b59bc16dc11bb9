"""``POST /v1/chat/completions``: messages in, the assistant's next message out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import APIRouter
from pydantic import model_validator
from starlette.requests import Request
from starlette.responses import Response

from graft_runtime.errors import InvalidRequestError
from graft_runtime.ipc.messages import TokenScore
from graft_runtime.server.backend import Target
from graft_runtime.server.body import read_object
from graft_runtime.server.choices import fork, generate_groups
from graft_runtime.server.context import Exchange, Frontend, exchange_of, frontend_of
from graft_runtime.server.fields import NumTop, PositiveInt, Unsupported, parse_fields
from graft_runtime.server.generation import Job, Piece, Token
from graft_runtime.server.openai.answer import (
    Usage,
    answer_stream,
    answer_whole,
    finish_reason,
    stop_reason,
)
from graft_runtime.server.openai.logprobs import chat_logprobs, prompt_logprobs
from graft_runtime.server.openai.messages import parse_messages
from graft_runtime.server.openai.sampling import UNSUPPORTED, SamplingFields
from graft_runtime.server.prompts import admit, fit_output, job_ids, refuse_hopeless
from graft_runtime.server.sse import DONE, event

router = APIRouter()

_UNSUPPORTED: Final[Unsupported] = {
    **UNSUPPORTED,
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "tool_prompt": (),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "documents": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "echo": (False,),
    "add_special_tokens": (False,),
    "reasoning_effort": ("none",),
    "include_reasoning": (True, False),
    "thinking_token_budget": (),
    "mm_processor_kwargs": ({},),
}


class ChatFields(SamplingFields):
    """What this surface honours."""

    messages: Any
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool = False
    top_logprobs: NumTop = 0
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatFields:
        if self.top_logprobs and not self.logprobs:
            message = "`top_logprobs` needs `logprobs`"
            raise InvalidRequestError(message, param="top_logprobs")
        return self


@dataclass(frozen=True)
class _Call:
    """A request ready to run."""

    id: str
    created: int
    fields: ChatFields
    target: Target
    jobs: tuple[Job, ...]
    """One per choice."""

    @property
    def job(self) -> Job:
        """The first one; all have the same prompt."""
        return self.jobs[0]

    def envelope(self, object: str) -> dict[str, Any]:
        """Return what every object of the answer begins with."""
        return {
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.target.served_name,
        }


@router.post("/v1/chat/completions", summary="Answer a chat", response_model=None)
async def create_chat_completion(request: Request) -> Response:  # noqa: D103 - see the summary
    return await answer(request, await read_object(request))


async def answer(request: Request, body: Mapping[str, Any]) -> Response:
    """Answer a body that has been read."""
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    fields, exchange.ignored_fields = parse_fields(ChatFields, body, _UNSUPPORTED)
    call = await _prepare(frontend, exchange, fields)
    if fields.stream:
        return answer_stream(request, _events(frontend, exchange, call))
    return await answer_whole(request, _whole(frontend, exchange, call))


async def _prepare(frontend: Frontend, exchange: Exchange, fields: ChatFields) -> _Call:
    messages = parse_messages(fields.messages)
    target = frontend.backend.resolve(fields.model)
    num_chars = sum(len(each["content"]) for each in messages)
    text = await admit(frontend, num_chars)
    refuse_hopeless(text.tokenizer, num_chars, frontend.backend.max_model_len)
    if text.chat is None:
        message = "the model has no chat template; use /v1/completions"
        raise InvalidRequestError(message, param="messages")
    ids = await asyncio.to_thread(
        text.chat.encode,
        text.tokenizer,
        messages,
        add_generation_prompt=fields.add_generation_prompt,
    )
    wanted = fields.max_completion_tokens or fields.max_tokens
    sampling = fields.sampling(
        text.tokenizer,
        max_tokens=fit_output(len(ids), wanted, None, frontend.backend.max_model_len),
        top_logprobs=fields.top_logprobs if fields.logprobs else None,
    )
    keep = fields.include_stop_str_in_output
    job = Job(job_ids(exchange, 1)[0], ids, sampling, target, text.tokenizer, fields.stop, keep)
    jobs = tuple(fork(job, fields.n))
    return _Call(f"chatcmpl-{exchange.request_id}", int(time.time()), fields, target, jobs)


@dataclass
class _Choice:
    """One choice of a whole answer, as it grows."""

    text: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    last: Piece | None = None


async def _whole(frontend: Frontend, exchange: Exchange, call: _Call) -> dict[str, Any]:
    choices = [_Choice() for _ in call.jobs]
    scores: tuple[TokenScore, ...] | None = None
    usage = Usage(len(call.job.token_ids))
    async with aclosing(generate_groups(frontend, exchange, [call.jobs])) as pieces:
        async for index, piece in pieces:
            usage.add(piece)
            choices[index].text.append(piece.text)
            choices[index].tokens += piece.tokens
            choices[index].last = piece
            scores = scores if piece.prompt_scores is None else piece.prompt_scores
    body = {
        **call.envelope("chat.completion"),
        "choices": [_whole_choice(call, index, choice) for index, choice in enumerate(choices)],
        "usage": usage.to_json(),
    }
    if call.fields.prompt_logprobs is not None and scores is not None:
        body["prompt_logprobs"] = prompt_logprobs(
            call.job.tokenizer, call.job.token_ids, scores, call.fields.prompt_logprobs
        )
    return body


def _whole_choice(call: _Call, index: int, choice: _Choice) -> dict[str, Any]:
    end = choice.last.end if choice.last else None
    return {
        "index": index,
        "message": {"role": "assistant", "content": "".join(choice.text)},
        "logprobs": chat_logprobs(choice.tokens) if call.fields.logprobs else None,
        "finish_reason": finish_reason(end),
        "stop_reason": stop_reason(end),
    }


async def _events(
    frontend: Frontend, exchange: Exchange, call: _Call
) -> AsyncGenerator[bytes, None]:
    usage = Usage(len(call.job.token_ids))
    begun: set[int] = set()
    async with aclosing(generate_groups(frontend, exchange, [call.jobs])) as pieces:
        async for index, piece in pieces:
            if index not in begun:
                begun.add(index)
                yield _chunk(call, index, {"role": "assistant", "content": ""}, None, usage)
            usage.add(piece)
            if piece.text or piece.end or call.fields.logprobs:
                delta = {"content": piece.text} if piece.text else {}
                yield _chunk(call, index, delta, piece, usage)
    if call.fields.wants_usage:
        last = {**call.envelope("chat.completion.chunk"), "choices": [], "usage": usage.to_json()}
        yield event(last)
    yield DONE


def _chunk(
    call: _Call, index: int, delta: dict[str, Any], piece: Piece | None, usage: Usage
) -> bytes:
    wants_logprobs = call.fields.logprobs and piece is not None
    choice: dict[str, Any] = {
        "index": index,
        "delta": delta,
        "logprobs": chat_logprobs(piece.tokens) if wants_logprobs and piece else None,
        "finish_reason": finish_reason(piece.end) if piece else None,
    }
    if piece is not None and piece.end is not None:
        choice["stop_reason"] = stop_reason(piece.end)
    chunk = {**call.envelope("chat.completion.chunk"), "choices": [choice]}
    if call.fields.wants_running_usage:
        chunk["usage"] = usage.to_json()
    return event(chunk)
