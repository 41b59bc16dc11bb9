"""A proxy between the operator and a real API server that plays a script of faults.

Plain HTTP on loopback towards the operator, whose own token it passes on, so that the rights are
the operator's. It numbers and records every write. Runs in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from graft_operator.cluster.kubernetes_access import Access
from tests.support.kube_operator import TLS_GOODBYE_SECONDS
from tests.support.proof.history import Write
from tests.support.proof.script import (
    Break,
    Breakage,
    Call,
    Delay,
    Fault,
    Kill,
    Lose,
    Refuse,
    Replay,
    Rule,
    Script,
    Skip,
    Twice,
    call_of,
)

START_SECONDS = 60.0
PASSED_ON = ("Accept", "Authorization", "Content-Type", "User-Agent")
PASSED_BACK = ("Content-Type", "Retry-After")
IN_STREAM = {Breakage.GONE: 410, Breakage.ERROR_500: 500, Breakage.ERROR_504: 504}
REFUSED_AS_GONE = Break(Breakage.HTTP_GONE)
AT_ONCE = struct.pack("ii", 1, 0)
"""Lingering for no time: closing sends a reset."""


@dataclass
class _Stream:
    """A watch that is open."""

    call: Call
    broken: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class ApiProxy:
    """A running proxy. Its script may be changed at any time, from any thread."""

    kill: Callable[[], None] = lambda: None
    """Ends the operator, at once."""
    script: Script = field(default_factory=Script)
    writes: list[Write] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Calls and events by verb and kind: ``list pods``."""
    operator: int = 0
    """Which operator is running, from 1."""
    port: int = 0
    _latest: dict[str, bytes] = field(default_factory=dict)
    """By path: the last answer to a list's first page."""
    _remembered: dict[str, bytes] = field(default_factory=dict)
    _streams: list[_Stream] = field(default_factory=list)
    _upstream: aiohttp.ClientSession | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    def kubeconfig(self, token: str) -> str:
        """Return one that leads through the proxy."""
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "p", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "p", "user": {"token": token}}],
            "contexts": [{"name": "p", "context": {"cluster": "p", "user": "p"}}],
            "current-context": "p",
        }
        return str(yaml.safe_dump(document))

    def play(self, *rules: Rule) -> None:
        """Let these rules alone be in force; a `Break` hits watches that are open, too."""
        self.script.play(*rules)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._break_open)

    def release(self) -> None:
        """End all faults, and every watch that is open."""
        self.script.play()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end_all)

    def _end_all(self) -> None:
        for stream in self._streams:
            stream.broken.set()

    def _break_open(self) -> None:
        for stream in self._streams:
            if any(
                isinstance(rule.fault, Break) and rule.matches(stream.call) and not rule.hits
                for rule in self.script.rules
            ):
                stream.broken.set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        call = call_of(request.method, request.path_qs, request.content_type)
        body = await request.read()
        self.counts[f"{call.verb} {call.plural}"] += 1
        write = self._numbered(call, body) if call.is_write else None
        fault = None if call.verb == "watch" else self.script.fault(call)
        if isinstance(fault, Delay):
            await asyncio.sleep(fault.seconds)
        if isinstance(fault, Kill) and fault.side == "before":
            self.kill()
            return _hang_up(request)
        if isinstance(fault, Refuse):
            return _refusal(fault)
        if call.verb == "watch":
            return await self._watch(request, call)
        if isinstance(fault, Replay):
            return web.Response(
                body=self._remembered[request.path], content_type="application/json"
            )
        return await self._forward(request, body, call, write, fault)

    async def _forward(
        self,
        request: web.Request,
        body: bytes,
        call: Call,
        write: int | None,
        fault: Fault | None,
    ) -> web.StreamResponse:
        assert self._upstream is not None
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        async with self._upstream.request(
            request.method, request.path_qs, data=body or None, headers=headers
        ) as answer:
            content = await answer.read()
            kept = {name: answer.headers[name] for name in PASSED_BACK if name in answer.headers}
        if write is not None:
            self._answered(write, answer.status, content)
        if call.verb == "list" and not call.page:
            self._latest[request.path] = content
        if isinstance(fault, Kill):
            self.kill()
            return _hang_up(request)
        if isinstance(fault, Lose):
            return _hang_up(request)
        return web.Response(status=answer.status, body=content, headers=kept)

    def remember(self) -> None:
        """Keep the last answer to each list, for `Replay`."""
        self._remembered = dict(self._latest)

    def _numbered(self, call: Call, body: bytes) -> int:
        document = _parsed(body)
        if call.verb == "create" and not call.name:
            name = str((document.get("metadata") or {}).get("name", ""))
            call = Call(call.verb, call.plural, call.namespace, name)
        where = document.get("preconditions") if call.verb == "delete" else document.get("metadata")
        uid = str((where or {}).get("uid", ""))
        number = len(self.writes) + 1
        self.writes.append(Write(number, call, uid, 0, 0, time.monotonic(), self.operator))
        return number

    def _answered(self, number: int, code: int, content: bytes) -> None:
        old = self.writes[number - 1]
        text = str((_parsed(content).get("metadata") or {}).get("resourceVersion") or "0")
        version = int(text) if text.isdigit() and 200 <= code < 300 else 0
        self.writes[number - 1] = Write(
            number, old.call, old.uid, code, version, old.began, old.operator
        )

    async def _watch(self, request: web.Request, call: Call) -> web.StreamResponse:
        assert self._upstream is not None
        fault = self.script.fault(call)
        if isinstance(fault, Refuse):
            return _refusal(fault)
        if fault == REFUSED_AS_GONE:
            return _refusal(Refuse(410))
        response = web.StreamResponse()
        response.content_type = "application/json"
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        stream = _Stream(call)
        async with self._upstream.get(request.path_qs, headers=headers) as answer:
            if answer.status != 200:
                return web.Response(status=answer.status, body=await answer.read())
            await response.prepare(request)
            self._streams.append(stream)
            try:
                if isinstance(fault, Replay):
                    await stream.broken.wait()
                elif isinstance(fault, Break):
                    await _break(request, response, fault.how)
                else:
                    await self._pump(request, response, answer, stream)
            except (ConnectionError, aiohttp.ClientError):
                pass
            finally:
                self._streams.remove(stream)
        return response

    async def _pump(
        self,
        request: web.Request,
        response: web.StreamResponse,
        answer: aiohttp.ClientResponse,
        stream: _Stream,
    ) -> None:
        reading = asyncio.create_task(self._pass_lines(response, answer, stream.call))
        breaking = asyncio.create_task(stream.broken.wait())
        try:
            await asyncio.wait((reading, breaking), return_when=asyncio.FIRST_COMPLETED)
            if breaking.done() and not reading.done():
                await self._break_open_one(request, response, stream.call)
            elif reading.exception() is not None:
                raise reading.exception() or ConnectionError
        finally:
            for task in (reading, breaking):
                task.cancel()
            await asyncio.gather(reading, breaking, return_exceptions=True)

    async def _break_open_one(
        self, request: web.Request, response: web.StreamResponse, call: Call
    ) -> None:
        if any(rule.fault == REFUSED_AS_GONE and rule.matches(call) for rule in self.script.rules):
            # It is over with this one, and the next one that opens is refused.
            await response.write_eof()
            return
        fault = self.script.fault(call)
        if isinstance(fault, Break):
            await _break(request, response, fault.how)

    async def _pass_lines(
        self, response: web.StreamResponse, answer: aiohttp.ClientResponse, watch: Call
    ) -> None:
        buffer = b""
        async for chunk in answer.content.iter_any():
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                event = _parsed(line)
                metadata: dict[str, Any] = event.get("object", {}).get("metadata") or {}
                call = Call(
                    "event", watch.plural, name=metadata.get("name", ""), type=event.get("type", "")
                )
                fault = self.script.fault(call)
                if isinstance(fault, Skip):
                    self.counts[f"skipped {watch.plural}"] += 1
                    continue
                await response.write((line + b"\n") * (2 if isinstance(fault, Twice) else 1))

    async def run(self, kubeconfig: Path, started: threading.Event) -> None:
        """Serve until cancelled."""
        connection = await Access(kubeconfig, None).connection()
        # No certificate of a client: the token that is passed on says who asks.
        context = ssl.create_default_context(cafile=connection.ca_file)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        self._loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{tail:.*}", self.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        async with aiohttp.ClientSession(
            connection.server, connector=connector, timeout=timeout
        ) as self._upstream:
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                self.port = runner.addresses[0][1]
                started.set()
                await asyncio.Event().wait()
            finally:
                await runner.cleanup()
        await asyncio.sleep(TLS_GOODBYE_SECONDS)


async def _break(request: web.Request, response: web.StreamResponse, how: Breakage) -> None:
    if how in IN_STREAM:
        code = IN_STREAM[how]
        error: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
        }
        error |= {"code": code, "message": "as asked", "reason": "Expired" if code == 410 else ""}
        await response.write(json.dumps({"type": "ERROR", "object": error}).encode() + b"\n")
    elif how is Breakage.GARBAGE:
        await response.write(b"<html>bad gateway</html>\n")
    elif how is Breakage.HALF_LINE:
        await response.write(b'{"type":"MODIFIED","object":{"metadata":{"na')
    elif how is Breakage.STALL:
        await asyncio.Event().wait()
    elif how in (Breakage.CUT, Breakage.RESET):
        _hang_up(request, with_reset=how is Breakage.RESET)
        raise ConnectionResetError
    await response.write_eof()


def _hang_up(request: web.Request, *, with_reset: bool = False) -> web.StreamResponse:
    """Close the connection without an answer."""
    transport = request.transport
    if transport is not None:
        if with_reset:
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE
            )
            transport.abort()
        else:
            transport.close()
    return web.Response()


def _refusal(fault: Refuse) -> web.Response:
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    status = {"kind": "Status", "status": "Failure", "code": fault.code, "message": "as asked"}
    return web.json_response(status, status=fault.code, headers=headers)


def _parsed(text: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        document = json.loads(text)
        if isinstance(document, dict):
            return document
    return {}


@contextmanager
def api_proxy(kubeconfig: Path) -> Iterator[ApiProxy]:
    """Run a proxy before the API server of a kubeconfig, in a thread."""
    proxy, started = ApiProxy(), threading.Event()
    box: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def main() -> None:
        task = asyncio.create_task(proxy.run(kubeconfig, started))
        box.append((asyncio.get_running_loop(), task))
        with contextlib.suppress(asyncio.CancelledError):
            await task

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="proxy", daemon=True)
    thread.start()
    assert started.wait(START_SECONDS), "the proxy does not start"
    try:
        yield proxy
    finally:
        ((loop, task),) = box
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(task.cancel)
        thread.join(START_SECONDS)
