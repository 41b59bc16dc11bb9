"""GET requests to one endpoint, under the rules for sources; hubs and manifests are read with it.

Every address is checked at the moment of connecting, whatever the name says. A redirect is followed
only where the source's rule lets it, and what identifies the caller is never sent along. Nothing is
decoded: the bytes are those that the server sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from graft_protocol.reasons import Reason
from graft_runtime import __version__
from graft_runtime.errors import HttpRefusedError, ReasonedError
from graft_runtime.sources.base import CHUNK_BYTES, backoff_seconds
from graft_runtime.sources.endpoints import Endpoint, SourcePolicy, parse_endpoint
from graft_runtime.sources.http_network import CheckedNetwork, tls_context

_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_MAX_RETRY_AFTER_SECONDS = 10.0
_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, TimeoutError)
_BY_STATUS = {
    401: Reason.SOURCE_FORBIDDEN,
    403: Reason.SOURCE_FORBIDDEN,
    404: Reason.SOURCE_NOT_FOUND,
    410: Reason.SOURCE_NOT_FOUND,
    412: Reason.SOURCE_CHANGED,
    416: Reason.SOURCE_CHANGED,
}
_SENTENCES = {
    Reason.SOURCE_NOT_FOUND: "does not exist",
    Reason.SOURCE_FORBIDDEN: "was refused by the server",
    Reason.SOURCE_CHANGED: "changed while being read",
    Reason.SOURCE_UNAVAILABLE: "cannot be read: the server does not answer",
}


def _nowhere(_: Endpoint) -> bool:
    return False


@dataclass(frozen=True)
class HttpRules:
    """What one source may do."""

    token: str | None = field(default=None, repr=False)
    """Sent to the source's own endpoint and to no other."""
    ca_bundle: str | None = None
    may_redirect: Callable[[Endpoint], bool] = _nowhere
    """Asked for every endpoint that is not the source's own."""


class HttpAnswer:
    """An answer of status 200 or 206 whose body is still to be read."""

    def __init__(self, response: httpcore.Response, idle_timeout_seconds: float) -> None:
        self.status = response.status
        self.headers = _headers_of(response)
        self._response = response
        self._idle_timeout_seconds = idle_timeout_seconds

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in chunks of about `CHUNK_BYTES`.

        Raises:
            OSError: The connection broke, or a chunk took too long (TimeoutError).
        """
        stream = aiter(self._response.aiter_stream())
        ended = False
        while not ended:
            chunk = bytearray()
            try:
                async with asyncio.timeout(self._idle_timeout_seconds):
                    while len(chunk) < CHUNK_BYTES and not ended:
                        part = await anext(stream, None)
                        ended = part is None
                        chunk += part or b""
            except httpcore.TimeoutException as error:
                raise TimeoutError from error
            except (httpcore.NetworkError, httpcore.ProtocolError) as error:
                if chunk:
                    yield bytes(chunk)
                raise ConnectionError(type(error).__name__) from error
            if chunk:
                yield bytes(chunk)


class HttpClient:
    """Asks one endpoint."""

    def __init__(self, endpoint: Endpoint, rules: HttpRules, policy: SourcePolicy) -> None:
        self._endpoint = endpoint
        self._rules = rules
        self._policy = policy
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls_context(rules.ca_bundle),
            network_backend=CheckedNetwork(policy.connect_timeout_seconds),
            keepalive_expiry=30.0,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    @asynccontextmanager
    async def get(
        self, path: str, what: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[HttpAnswer]:
        """Ask for a path (quoted, with its query); `what` names it in messages.

        Raises:
            ReasonedError: SourceNotFound, SourceForbidden, SourceChanged or SourceUnavailable.
        """
        response = await self._send(path, what, headers or {})
        try:
            yield HttpAnswer(response, self._policy.idle_timeout_seconds)
        finally:
            await response.aclose()

    async def get_bytes(self, path: str, what: str, max_bytes: int) -> tuple[bytes, HttpAnswer]:
        """Return a whole small body, and the answer for its headers.

        Raises:
            ReasonedError: As for `get`; TooLarge.
        """
        body = bytearray()
        async with self.get(path, what) as answer:
            try:
                async for chunk in answer.chunks():
                    body += chunk
                    if len(body) > max_bytes:
                        message = f"{what} is larger than {max_bytes} bytes"
                        raise ReasonedError(Reason.TOO_LARGE, message)
            except OSError as error:
                raise _error(Reason.SOURCE_UNAVAILABLE, what) from error
            return bytes(body), answer

    async def get_json(self, path: str, what: str, max_bytes: int) -> tuple[Any, HttpAnswer]:
        """Return a parsed small body, and the answer for its headers.

        Raises:
            ReasonedError: As for `get_bytes`; SourceUnavailable when it is not JSON.
        """
        body, answer = await self.get_bytes(path, what, max_bytes)
        try:
            return json.loads(body), answer
        except (ValueError, RecursionError) as error:
            message = f"{what} cannot be read: the server does not answer in JSON"
            raise ReasonedError(Reason.SOURCE_UNAVAILABLE, message) from error

    async def _send(self, path: str, what: str, headers: Mapping[str, str]) -> httpcore.Response:
        attempt, pause = 0, 0.0
        while True:
            attempt += 1
            await asyncio.sleep(pause)
            pause = backoff_seconds(attempt)
            is_last = attempt > self._policy.max_retries
            try:
                async with asyncio.timeout(self._policy.idle_timeout_seconds):
                    response = await self._follow(path, what, headers)
            except _BROKEN as error:
                if is_last:
                    raise _error(Reason.SOURCE_UNAVAILABLE, what) from error
                continue
            if response.status in {200, 206}:
                return response
            await response.aclose()
            if is_last or response.status not in _AGAIN:
                raise _refusal(response, what)
            pause = max(pause, _retry_after_seconds(response))

    async def _follow(self, path: str, what: str, headers: Mapping[str, str]) -> httpcore.Response:
        """Ask, and go where the answer sends us as long as the rules allow it."""
        url, endpoint = _origin(self._endpoint) + path, self._endpoint
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._ask(url, headers, is_own=endpoint == self._endpoint)
            if response.status not in _REDIRECTS:
                return response
            await response.aclose()
            url = urljoin(url, _headers_of(response).get("location", ""))
            endpoint = _endpoint_of(url, what)
            if endpoint != self._endpoint and not self._rules.may_redirect(endpoint):
                message = f"{what}: the server redirects to another host, {endpoint.host}"
                raise ReasonedError(Reason.SOURCE_FORBIDDEN, message)
        raise ReasonedError(Reason.SOURCE_FORBIDDEN, f"{what}: too many redirects")

    async def _ask(
        self, url: str, headers: Mapping[str, str], *, is_own: bool
    ) -> httpcore.Response:
        sent = {
            "Host": urlsplit(url).netloc,
            "User-Agent": f"graft/{__version__}",
            "Accept-Encoding": "identity",
            **headers,
        }
        if is_own and self._rules.token is not None:
            sent["Authorization"] = f"Bearer {self._rules.token}"
        timeouts = {
            "connect": self._policy.connect_timeout_seconds,
            "read": self._policy.idle_timeout_seconds,
            "write": self._policy.idle_timeout_seconds,
        }
        request = httpcore.Request(
            "GET", url, headers=list(sent.items()), extensions={"timeout": timeouts}
        )
        return await self._pool.handle_async_request(request)


def _origin(endpoint: Endpoint) -> str:
    """Write an endpoint as browsers do: signatures over the host leave out the usual port."""
    usual = {"http": 80, "https": 443}[endpoint.scheme]
    return endpoint.url.removesuffix(f":{usual}") if endpoint.port == usual else endpoint.url


def _endpoint_of(url: str, what: str) -> Endpoint:
    parts = urlsplit(url)
    if not url.isascii() or not url.isprintable() or "@" in parts.netloc:
        message = f"{what}: the server redirects to no plain URL"
        raise ReasonedError(Reason.SOURCE_FORBIDDEN, message)
    return parse_endpoint(f"{parts.scheme}://{parts.netloc}")


def _headers_of(response: httpcore.Response) -> dict[str, str]:
    named = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers)
    return {name.lower(): value for name, value in named}


def _retry_after_seconds(response: httpcore.Response) -> float:
    text = _headers_of(response).get("retry-after", "")
    return min(float(text), _MAX_RETRY_AFTER_SECONDS) if text.isdecimal() else 0.0


def _refusal(response: httpcore.Response, what: str) -> HttpRefusedError:
    reason = _BY_STATUS.get(response.status, Reason.SOURCE_UNAVAILABLE)
    code = _headers_of(response).get("x-error-code", "")
    message = f"{what} {_SENTENCES[reason]} ({response.status})"
    return HttpRefusedError(reason, message, code if code.isalnum() else "")


def _error(reason: Reason, what: str) -> ReasonedError:
    return ReasonedError(reason, f"{what} {_SENTENCES[reason]}")
