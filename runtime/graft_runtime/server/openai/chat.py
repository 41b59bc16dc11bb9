"""``POST /v1/chat/completions``: messages in, the assistant's next message out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from graft_runtime.errors import InvalidRequestError
from graft_runtime.ipc.messages import ThoughtLimit
from graft_runtime.server.backend import Target
from graft_runtime.server.body import off_loop, read_object
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
)
from graft_runtime.server.openai.forced_calls import forced_form
from graft_runtime.server.openai.messages import num_chars, parse_messages
from graft_runtime.server.openai.speech import SpeechPlan
from graft_runtime.server.openai.tool_fields import Tools
from graft_runtime.server.prompts import admit, fit_output, job_ids, refuse_hopeless
from graft_runtime.server.structured import Form, constrain
from graft_runtime.server.thought_limits import limit_thoughts
from graft_runtime.text.conversation import ChatPrompt, Draft, TemplateTraits
from graft_runtime.text.model_text import ModelText
from graft_runtime.text.tokenizer import Tokenizer

router = APIRouter()


@dataclass(frozen=True)
class ChatRequest:
    """A body that has been read and checked."""

    fields: ChatFields
    tools: Tools
    messages: list[dict[str, Any]]
    form: Form | None
    """What the output must look like."""
    ignored: tuple[str, ...]
    """Names of fields that nobody here knows."""


def read_chat(body: Mapping[str, Any]) -> ChatRequest:
    """Check a body.

    Raises:
        InvalidRequestError: A value cannot be honoured; ``param`` names it.
    """
    fields, ignored = parse_fields(ChatFields, body, CHAT_UNSUPPORTED)
    tools = fields.parse_tools()
    forced = forced_form(tools)
    if forced is not None and fields.form is not None:
        message = f"`tool_choice` forces a call, which excludes `{fields.form.param}`"
        raise InvalidRequestError(message, param="tool_choice")
    messages = parse_messages(fields.messages)
    return ChatRequest(fields, tools, messages, forced or fields.form, ignored)


@router.post("/v1/chat/completions", summary="Answer a chat", response_model=None)
async def create_chat_completion(request: Request) -> Response:  # noqa: D103 - see the summary
    return await answer(request, await read_object(request))


async def answer(request: Request, body: Mapping[str, Any]) -> Response:
    """Answer a body that has been read."""
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    chat = await off_loop(exchange, read_chat, body)
    exchange.ignored_fields = chat.ignored
    call = await prepare(frontend, exchange, chat)
    if chat.fields.stream:
        return answer_stream(request, events(frontend, exchange, call))
    return await answer_whole(request, whole(frontend, exchange, call))


async def open_events(
    frontend: Frontend, exchange: Exchange, body: Mapping[str, Any]
) -> AsyncGenerator[bytes, None]:
    """Return the events of a body that has been read and asks for a stream."""
    chat = await off_loop(exchange, read_chat, body)
    exchange.ignored_fields = chat.ignored
    return events(frontend, exchange, await prepare(frontend, exchange, chat))


async def prepare(frontend: Frontend, exchange: Exchange, chat: ChatRequest) -> ChatCall:
    """Return a chat ready to run.

    Raises:
        RequestError: It cannot be, now or ever.
    """
    target = await chat.fields.target(frontend, exchange)
    text, template, prompt = await encode_chat(
        frontend, target, chat.fields, chat.messages, chat.tools
    )
    fields = chat.fields.with_defaults(text.sampling_defaults)
    unread = fields.chat_template_kwargs.keys() - template.reads
    names = (f"chat_template_kwargs.{name}" for name in sorted(unread))
    exchange.ignored_fields += header_safe(names)
    plan = SpeechPlan.of(
        template,
        chat.tools,
        is_in_thought=prompt.is_in_thought,
        shows_thoughts=fields.include_reasoning,
        is_constrained=chat.form is not None,
    )
    limit = frontend.backend.max_model_len
    ids = fields.truncated(prompt.token_ids, limit)
    wanted = fields.max_completion_tokens or fields.max_tokens
    sampling = fields.sampling(
        text.tokenizer,
        frontend.settings,
        max_tokens=fit_output(len(ids), wanted, None, limit),
        top_logprobs=fields.top_logprobs if fields.logprobs else None,
        thought_limit=_thought_limit(fields, text.tokenizer, template, plan),
    )
    sampling = await constrain(frontend, sampling, chat.form)
    job = Job(
        id=job_ids(exchange, 1)[0],
        token_ids=ids,
        sampling=sampling,
        target=target,
        tokenizer=text.tokenizer,
        stops=fields.stop,
        keep_stop=fields.include_stop_str_in_output,
        shown_specials=plan.marks(text.tokenizer),
        skip_specials=fields.skip_special_tokens,
        terms=fields.terms,
        stream_interval=fields.stream_interval,
    )
    is_echoed = fields.echo and fields.continue_final_message
    return ChatCall(
        id=f"chatcmpl-{exchange.request_id}",
        created=int(time.time()),
        fields=fields,
        target=target,
        jobs=tuple(fork(job, fields.n)),
        plan=plan,
        echoed=chat.messages[-1]["content"] if is_echoed else "",
    )


def _thought_limit(
    fields: ChatFields, tokenizer: Tokenizer, template: TemplateTraits, plan: SpeechPlan
) -> ThoughtLimit | None:
    """Return how long the model may think, if it thinks."""
    limit = limit_thoughts(
        fields.thinking_token_budget,
        tokenizer,
        thinks=template.thinks,
        is_open=plan.is_in_thought,
    )
    return limit if plan.reads_thoughts else None


async def encode_chat(
    frontend: Frontend,
    target: Target,
    fields: TemplateFields,
    messages: list[dict[str, Any]],
    tools: Tools,
) -> tuple[ModelText, TemplateTraits, ChatPrompt]:
    """Return the text tools, the template's traits and a chat's tokens, made off the loop.

    Raises:
        RequestError: There can be none, now or ever.
    """
    text = await admit(frontend, num_chars(messages))
    if not (isinstance(fields, ChatFields) and fields.truncates):
        refuse_hopeless(text.tokenizer, num_chars(messages), frontend.backend.max_model_len)
    guest = target.template
    if guest is not None:
        traits = TemplateTraits.of(guest.source, guest.reads)
        asked = conversation(fields, messages, tools, traits)
        named = text.named_tokens
        draft = await asyncio.to_thread(Draft, text.tokenizer, asked, traits, named)
        rendered = await frontend.guests.render(guest, draft)
        return text, traits, await asyncio.to_thread(draft.prompt, rendered)
    template = text.chat_for(has_tools=bool(tools.shown))
    if template is None:
        message = "the model has no chat template; use /v1/completions"
        raise InvalidRequestError(message, param="messages")
    asked = conversation(fields, messages, tools, template.traits)
    prompt = await asyncio.to_thread(template.encode, text.tokenizer, asked)
    return text, template.traits, prompt
