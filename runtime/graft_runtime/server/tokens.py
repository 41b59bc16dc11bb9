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
from graft_runtime.server.body import read_object
from graft_runtime.server.context import Frontend, exchange_of, frontend_of
from graft_runtime.server.fields import (
    Fields,
    Int32,
    ModelName,
    Unsupported,
    check_token_ids,
    parse_fields,
)
from graft_runtime.server.openai.messages import parse_messages
from graft_runtime.server.prompts import admit, encode_text, refuse_hopeless
from graft_runtime.server.tgi_fields import parse_body
from graft_runtime.text.detokenizer import Detokenizer
from graft_runtime.text.model_text import ModelText
from graft_runtime.text.tokenizer import Tokenizer
from graft_runtime.text.tokenizer_info import read_tokenizer_info

router = APIRouter()

_UNSUPPORTED: Final[Unsupported] = {
    "tools": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "mm_processor_kwargs": ({},),
}
MAX_TOKENS: Final = 1_000_000
"""Tokens that are made text in one request."""


class TokenizeFields(Fields):
    """What is honoured of vLLM's form."""

    model: ModelName | None = None
    prompt: str | None = None
    messages: Any = None
    add_special_tokens: bool | None = None
    """vLLM's default: for a prompt, not for a chat, whose template writes them."""
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeFields(Fields):
    """What is honoured of a request for text."""

    model: ModelName | None = None
    tokens: list[Int32] = Field(max_length=MAX_TOKENS)


class ChatTokenizeFields(Fields):
    """What is honoured of TGI's chat."""

    model: ModelName | None = None
    messages: Any
    add_generation_prompt: bool = True


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
        wanted, exchange.ignored_fields = parse_fields(TokenizeFields, body, _UNSUPPORTED)
        answer = await _tokenize(frontend, wanted)
    return Response(
        msgspec.json.encode(answer), media_type="application/json", headers=exchange.headers()
    )


@router.post("/detokenize", summary="Make tokens text", response_model=None)
async def detokenize(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    body = await read_object(request)
    fields, exchange.ignored_fields = parse_fields(DetokenizeFields, body, {})
    frontend.backend.resolve(fields.model)
    text = await admit(frontend, len(fields.tokens))
    check_token_ids(fields.tokens, text.tokenizer, "tokens")
    prompt = await asyncio.to_thread(
        text.tokenizer.decode, fields.tokens, skip_special_tokens=False
    )
    return JSONResponse({"prompt": prompt}, headers=exchange.headers())


@router.post("/chat_tokenize", summary="Make a chat tokens", response_model=None)
async def chat_tokenize(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    body = await read_object(request)
    fields, exchange.ignored_fields = parse_fields(ChatTokenizeFields, body, _UNSUPPORTED)
    frontend.backend.resolve(fields.model)
    text, ids = await _encode_chat(
        frontend, fields.messages, add_generation_prompt=fields.add_generation_prompt
    )
    pieces = await asyncio.to_thread(_pieces_of_tokens, text.tokenizer, ids)
    templated = "".join(piece["text"] for piece in pieces)
    answer = {"tokenize_response": pieces, "templated_text": templated}
    return JSONResponse(answer, headers=exchange.headers())


@router.get("/tokenizer_info", summary="Describe the tokenizer", response_model=None)
async def tokenizer_info(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend = frontend_of(request)
    folder = frontend.backend.tokenizer_dir()
    if folder is None:
        raise NotReadyError("the model is still being fetched", retry_after_seconds=5)
    return JSONResponse(await asyncio.to_thread(read_tokenizer_info, folder))


async def _tokenize(frontend: Frontend, fields: TokenizeFields) -> dict[str, Any]:
    frontend.backend.resolve(fields.model)
    if (fields.prompt is None) == (fields.messages is None):
        raise InvalidRequestError("give either `prompt` or `messages`", param="prompt")
    if fields.prompt is None:
        text, ids = await _encode_chat(
            frontend, fields.messages, add_generation_prompt=fields.add_generation_prompt
        )
    else:
        text = await admit(frontend, len(fields.prompt))
        special = True if fields.add_special_tokens is None else fields.add_special_tokens
        ids = await _encode(frontend, text.tokenizer, fields.prompt, add_special_tokens=special)
    return {
        "count": len(ids),
        "max_model_len": frontend.backend.max_model_len,
        "tokens": ids,
        "token_strs": text.tokenizer.vocabulary_texts(ids) if fields.return_token_strs else None,
    }


async def _encode(
    frontend: Frontend, tokenizer: Tokenizer, text: str, *, add_special_tokens: bool
) -> list[int]:
    limit = frontend.backend.max_model_len
    return await encode_text(
        tokenizer, text, add_special_tokens=add_special_tokens, max_model_len=limit
    )


async def _encode_chat(
    frontend: Frontend, value: Any, *, add_generation_prompt: bool
) -> tuple[ModelText, list[int]]:
    messages = parse_messages(value)
    num_chars = sum(len(each["content"]) for each in messages)
    text = await admit(frontend, num_chars)
    refuse_hopeless(text.tokenizer, num_chars, frontend.backend.max_model_len)
    if text.chat is None:
        raise InvalidRequestError("the model has no chat template", param="messages")
    ids = await asyncio.to_thread(
        text.chat.encode, text.tokenizer, messages, add_generation_prompt=add_generation_prompt
    )
    return text, ids


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
