"""``/startup`` and ``/vertex``: what platforms of other servers' users call."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, Final

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from graft_runtime.errors import InvalidRequestError
from graft_runtime.ipc.messages import Sampling
from graft_runtime.server import tgi
from graft_runtime.server.body import read_object
from graft_runtime.server.context import exchange_of, frontend_of
from graft_runtime.server.exchange import watch
from graft_runtime.server.fields import Fields, parse_fields
from graft_runtime.server.generation import Job, generate
from graft_runtime.server.openai.chat import prepare, read_chat
from graft_runtime.server.openai.chat_answer import whole as whole_chat
from graft_runtime.server.prompts import admit, job_ids

router = APIRouter()

MAX_INSTANCES: Final = 32


class VertexFields(Fields):
    """What is honoured of Vertex AI's form."""

    instances: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_INSTANCES)


@router.get("/startup", summary="Tell whether one token comes out", response_model=None)
async def startup(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    target = frontend.backend.resolve(None)
    text = await admit(frontend, 1)
    sampling = Sampling(max_tokens=1, temperature=0.0)
    job = Job(job_ids(exchange, 1)[0], [0], sampling, target, text.tokenizer)

    async def one_token() -> None:
        async with aclosing(generate(frontend, exchange, job)) as pieces:
            async for _ in pieces:
                pass

    timeout = frontend.settings.request_timeout_seconds
    await watch(exchange, request.receive, one_token(), timeout_seconds=timeout)
    return Response()


@router.post("/vertex", summary="Generate for several instances", response_model=None)
async def vertex(request: Request) -> Response:  # noqa: D103 - see the summary
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    fields, ignored = parse_fields(VertexFields, await read_object(request), {})

    async def predictions() -> list[str]:
        texts = []
        for index, instance in enumerate(fields.instances):
            if "messages" in instance:
                texts.append(await _chat(request, instance))
            elif "inputs" in instance:
                texts.append(await tgi.generated_text(request, instance))
            else:
                place = f"instances[{index}]"
                message = f"`{place}` needs `inputs` or `messages`"
                raise InvalidRequestError(message, param=place)
        return texts

    timeout = frontend.settings.request_timeout_seconds
    texts = await watch(exchange, request.receive, predictions(), timeout_seconds=timeout)
    exchange.ignored_fields = ignored
    return JSONResponse({"predictions": texts}, headers=exchange.headers())


async def _chat(request: Request, body: Mapping[str, Any]) -> str:
    frontend, exchange = frontend_of(request), exchange_of(request.scope)
    call = await prepare(frontend, exchange, read_chat(body))
    answer = await whole_chat(frontend, exchange, call)
    text: str = answer["choices"][0]["message"]["content"] or ""
    return text
