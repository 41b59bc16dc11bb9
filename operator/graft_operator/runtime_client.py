"""Reads one runtime pod's report over the contract between the planes.

Called by the pod poller; the only place that knows HTTP to pods.
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from pydantic import ValidationError

from graft_operator.errors import RuntimeUnreachableError
from graft_protocol.naming import STATUS_PATH
from graft_protocol.status import RuntimeStatus


@dataclass(frozen=True)
class Report:
    """A report and the tag that asks for it only if it changed."""

    status: RuntimeStatus
    etag: str | None


class RuntimeClient:
    """Reads reports; one for all pods, so that connections are kept."""

    def __init__(self, timeout_seconds: float) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        self._http = httpx.AsyncClient(timeout=timeout_seconds, limits=limits, trust_env=False)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def read(self, base_url: str, token: str, known: Report | None) -> Report:
        """Return the pod's report; `known` itself if it has not changed.

        Raises:
            RuntimeUnreachableError: No answer, a refusal, or an answer that is no report. The
                poller asks again.
        """
        headers = {"Authorization": f"Bearer {token}"}
        if known is not None and known.etag is not None:
            headers["If-None-Match"] = known.etag
        try:
            response = await self._http.get(base_url + STATUS_PATH, headers=headers)
        except httpx.HTTPError as error:
            raise RuntimeUnreachableError(f"no answer: {type(error).__name__}") from error
        if response.status_code == httpx.codes.NOT_MODIFIED and known is not None:
            return known
        if response.status_code != httpx.codes.OK:
            raise RuntimeUnreachableError(f"status report answered {response.status_code}")
        try:
            # A newer runtime may tell more than this operator knows of.
            status = RuntimeStatus.model_validate_json(response.content, extra="ignore")
        except ValidationError as error:
            raise RuntimeUnreachableError("the status report cannot be read") from error
        return Report(status, response.headers.get("etag"))
