"""One request to a Kubernetes API: credentials, patience, and errors in our own words.

Knows HTTP and the official client; it does not know what the objects mean. Called by
`KubernetesCluster` alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import aiohttp
from kubernetes.aio.client.api_client import ApiClient

import graft_operator
from graft_operator.cluster.kubernetes_access import Access
from graft_operator.errors import (
    ClusterError,
    ClusterUnreachableError,
    ConflictError,
    ExpiredError,
    ForbiddenError,
    InvalidObjectError,
    NotFoundError,
    RefusedError,
)

APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
JSON: Final = "application/json"
MESSAGE_MAX = 300
RETRY_AFTER_MAX_SECONDS = 30.0
_AUTH = ["BearerToken"]
_ERRORS: Final[Mapping[int, type[ClusterError]]] = {
    # What most admission webhooks answer with.
    HTTPStatus.BAD_REQUEST: RefusedError,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: RefusedError,
    HTTPStatus.UNAUTHORIZED: ForbiddenError,
    HTTPStatus.FORBIDDEN: ForbiddenError,
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.CONFLICT: ConflictError,
    HTTPStatus.GONE: ExpiredError,
    HTTPStatus.UNPROCESSABLE_ENTITY: InvalidObjectError,
    HTTPStatus.TOO_MANY_REQUESTS: ClusterUnreachableError,
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What to ask; `verb` and `kind` name it for people and metrics."""

    verb: str
    kind: str
    method: str
    path: str
    query: Sequence[tuple[str, str]] = ()
    body: Mapping[str, Any] | None = None
    content_type: str = JSON


class Call(NamedTuple):
    """A request that was made, for metrics. Code 0 means that no answer came."""

    verb: str
    kind: str
    code: int


class _Answer(NamedTuple):
    code: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class KubernetesClient:
    """Makes requests over one pool of connections."""

    access: Access
    timeout_seconds: float
    throttled_tries: int
    on_call: Callable[[Call], None]
    _api: ApiClient | None = None
    _login: asyncio.Lock = field(default_factory=asyncio.Lock)
    _not_before: float = 0.0

    async def close(self) -> None:
        """Close all connections."""
        if self._api is not None:
            await self._api.close()
            self._api = None

    async def request(self, request: Request) -> dict[str, Any]:
        """Make a request and return the document in the answer.

        Credentials that the API no longer takes are renewed once. While the API server asks for
        patience (429), every request of this client waits as long as it asked.

        Raises:
            AccessError: No credentials can be found.
            ClusterError: The answer is an error, or there is none; one class per meaning.
        """
        used = self._api
        answer = await self._patiently(request)
        if answer.code == HTTPStatus.UNAUTHORIZED:
            log.info("the API does not take our credentials; looking for new ones")
            if self._api is used or used is None:
                await self.close()
            answer = await self._patiently(request)
        if answer.code >= HTTPStatus.BAD_REQUEST:
            raise _error_of(request, answer)
        return _document(request, answer)

    async def _patiently(self, request: Request) -> _Answer:
        answer = await self._once(request)
        for _ in range(self.throttled_tries - 1):
            if answer.code != HTTPStatus.TOO_MANY_REQUESTS:
                break
            now = asyncio.get_running_loop().time()
            self._not_before = max(self._not_before, now + _retry_after(answer))
            answer = await self._once(request)
        return answer

    async def _once(self, request: Request) -> _Answer:
        # Another request may hear of a longer wait during this one; it then waits once too little.
        await asyncio.sleep(max(0.0, self._not_before - asyncio.get_running_loop().time()))
        code = 0
        try:
            api = await self._logged_in()
            prepared = await api.param_serialize(
                request.method,
                request.path,
                query_params=list(request.query),
                header_params={"Accept": JSON, "Content-Type": request.content_type},
                body=request.body,
                auth_settings=_AUTH,
            )
            timeout = aiohttp.ClientTimeout(total=self.timeout_seconds)
            response = await api.call_api(*prepared, _request_timeout=timeout)
            body = await response.read()
            code = int(response.status)
            return _Answer(code, response.headers, body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterUnreachableError(
                f"the Kubernetes API does not answer ({request.verb} {request.kind}): "
                f"{str(error) or type(error).__name__}"
            ) from error
        finally:
            self.on_call(Call(request.verb, request.kind, code))

    async def _logged_in(self) -> ApiClient:
        async with self._login:
            if self._api is None:
                self._api = ApiClient(await self.access.configuration())
                self._api.user_agent = f"graft/{graft_operator.__version__}"
            return self._api


def _retry_after(answer: _Answer) -> float:
    text = answer.headers.get("Retry-After", "")
    seconds = float(text) if text.isdigit() else 1.0
    return min(max(seconds, 0.1), RETRY_AFTER_MAX_SECONDS)


def _document(request: Request, answer: _Answer) -> dict[str, Any]:
    try:
        document = json.loads(answer.body)
    except ValueError as error:
        raise ClusterUnreachableError(
            f"{request.verb} {request.kind}: the answer is not JSON"
        ) from error
    if not isinstance(document, dict):
        raise ClusterUnreachableError(f"{request.verb} {request.kind}: the answer is no object")
    return document


def _error_of(request: Request, answer: _Answer) -> ClusterError:
    try:
        status = json.loads(answer.body)
    except ValueError:
        status = {}
    message = str(status.get("message", "")) if isinstance(status, dict) else ""
    text = f"{request.verb} {request.kind}: {answer.code} {message[:MESSAGE_MAX]}".rstrip()
    if answer.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ClusterUnreachableError(text)
    if _is_other_object(status):
        return ConflictError(text)
    return _ERRORS.get(answer.code, ClusterError)(text)


def _is_other_object(status: Any) -> bool:
    """Whether a patch was refused because its uid is not that of the object."""
    details = status.get("details") if isinstance(status, dict) else None
    causes = (details or {}).get("causes") or []
    return any(cause.get("field") == "metadata.uid" for cause in causes)
