"""``inference.GRPCInferenceService``: one method per RPC, over the same parts as HTTP."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.json_format import ParseDict

from graft_runtime.errors import RequestError
from graft_runtime.server.body import off_loop
from graft_runtime.server.context import Exchange, Frontend
from graft_runtime.server.kserve import describe, repository
from graft_runtime.server.kserve import inference_pb2 as pb
from graft_runtime.server.kserve.call import Call, answers, prepare, resolve_model
from graft_runtime.server.kserve.contract import refuse_stream
from graft_runtime.server.kserve.grpc_call import (
    abort,
    open_exchange,
    read_metadata,
    refuse,
    run,
)
from graft_runtime.server.kserve.grpc_messages import plain_parameters, read_request, response_to
from graft_runtime.server.kserve.grpc_stream import InferStream
from graft_runtime.server.kserve.tensors import Tensor

SERVICE: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]

M = TypeVar("M")
Behaviour = Callable[[Any, Exchange, Any], Awaitable[Any]]


class InferenceService:
    """The RPCs. Each takes its message, its exchange and the RPC's context."""

    def __init__(self, frontend: Frontend) -> None:
        """Remember what runs the models."""
        self._frontend = frontend

    def handler(self) -> Any:
        """Return all methods, in the form in which a gRPC server takes them."""
        methods = {method.name: self._method(method) for method in SERVICE.methods}
        return grpc.method_handlers_generic_handler(SERVICE.full_name, methods)

    def _method(self, method: Any) -> Any:
        request_type = getattr(pb, method.input_type.name)
        path = f"/{SERVICE.full_name}/{method.name}"
        encode = getattr(pb, method.output_type.name).SerializeToString
        if method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._streaming(path), request_type.FromString, encode
            )
        behaviour = getattr(self, _snake(method.name))
        return grpc.unary_unary_rpc_method_handler(
            self._unary(path, behaviour), request_type.FromString, encode
        )

    def _unary(self, path: str, behaviour: Behaviour) -> Callable[[Any, Any], Awaitable[Any]]:
        """Return a method with its exchange around it, and errors turned into a status."""

        async def call(request: Any, context: Any) -> Any:
            exchange = open_exchange(context, path)
            await context.send_initial_metadata((("x-request-id", exchange.request_id),))
            try:
                read_metadata(exchange, context)
                return await behaviour(request, exchange, context)
            except Exception as error:  # noqa: BLE001 - told to the client as a status
                refusal = refuse(self._frontend, exchange, error)
                await abort(context, refusal)

        return call

    def _streaming(self, path: str) -> Callable[[Any, Any], AsyncGenerator[Any, None]]:
        async def call(
            requests: AsyncIterator[pb.ModelInferRequest], context: Any
        ) -> AsyncGenerator[Any, None]:
            request_id = open_exchange(context, path).request_id
            await context.send_initial_metadata((("x-request-id", request_id),))
            stream = InferStream(self._frontend, context, path)
            async with aclosing(stream.serve(requests)) as responses:
                async for response in responses:
                    yield response

        return call

    # Descriptions

    async def server_live(self, *_: Any) -> pb.ServerLiveResponse:
        """Tell whether the server lives."""
        return pb.ServerLiveResponse(live=self._frontend.backend.health().live)

    async def server_ready(self, *_: Any) -> pb.ServerReadyResponse:
        """Tell whether requests succeed."""
        return pb.ServerReadyResponse(ready=self._frontend.backend.health().ready)

    async def model_ready(self, request: pb.ModelReadyRequest, *_: Any) -> pb.ModelReadyResponse:
        """Tell whether a model can be asked."""
        try:
            resolve_model(self._frontend, request.name, request.version)
        except RequestError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._frontend.backend.health().ready)

    async def server_metadata(self, *_: Any) -> pb.ServerMetadataResponse:
        """Describe the server."""
        return pb.ServerMetadataResponse(**describe.server_metadata())

    async def model_metadata(
        self, request: pb.ModelMetadataRequest, *_: Any
    ) -> pb.ModelMetadataResponse:
        """Describe a model."""
        resolve_model(self._frontend, request.name, request.version)
        return _filled(pb.ModelMetadataResponse(), describe.model_metadata(request.name))

    async def model_config(self, request: pb.ModelConfigRequest, *_: Any) -> pb.ModelConfigResponse:
        """Show a model's configuration."""
        resolve_model(self._frontend, request.name, request.version)
        config = describe.model_config(request.name)
        return _filled(pb.ModelConfigResponse(), {"config": config})

    async def model_statistics(
        self, request: pb.ModelStatisticsRequest, *_: Any
    ) -> pb.ModelStatisticsResponse:
        """Count the inferences of one model, or of all."""
        names = [request.name]
        if request.name:
            resolve_model(self._frontend, request.name, request.version)
        else:
            names = [model.name for model in self._frontend.backend.models()]
        report = self._frontend.metrics.statistics.report(names)
        return _filled(pb.ModelStatisticsResponse(), report)

    # Inference

    async def model_infer(
        self, request: pb.ModelInferRequest, exchange: Exchange, context: Any
    ) -> pb.ModelInferResponse:
        """Run one inference."""
        exchange.num_body_bytes = request.ByteSize()
        inputs = await off_loop(exchange, read_request, request)
        refuse_stream(inputs)
        call = await prepare(
            self._frontend, exchange, request.model_name, request.model_version, inputs
        )
        if exchange.ignored_fields:
            context.set_trailing_metadata(tuple(exchange.headers().items()))
        tensors = await run(
            exchange,
            context,
            self._collect(exchange, call),
            timeout_seconds=self._frontend.settings.request_timeout_seconds,
        )
        return response_to(request, tensors)

    async def _collect(self, exchange: Exchange, call: Call) -> Sequence[Tensor]:
        async with aclosing(answers(self._frontend, exchange, call)) as replies:
            return [tensor async for reply in replies for tensor in reply.tensors]

    # Repository

    async def repository_index(
        self, request: pb.RepositoryIndexRequest, *_: Any
    ) -> pb.RepositoryIndexResponse:
        """List models."""
        found = describe.repository_index(self._frontend.backend, only_ready=request.ready)
        return _filled(pb.RepositoryIndexResponse(), {"models": found})

    async def repository_model_load(
        self, request: pb.RepositoryModelLoadRequest, *_: Any
    ) -> pb.RepositoryModelLoadResponse:
        """Load an adapter."""
        parameters = plain_parameters(request.parameters)
        await repository.load(self._frontend, request.model_name, parameters)
        return pb.RepositoryModelLoadResponse()

    async def repository_model_unload(
        self, request: pb.RepositoryModelUnloadRequest, *_: Any
    ) -> pb.RepositoryModelUnloadResponse:
        """Let an adapter go."""
        await repository.unload(self._frontend, request.model_name)
        return pb.RepositoryModelUnloadResponse()


def _filled(message: M, values: dict[str, Any]) -> M:
    """Return a message with the values that HTTP would send as JSON."""
    ParseDict(values, message)
    return message


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
