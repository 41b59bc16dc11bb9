"""Object stores as a source: ``s3://``, ``gs://`` and ``az://`` through obstore.

Every error of the store leaves here as a `ReasonedError`; no other module sees obstore's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import (
    CHUNK_BYTES,
    MAX_LISTED,
    MAX_RESUMES,
    SourceFile,
    backoff_seconds,
)
from graft_runtime.sources.endpoints import SourcePolicy, resolve
from graft_runtime.sources.guard import Guard, guarded
from graft_runtime.sources.store_config import Store, StoreAccess, hosts_of, open_store
from graft_runtime.sources.store_errors import is_broken_stream, translate
from graft_runtime.sources.uri import SourceUri

if TYPE_CHECKING:
    from obstore import BytesStream, GetOptions

_LIST_CHUNK = 200


class ObjectStoreSource:
    """One prefix of one bucket."""

    def __init__(self, uri: SourceUri, access: StoreAccess, policy: SourcePolicy) -> None:
        self._uri = uri
        self._access = access
        self._policy = policy
        self._store: Store | None = None
        self._guard: Guard | None = None
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()

    @property
    def uri(self) -> str:
        """Where this is, for messages."""
        return str(self._uri)

    @property
    def reads_parts(self) -> bool:
        """Always."""
        return True

    async def list_files(self) -> list[SourceFile]:
        """Return the objects directly under the prefix; a sibling prefix never matches."""
        await self._check_resolved()
        store = await self._client()
        prefix = f"{self._uri.path}/" if self._uri.path else ""
        found: list[SourceFile] = []
        seen = 0
        stream = obstore.list(store, self._uri.path or None, chunk_size=_LIST_CHUNK)
        try:
            while True:
                async with asyncio.timeout(self._policy.idle_timeout_seconds):
                    batch = await anext(stream, None)
                if batch is None:
                    return found
                seen += len(batch)
                if seen > MAX_LISTED:
                    message = f"{self.uri} holds more than {MAX_LISTED} objects"
                    raise ReasonedError(Reason.TOO_LARGE, message)
                for meta in batch:
                    name = meta["path"].removeprefix(prefix)
                    # The marker of the folder itself comes back as the prefix without its slash.
                    if meta["path"].startswith(prefix) and name and "/" not in name:
                        found.append(SourceFile(name, meta["size"], _quoted(meta["e_tag"])))
        except (BaseError, OSError) as error:
            raise self._translate(error, self.uri) from error

    async def read(
        self, file: SourceFile, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield an object's bytes, pinned to its ETag; a broken stream goes on where it ended."""
        end = file.size if length is None else offset + length
        for attempt in range(MAX_RESUMES + 1):
            if attempt:
                await asyncio.sleep(backoff_seconds(attempt))
            stream = await self._open(file, offset, end)
            try:
                while True:
                    async with asyncio.timeout(self._policy.idle_timeout_seconds):
                        chunk = await anext(stream, None)
                    if chunk is None:
                        break
                    offset += len(chunk)
                    if offset > end:
                        raise self._error(Reason.SOURCE_CHANGED, file, "has grown")
                    yield bytes(chunk)
            except (BaseError, OSError) as error:
                if not is_broken_stream(error):
                    raise self._translate(error, self._name(file)) from error
            if offset == end:
                return
        message = f"ends after {offset} of {end} bytes, again and again"
        raise self._error(Reason.TRUNCATED_DOWNLOAD, file, message)

    async def aclose(self) -> None:
        """End what guards the client's connections."""
        self._store = None
        await self._stack.aclose()

    async def _client(self) -> Store:
        """Make the client, once; held to the endpoint wherever that can be told."""
        async with self._opening:
            if self._store is None:
                hosts = hosts_of(self._uri, self._access)
                if hosts is not None and not self._policy.ambient.has_proxy:
                    timeout = self._policy.connect_timeout_seconds
                    self._guard = await self._stack.enter_async_context(guarded(hosts, timeout))
                proxy_url = self._guard.url if self._guard is not None else None
                self._store = open_store(self._uri, self._access, self._policy, proxy_url)
            return self._store

    def _translate(self, error: Exception, what: str) -> ReasonedError:
        if self._guard is not None and self._guard.has_refused:
            message = f"{what}: the object store redirects to another host"
            return ReasonedError(Reason.SOURCE_FORBIDDEN, message)
        return translate(error, what)

    async def _open(self, file: SourceFile, offset: int, end: int) -> BytesStream:
        store = await self._client()
        options: GetOptions = {}
        if file.etag is not None:
            options["if_match"] = file.etag
        if (offset, end) != (0, file.size):
            options["range"] = (offset, end)
        key = f"{self._uri.path}/{file.name}" if self._uri.path else file.name
        try:
            async with asyncio.timeout(self._policy.idle_timeout_seconds):
                result = await obstore.get_async(store, key, options=options)
        except (BaseError, OSError) as error:
            raise self._translate(error, self._name(file)) from error
        # Not every store honours the condition; all of them say which object they send.
        other = file.etag is not None and _quoted(result.meta["e_tag"]) not in (None, file.etag)
        if other or result.meta["size"] != file.size or result.range[0] != offset:
            raise self._error(Reason.SOURCE_CHANGED, file, "is not the object that was listed")
        return result.stream(min_chunk_size=CHUNK_BYTES)

    async def _check_resolved(self) -> None:
        """Refuse an endpoint whose name leads to a metadata address."""
        endpoint = self._access.endpoint
        if endpoint is not None:
            await resolve(endpoint.host, endpoint.port, self._policy.connect_timeout_seconds)

    def _name(self, file: SourceFile) -> str:
        return f"{self.uri}/{file.name}"

    def _error(self, reason: Reason, file: SourceFile, what: str) -> ReasonedError:
        return ReasonedError(reason, f"{self._name(file)} {what}")


def _quoted(etag: str | None) -> str | None:
    """Bring an ETag to one spelling: Google and Azure list it without its quotes."""
    if etag is None or etag.startswith("W/"):
        return etag
    plain = etag.strip('"')
    return f'"{plain}"'
