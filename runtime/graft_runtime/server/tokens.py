"""``/tokenize``, ``/detokenize``, ``/chat_tokenize`` and ``/tokenizer_info``: text and tokens.

``/tokenize`` has two meanings: a body with ``inputs`` is TGI's, one with ``prompt`` or ``messages``
vLLM's.
"""

from __future__ import annotations

import asyncio
from itertools import accumulate
from typing import Any, Final

import msgspec
from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from graft_runtime.errors import InvalidRequestError, NotReadyError
from graft_runtime.server.backend import Target
from graft_runtime.server.body import off_loop, read_object
from graft_runtime.server.context import Exchange, Frontend, exchange_of, frontend_of
from graft_runtime.server.fields import (
    Fields,
    Int32,
    ModelName,
    check_token_ids,
    parse_fields,
)
from graft_runtime.server.openai.chat import encode_chat
from graft_runtime.server.openai.chat_fields import (
    TEMPLATE_UNSUPPORTED,
    TemplateFields,
)
from graft_runtime.server.openai.messages import parse_messages
from graft_runtime.server.openai.tool_fields import parse_tools
from graft_runtime.server.prompts import admit, encode_text, refuse_hopeless
from graft_runtime.server.tgi_fields import parse_body
from graft_runtime.text.detokenizer import Detokenizer
from graft_runtime.text.model_text import ModelText
from graft_runtime.text.tokenizer import Tokenizer
from graft_runtime.text.tokenizer_info import read_tokenizer_info

router = APIRouter()

MAX_TOKENS: Final = 1_000_000
"""Tokens that are made text in one request."""


class TokenizePromptFields(Fields):
    """What is honoured of vLLM's form for a text."""

    model: ModelName | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatFields(TemplateFields):
    """What is honoured of vLLM's form for a chat."""

    model: ModelName | None = None
    return_token_strs: bool = False


class DetokenizeFields(Fields):
    """What is honoured of a request for text."""

    model: ModelName | None = None
    tokens: list[Int32] = Field(max_length=MAX_TOKENS, fail_fast=True)


class ChatTokenizeFields(TemplateFields):
    """What is honoured of TGI's chat."""

    model: ModelName | None = None


@router.post("/tokenize", summary="Make text tokens", response_model=None)
async def tokenize(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    body = await read_object(request)
    if "inputs" in body:
        fields, parameters, exchange.ignored_fields = parse_body(body)
        frontend.backend.resolve(parameters.adapter_id)
        text = await admit(frontend, len(fields.inputs))
        refuse_hopeless(text.tokenizer, len(fields.inputs), frontend.backend.max_model_len)
        pieces = await asyncio.to_thread(_pieces_of_text, text.tokenizer, fields.inputs)
        answer: Any = pieces[-(parameters.truncate or len(pieces)) :]
    else:
        exchange.family = "openai"
        answer = await _tokenize(frontend, exchange, body)
    return Response(
        msgspec.json.encode(answer), media_type="application/json", headers=exchange.headers()
    )


@router.post("/detokenize", summary="Make tokens text", response_model=None)
async def detokenize(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    body = await read_object(request)
    fields, exchange.ignored_fields = await off_loop(
        exchange, parse_fields, DetokenizeFields, body, {}
    )
    frontend.backend.resolve(fields.model)
    text = await admit(frontend, len(fields.tokens))
    await asyncio.to_thread(check_token_ids, fields.tokens, text.tokenizer, "tokens")
    prompt = await asyncio.to_thread(
        text.tokenizer.decode, fields.tokens, skip_special_tokens=False
    )
    return JSONResponse({"prompt": prompt}, headers=exchange.headers())


@router.post("/chat_tokenize", summary="Make a chat tokens", response_model=None)
async def chat_tokenize(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    body = await read_object(request)
    fields, exchange.ignored_fields = parse_fields(ChatTokenizeFields, body, TEMPLATE_UNSUPPORTED)
    target = frontend.backend.resolve(fields.model, exchange.route_key)
    text, ids = await _encode_chat(frontend, target, fields)
    pieces = await asyncio.to_thread(_pieces_of_tokens, text.tokenizer, ids)
    templated = "".join(piece["text"] for piece in pieces)
    answer = {"tokenize_response": pieces, "templated_text": templated}
    return Response(
        msgspec.json.encode(answer), media_type="application/json", headers=exchange.headers()
    )


@router.get("/tokenizer_info", summary="Describe the tokenizer", response_model=None)
async def tokenizer_info(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend = frontend_of(request)
    folder = frontend.backend.tokenizer_dir()
    if folder is None:
        raise NotReadyError("the model is still being fetched", retry_after_seconds=5)
    return JSONResponse(await asyncio.to_thread(read_tokenizer_info, folder))


async def _tokenize(frontend: Frontend, exchange: Exchange, body: dict[str, Any]) -> dict[str, Any]:
    """Answer vLLM's form, for a text or for a chat."""
    if (body.get("prompt") is None) == (body.get("messages") is None):
        raise InvalidRequestError("give either `prompt` or `messages`", param="prompt")
    if body.get("prompt") is None:
        chat, exchange.ignored_fields = parse_fields(TokenizeChatFields, body, TEMPLATE_UNSUPPORTED)
        target = frontend.backend.resolve(chat.model, exchange.route_key)
        text, ids = await _encode_chat(frontend, target, chat)
        return _counted(frontend, text.tokenizer, ids, with_texts=chat.return_token_strs)
    plain, exchange.ignored_fields = parse_fields(TokenizePromptFields, body, {})
    frontend.backend.resolve(plain.model)
    text = await admit(frontend, len(plain.prompt))
    ids = await encode_text(
        text.tokenizer,
        plain.prompt,
        add_special_tokens=plain.add_special_tokens,
        max_model_len=frontend.backend.max_model_len,
    )
    return _counted(frontend, text.tokenizer, ids, with_texts=plain.return_token_strs)


def _counted(
    frontend: Frontend, tokenizer: Tokenizer, ids: list[int], *, with_texts: bool
) -> dict[str, Any]:
    return {
        "count": len(ids),
        "max_model_len": frontend.backend.max_model_len,
        "tokens": ids,
        "token_strs": tokenizer.vocabulary_texts(ids) if with_texts else None,
    }


async def _encode_chat(
    frontend: Frontend, target: Target, fields: TemplateFields
) -> tuple[ModelText, list[int]]:
    tools = parse_tools(fields.tools, None, is_parallel=True)
    messages = parse_messages(fields.messages)
    text, _, prompt = await encode_chat(frontend, target, fields, messages, tools)
    return text, prompt.token_ids


def _pieces_of_text(tokenizer: Tokenizer, text: str) -> list[dict[str, Any]]:
    """Return a text's tokens in TGI's form: each with its part of the text, by offsets in bytes."""
    sizes = [0, *accumulate(len(character.encode()) for character in text)]
    return [
        {"id": id, "text": text[start:stop], "start": sizes[start], "stop": sizes[stop]}
        for id, start, stop in tokenizer.spans(text)
    ]


def _pieces_of_tokens(tokenizer: Tokenizer, ids: list[int]) -> list[dict[str, Any]]:
    """Return tokens in the same form; their texts together are the whole text."""
    texts = Detokenizer(tokenizer, skip_special_tokens=False)
    pieces = []
    stop = 0
    for id in ids:
        text = texts.push(id)
        start, stop = stop, stop + len(text.encode())
        pieces.append({"id": id, "text": text, "start": start, "stop": stop})
    return pieces
