"""``ModelStreamInfer``: many requests on one stream, answered as their output comes.

A client that reads slowly holds up its own requests alone: between them and the wire there is room
for a few responses, and whoever wants to send more waits. One that reads nothing loses them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import grpc

from graft_runtime.errors import OverloadedError, SlowReaderError
from graft_runtime.server.body import off_loop
from graft_runtime.server.context import Exchange, Frontend
from graft_runtime.server.exchange import SLOW_READER_SECONDS, stop
from graft_runtime.server.kserve.call import answers, prepare
from graft_runtime.server.kserve.grpc_call import (
    abort,
    open_exchange,
    read_metadata,
    refuse,
    run,
)
from graft_runtime.server.kserve.grpc_messages import (
    FINAL,
    WANTS_EMPTY_FINAL,
    parameters_of,
    read_request,
    response_to,
)
from graft_runtime.server.kserve.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)

_logger = logging.getLogger(__name__)

MAX_RESPONSES: Final = 16
"""Responses of one stream that wait for the client."""
MAX_REQUESTS: Final = 128
"""Requests of one stream that run at the same time."""


class InferStream:
    """One stream, from its first request to the last response."""

    def __init__(self, frontend: Frontend, context: Any, path: str) -> None:
        """Prepare.

        Args:
            frontend: What runs the requests.
            context: The RPC's.
            path: The RPC's name, for log and metrics.
        """
        self._frontend = frontend
        self._context = context
        self._path = path
        self._tasks: set[asyncio.Task[None]] = set()
        self._exchanges: set[Exchange] = set()
        self._ending: asyncio.Task[None] | None = None
        self._responses: asyncio.Queue[ModelStreamInferResponse | None]
        self._responses = asyncio.Queue(MAX_RESPONSES)

    async def serve(
        self, requests: AsyncIterator[ModelInferRequest]
    ) -> AsyncGenerator[ModelStreamInferResponse, None]:
        """Yield responses until the client has no more requests and all are answered.

        Closing this aborts whatever still runs.
        """
        reading = asyncio.create_task(self._read(requests))
        rpc = asyncio.current_task()
        loop = asyncio.get_running_loop()
        try:
            while (response := await self._responses.get()) is not None:
                # The library writes while this waits to go on, and knows no bound for that.
                timer = loop.call_later(SLOW_READER_SECONDS, self._give_up, rpc)
                try:
                    yield response
                finally:
                    timer.cancel()
        finally:
            await stop(reading, *self._tasks)

    def _give_up(self, rpc: asyncio.Task[Any] | None) -> None:
        """End the RPC of a client that does not read; what it asked for is aborted."""
        for exchange in self._exchanges:
            exchange.abort_reason = "slow_reader"
        _logger.info("closed a stream that was not read", extra={"path": self._path})
        if rpc is not None:
            rpc.cancel()
        self._ending = asyncio.create_task(self._end_unread())

    async def _end_unread(self) -> None:
        """Put the reason behind what was written, for a client that reads again some day."""
        error = SlowReaderError("the client does not read its stream")
        with contextlib.suppress(grpc.aio.AbortError, grpc.aio.UsageError):
            await abort(self._context, error)

    async def _read(self, requests: AsyncIterator[ModelInferRequest]) -> None:
        async for request in requests:
            task = asyncio.create_task(self._answer(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        await self._responses.put(None)

    async def _answer(self, request: ModelInferRequest) -> None:
        exchange = open_exchange(self._context, self._path)
        self._exchanges.add(exchange)
        try:
            read_metadata(exchange, self._context)
            if len(self._tasks) > MAX_REQUESTS:
                message = f"one stream runs at most {MAX_REQUESTS} requests at a time"
                raise OverloadedError(message)
            await run(
                exchange,
                self._context,
                self._generate(exchange, request),
                timeout_seconds=self._frontend.settings.request_timeout_seconds,
            )
        except Exception as error:  # noqa: BLE001 - told to the client; the stream goes on
            refusal = refuse(self._frontend, exchange, error)
            response = response_to(request)
            response.parameters[FINAL].bool_param = True
            await self._responses.put(
                ModelStreamInferResponse(error_message=refusal.message, infer_response=response)
            )
        finally:
            self._exchanges.discard(exchange)

    async def _generate(self, exchange: Exchange, request: ModelInferRequest) -> None:
        exchange.num_body_bytes = request.ByteSize()
        inputs = await off_loop(exchange, read_request, request)
        ends_empty = parameters_of(request).get(WANTS_EMPTY_FINAL) is True
        call = await prepare(
            self._frontend, exchange, request.model_name, request.model_version, inputs
        )
        async with aclosing(answers(self._frontend, exchange, call)) as replies:
            async for reply in replies:
                response = response_to(request, reply.tensors)
                await self._send(response, is_last=reply.is_last and not ends_empty)
        if ends_empty:
            await self._send(response_to(request), is_last=True)

    async def _send(self, response: ModelInferResponse, *, is_last: bool) -> None:
        response.parameters[FINAL].bool_param = is_last
        await self._responses.put(ModelStreamInferResponse(infer_response=response))
