"""The internal port: the pod's report, behind a bearer token. Unknown paths ask for it as well."""

from __future__ import annotations

import hashlib
import secrets

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from graft_protocol.digest import content_hash
from graft_protocol.naming import LASTING_HEADER, STATUS_PATH, UNLESS_LASTING_HEADER
from graft_protocol.status import lasting_hash
from graft_runtime.errors import UnauthorizedError
from graft_runtime.server.backend import Backend

_SCHEME = b"bearer "


class BearerMiddleware:
    """Lets a request pass only with the token, whatever its path: nothing is open by default."""

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        """Guard an application.

        Args:
            app: What to guard.
            token: The secret; never empty.
        """
        self._app = app
        self._digest = _digest(token.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request."""
        if scope["type"] == "http" and not self._permits(scope["headers"]):
            raise UnauthorizedError("a valid bearer token is required")
        await self._app(scope, receive, send)

    def _permits(self, headers: list[tuple[bytes, bytes]]) -> bool:
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1 or not given[0].lower().startswith(_SCHEME):
            return False
        token = given[0][len(_SCHEME) :].strip()
        return secrets.compare_digest(_digest(token), self._digest)


def _digest(token: bytes) -> bytes:
    """Return a hash of fixed length, so that comparing tells nothing about the token's."""
    return hashlib.sha256(token).digest()


def internal_router(backend: Backend) -> APIRouter:
    """Return the routes of the internal port."""
    router = APIRouter()

    @router.get(STATUS_PATH, summary="Report on this pod", response_model=None)
    async def status(request: Request) -> Response:
        report = backend.status()
        headers = {LASTING_HEADER: lasting_hash(report)}
        # Under load every report differs in its counters, which the operator seldom needs.
        if request.headers.get(UNLESS_LASTING_HEADER) == headers[LASTING_HEADER]:
            return Response(status_code=304, headers=headers)
        body = report.to_json().encode()
        headers["etag"] = f'"{content_hash(body)}"'
        if _matches(request.headers.get("if-none-match", ""), headers["etag"]):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    return router


def _matches(header: str, etag: str) -> bool:
    """Tell whether an ``If-None-Match`` header names the current state."""
    named = [each.strip().removeprefix("W/") for each in header.split(",")]
    return etag in named or "*" in named
