"""``POST /v1/chat/completions``: messages in, the assistant's next message out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.body import read_object
from graft_runtime.server.choices import fork
from graft_runtime.server.context import Exchange, Frontend, exchange_of, frontend_of
from graft_runtime.server.fields import header_safe, parse_fields
from graft_runtime.server.generation import Job
from graft_runtime.server.openai.answer import answer_stream, answer_whole
from graft_runtime.server.openai.chat_answer import ChatCall, events, whole
from graft_runtime.server.openai.chat_fields import (
    CHAT_UNSUPPORTED,
    ChatFields,
    TemplateFields,
    conversation,
    parse_chat,
)
from graft_runtime.server.openai.messages import num_chars
from graft_runtime.server.openai.speech import SpeechPlan
from graft_runtime.server.openai.tool_fields import Tools
from graft_runtime.server.prompts import admit, fit_output, job_ids, refuse_hopeless
from graft_runtime.server.structured import constrain
from graft_runtime.text.chat import ChatPrompt, ChatTemplate
from graft_runtime.text.model_text import ModelText

router = APIRouter()


@router.post("/v1/chat/completions", summary="Answer a chat", response_model=None)
async def create_chat_completion(request: Request) -> Response:  # noqa: D103 - see the summary
    return await answer(request, await read_object(request))


async def answer(request: Request, body: Mapping[str, Any]) -> Response:
    """Answer a body that has been read."""
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    fields, exchange.ignored_fields = parse_fields(ChatFields, body, CHAT_UNSUPPORTED)
    call = await prepare(frontend, exchange, fields)
    if fields.stream:
        return answer_stream(request, events(frontend, exchange, call))
    return await answer_whole(request, whole(frontend, exchange, call))


async def prepare(frontend: Frontend, exchange: Exchange, fields: ChatFields) -> ChatCall:
    """Return a chat ready to run.

    Raises:
        RequestError: It cannot be, now or ever.
    """
    tools = fields.parse_tools()
    if tools.mode in ("required", "named"):
        message = "`tool_choice` cannot force a call here; use `auto`"
        raise InvalidRequestError(message, param="tool_choice")
    messages = parse_chat(fields)
    target = frontend.backend.resolve(fields.model)
    text, template, prompt = await encode_chat(frontend, fields, messages, tools)
    unread = fields.chat_template_kwargs.keys() - template.reads
    exchange.ignored_fields += header_safe(
        f"chat_template_kwargs.{name}" for name in sorted(unread)
    )
    plan = SpeechPlan.of(
        template,
        tools,
        is_in_thought=prompt.is_in_thought,
        shows_thoughts=fields.include_reasoning,
    )
    wanted = fields.max_completion_tokens or fields.max_tokens
    limit = frontend.backend.max_model_len
    sampling = fields.sampling(
        text.tokenizer,
        max_tokens=fit_output(len(prompt.token_ids), wanted, None, limit),
        top_logprobs=fields.top_logprobs if fields.logprobs else None,
    )
    sampling = await constrain(frontend, sampling, fields.form)
    job = Job(
        job_ids(exchange, 1)[0],
        prompt.token_ids,
        sampling,
        target,
        text.tokenizer,
        fields.stop,
        fields.include_stop_str_in_output,
        plan.marks(text.tokenizer),
    )
    return ChatCall(
        id=f"chatcmpl-{exchange.request_id}",
        created=int(time.time()),
        fields=fields,
        target=target,
        jobs=tuple(fork(job, fields.n)),
        plan=plan,
        echoed=messages[-1]["content"] if fields.echo and fields.continue_final_message else "",
    )


async def encode_chat(
    frontend: Frontend, fields: TemplateFields, messages: list[dict[str, Any]], tools: Tools
) -> tuple[ModelText, ChatTemplate, ChatPrompt]:
    """Return the text tools and a chat's tokens, made in a thread.

    Raises:
        RequestError: There can be none, now or ever.
    """
    text = await admit(frontend, num_chars(messages))
    refuse_hopeless(text.tokenizer, num_chars(messages), frontend.backend.max_model_len)
    if text.chat is None:
        message = "the model has no chat template; use /v1/completions"
        raise InvalidRequestError(message, param="messages")
    asked = conversation(fields, messages, tools, text.chat)
    prompt = await asyncio.to_thread(text.chat.encode, text.tokenizer, asked)
    return text, text.chat, prompt
