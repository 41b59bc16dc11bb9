"""Answers the kubelet's probes and Prometheus, on one port of the operator.

It only asks the checks it was given; what is healthy is decided by those who made them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from graft_operator.metrics import OperatorMetrics

Check = Callable[[], str]
"""Returns what is wrong, or nothing."""


class HealthServer:
    """Serves ``/livez``, ``/readyz`` and ``/metrics``. Use it as an async context manager."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        live: Mapping[str, Check],
        ready: Mapping[str, Check],
        metrics: OperatorMetrics,
    ) -> None:
        """Make a server.

        Args:
            host: Address to listen on.
            port: Port to listen on; 0 picks a free one.
            live: Checks that a restart of the process would mend.
            ready: Checks that only time, or somebody else, can mend.
            metrics: What ``/metrics`` shows.
        """
        self._address = (host, port)
        self._live = live
        self._ready = ready
        self._metrics = metrics
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._show_metrics)
        self._runner = web.AppRunner(app, access_log=None)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, *self._address).start()
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._runner.addresses[0][1])

    async def _livez(self, _: web.Request) -> web.Response:
        return _answer(self._live)

    async def _readyz(self, _: web.Request) -> web.Response:
        return _answer(self._ready)

    async def _show_metrics(self, _: web.Request) -> web.Response:
        page = generate_latest(self._metrics.registry)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(checks: Mapping[str, Check]) -> web.Response:
    problems = {name: problem for name, check in checks.items() if (problem := check())}
    if not problems:
        return web.Response(text="ok\n")
    lines = (f"{name}: {problem}\n" for name, problem in problems.items())
    return web.Response(status=503, text="".join(lines))
