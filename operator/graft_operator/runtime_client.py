"""Reads one runtime pod's report over the contract between the planes.

Called by the pod poller; the only place that knows HTTP to pods.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from weakref import WeakValueDictionary

import aiohttp
from pydantic import ValidationError

from graft_operator.errors import RuntimeUnreachableError
from graft_protocol.naming import LASTING_HEADER, STATUS_PATH, UNLESS_LASTING_HEADER
from graft_protocol.reasons import AdapterState
from graft_protocol.status import RevisionReport, RuntimeStatus

_ON_ITS_WAY = frozenset({AdapterState.PENDING, AdapterState.DOWNLOADING, AdapterState.LOADING})


@dataclass(frozen=True)
class Report:
    """A report and the tag that asks for it only if it changed."""

    status: RuntimeStatus
    etag: str | None
    lasting: str | None = None
    """Names what it says, its counters aside."""

    @cached_property
    def is_settled(self) -> bool:
        """Whether the pod is ready and nothing in it is on its way."""
        revisions = self.status.revisions
        return self.status.ready and all(each.state not in _ON_ITS_WAY for each in revisions)


class RuntimeClient:
    """Reads reports; one for all pods, so that connections are kept.

    A kept connection is found by its host, whatever the number of pods. (A client that looks
    through all its connections for each request costs the square of it.)
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None
        self._shared: WeakValueDictionary[str, RevisionReport] = WeakValueDictionary()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def read(
        self, base_url: str, token: str, known: Report | None, *, counts: bool = True
    ) -> Report:
        """Return the pod's report; `known` itself if it has not changed.

        Without `counts`, counters of requests may be as old as `known`: a pod with traffic would
        have another report each time.

        Raises:
            RuntimeUnreachableError: No answer, a refusal, or an answer that is no report. The
                poller asks again.
        """
        headers = {"Authorization": f"Bearer {token}"}
        if known is not None and known.etag is not None:
            headers["If-None-Match"] = known.etag
        if known is not None and known.lasting is not None and not counts:
            headers[UNLESS_LASTING_HEADER] = known.lasting
        try:
            answer = self._http.get(base_url + STATUS_PATH, headers=headers, allow_redirects=False)
            async with answer as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RuntimeUnreachableError(f"no answer: {type(error).__name__}") from error
        if response.status == HTTPStatus.NOT_MODIFIED and known is not None:
            return known
        if response.status != HTTPStatus.OK:
            raise RuntimeUnreachableError(f"status report answered {response.status}")
        try:
            # A newer runtime may tell more than this operator knows of.
            status = RuntimeStatus.model_validate_json(body, extra="ignore")
        except ValidationError as error:
            raise RuntimeUnreachableError("the status report cannot be read") from error
        tags = response.headers.get("ETag"), response.headers.get(LASTING_HEADER)
        return Report(self._sharing(status), *tags)

    @property
    def _http(self) -> aiohttp.ClientSession:
        # Made within a running loop, which may begin after this object.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
            )
        return self._session

    def _sharing(self, status: RuntimeStatus) -> RuntimeStatus:
        """Keep one object for what many pods say alike: most pods say the same of most adapters."""
        revisions = tuple(self._share(report) for report in status.revisions)
        return status.model_copy(update={"revisions": revisions})

    def _share(self, report: RevisionReport) -> RevisionReport:
        known = self._shared.get(report.revision)
        if known is not None and known == report:
            return known
        self._shared[report.revision] = report
        return report
