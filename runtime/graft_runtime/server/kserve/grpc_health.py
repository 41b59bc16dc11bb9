"""``grpc.health.v1``: the same readiness as ``/readyz``, for probes and load balancers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2

from graft_runtime.server.backend import Backend

SERVICE_NAME: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
POLL_SECONDS: Final = 1.0
"""How often a watched state is looked at."""


class HealthService:
    """Answers for the whole server, whose name is empty, and for each service by its name."""

    def __init__(self, backend: Backend, services: frozenset[str]) -> None:
        """Remember whose health it is.

        Args:
            backend: What runs the models.
            services: Full names of the services that share its health.
        """
        self._backend = backend
        self._services = services

    def handler(self) -> Any:
        """Return the methods, in the form in which a gRPC server takes them."""
        decode = health_pb2.HealthCheckRequest.FromString
        encode = health_pb2.HealthCheckResponse.SerializeToString
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self.check, decode, encode),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch, decode, encode),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def check(self, request: Any, context: Any) -> Any:
        """Tell the state once."""
        if request.service and request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return self._response(request.service)

    async def watch(self, request: Any, _: Any) -> AsyncGenerator[Any, None]:
        """Tell the state, and again whenever it is another."""
        told = None
        while True:
            response = self._response(request.service)
            if response.status != told:
                told = response.status
                yield response
            await asyncio.sleep(POLL_SECONDS)

    def _response(self, service: str) -> Any:
        states = health_pb2.HealthCheckResponse
        if service and service not in self._services:
            return states(status=states.SERVICE_UNKNOWN)
        is_ready = self._backend.health().ready
        return states(status=states.SERVING if is_ready else states.NOT_SERVING)
