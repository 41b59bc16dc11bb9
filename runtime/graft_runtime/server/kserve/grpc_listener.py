"""The gRPC server on its port, in the server process's own event loop."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import grpc
from grpc_reflection.v1alpha import reflection

from graft_runtime.server.context import Frontend
from graft_runtime.server.kserve.grpc_health import SERVICE_NAME, HealthService
from graft_runtime.server.kserve.grpc_service import SERVICE, InferenceService

_logger = logging.getLogger(__name__)

MESSAGE_OVERHEAD_BYTES: Final = 64 * 1024
"""What a message may have beside the text that HTTP would carry in a body."""
MAX_STREAMS: Final = 1024
"""RPCs of one connection at the same time."""
MIN_PING_MILLISECONDS: Final = 10_000


class GrpcListener:
    """All services on one port, from `start` to `stop`."""

    def __init__(self, frontend: Frontend, *, host: str, port: int, grace_seconds: float) -> None:
        """Prepare; nothing is bound yet. Needs a running event loop.

        Args:
            frontend: What runs the models.
            host: Address to bind.
            port: Port to bind; 0 picks a free one.
            grace_seconds: How long RPCs may go on after `stop`.
        """
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._grace_seconds = grace_seconds
        self._server: Any = grpc.aio.server(
            options=(
                (
                    "grpc.max_receive_message_length",
                    frontend.settings.max_body_bytes + MESSAGE_OVERHEAD_BYTES,
                ),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_MILLISECONDS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.so_reuseport", 0),  # two pods on one port would share it in silence
            )
        )
        health = HealthService(frontend.backend, frozenset({SERVICE.full_name}))
        handlers = (InferenceService(frontend).handler(), health.handler())
        self._server.add_generic_rpc_handlers(handlers)
        names = (SERVICE.full_name, SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> int:
        """Bind, serve in the background, and return the port.

        Raises:
            OSError: The address cannot be bound.
        """
        try:
            port: int = self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError(f"cannot bind {self._address}") from error
        await self._server.start()
        _logger.info("gRPC listens", extra={"port": port})
        return port

    async def wait(self) -> None:
        """Return when serving has ended."""
        await asyncio.shield(self._server.wait_for_termination())

    async def stop(self) -> None:
        """Take no new RPCs, let running ones end, and return when all is closed."""
        await self._server.stop(self._grace_seconds)
