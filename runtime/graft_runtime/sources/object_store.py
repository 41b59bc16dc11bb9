"""S3 and its relatives as a source: ``s3://bucket/prefix`` through obstore.

Every error of the store leaves here as a `ReasonedError`; no other module sees obstore's own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import CHUNK_BYTES, MAX_LISTED, SourceFile
from graft_runtime.sources.endpoints import Endpoint, SourcePolicy, check_address
from graft_runtime.sources.uri import SourceUri

if TYPE_CHECKING:
    from obstore import BytesStream, GetOptions
    from obstore.store import ClientConfig, S3Config, S3Credential

_DEFAULT_REGION = "us-east-1"
_LIST_CHUNK = 200
_MAX_RESUMES = 3
"""How often one file's stream is taken up again after the connection broke."""

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z]{1,64})</Code>")
_BY_STATUS = {
    "401": Reason.SOURCE_FORBIDDEN,
    "403": Reason.SOURCE_FORBIDDEN,
    "404": Reason.SOURCE_NOT_FOUND,
    "412": Reason.SOURCE_CHANGED,
    "416": Reason.SOURCE_CHANGED,
}
_BY_CODE = {
    "ExpiredToken": Reason.SOURCE_FORBIDDEN,
    "InvalidToken": Reason.SOURCE_FORBIDDEN,
    "AuthorizationHeaderMalformed": Reason.SOURCE_FORBIDDEN,
    "PermanentRedirect": Reason.SOURCE_FORBIDDEN,
}


@dataclass(frozen=True)
class StoreAccess:
    """How to reach a bucket; already admitted by the policy."""

    credential: Credential
    endpoint: Endpoint | None
    """None means the provider's own, derived from the region."""
    region: str | None


class ObjectStoreSource:
    """One prefix of one bucket."""

    def __init__(self, uri: SourceUri, access: StoreAccess, policy: SourcePolicy) -> None:
        self._uri = uri
        self._access = access
        self._policy = policy
        self._store = _open_store(uri.bucket, access, policy)

    @property
    def uri(self) -> str:
        """Where this is, for messages."""
        return str(self._uri)

    async def list_files(self) -> list[SourceFile]:
        """Return the objects directly under the prefix; a sibling prefix never matches."""
        await self._check_resolved()
        prefix = f"{self._uri.path}/" if self._uri.path else ""
        found: list[SourceFile] = []
        seen = 0
        stream = obstore.list(self._store, self._uri.path or None, chunk_size=_LIST_CHUNK)
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
                        found.append(SourceFile(name, meta["size"], meta["e_tag"]))
        except (BaseError, OSError) as error:
            raise _translate(error, self.uri) from error

    async def read(self, file: SourceFile) -> AsyncGenerator[bytes, None]:
        """Yield one object's bytes, pinned to its ETag; a broken stream goes on where it ended."""
        offset = 0
        for attempt in range(_MAX_RESUMES + 1):
            if attempt:
                await asyncio.sleep(_backoff_seconds(attempt))
            stream = await self._open(file, offset)
            try:
                while True:
                    async with asyncio.timeout(self._policy.idle_timeout_seconds):
                        chunk = await anext(stream, None)
                    if chunk is None:
                        break
                    offset += len(chunk)
                    if offset > file.size:
                        raise self._error(Reason.SOURCE_CHANGED, file, "has grown")
                    yield bytes(chunk)
            except (BaseError, OSError) as error:
                if not _is_broken_stream(error):
                    raise _translate(error, self._name(file)) from error
            if offset == file.size:
                return
        message = f"ends after {offset} of {file.size} bytes, again and again"
        raise self._error(Reason.TRUNCATED_DOWNLOAD, file, message)

    async def _open(self, file: SourceFile, offset: int) -> BytesStream:
        options: GetOptions = {}
        if file.etag is not None:
            options["if_match"] = file.etag
        if offset:
            options["range"] = {"offset": offset}
        key = f"{self._uri.path}/{file.name}" if self._uri.path else file.name
        try:
            async with asyncio.timeout(self._policy.idle_timeout_seconds):
                result = await obstore.get_async(self._store, key, options=options)
        except (BaseError, OSError) as error:
            raise _translate(error, self._name(file)) from error
        if result.meta["size"] != file.size or result.range[0] != offset:
            raise self._error(Reason.SOURCE_CHANGED, file, "is not the object that was listed")
        return result.stream(min_chunk_size=CHUNK_BYTES)

    async def _check_resolved(self) -> None:
        """Refuse an endpoint whose name leads to a metadata address."""
        endpoint = self._access.endpoint
        if endpoint is None:
            return
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._policy.connect_timeout_seconds):
                found = await loop.getaddrinfo(endpoint.host, endpoint.port)
        except OSError as error:
            message = f"{endpoint.host} cannot be resolved"
            raise ReasonedError(Reason.SOURCE_UNAVAILABLE, message) from error
        for *_, address in found:
            check_address(ipaddress.ip_address(str(address[0]).partition("%")[0]))

    def _name(self, file: SourceFile) -> str:
        return f"{self.uri}/{file.name}"

    def _error(self, reason: Reason, file: SourceFile, what: str) -> ReasonedError:
        return ReasonedError(reason, f"{self._name(file)} {what}")


def _open_store(bucket: str, access: StoreAccess, policy: SourcePolicy) -> S3Store:
    credential, endpoint = access.credential, access.endpoint
    config: S3Config = {"region": access.region or _DEFAULT_REGION}
    virtual = credential.addressing_style == "virtual"
    if endpoint is not None:
        host = endpoint._replace(host=f"{bucket}.{endpoint.host}") if virtual else endpoint
        config["endpoint"] = host.url
    config["virtual_hosted_style_request"] = virtual
    client: ClientConfig = {
        "allow_http": endpoint is not None and endpoint.scheme == "http",
        "connect_timeout": timedelta(seconds=policy.connect_timeout_seconds),
        "read_timeout": timedelta(seconds=policy.idle_timeout_seconds),
        # The whole body counts against this one, and a model takes as long as it takes.
        "timeout": timedelta(days=1),
    }
    if credential.ca_bundle is not None:
        client["root_certificate"] = credential.ca_bundle
    return S3Store(
        bucket,
        config=config,
        client_options=client,
        retry_config={
            "max_retries": policy.max_retries,
            "retry_timeout": timedelta(seconds=policy.idle_timeout_seconds),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=2),
            },
        },
        credential_provider=_StaticKeys(credential) if credential.access_key_id else None,
    )


class _StaticKeys:
    """Hands out exactly the given keys: none of the environment's may be mixed in."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def __call__(self) -> S3Credential:
        return {
            "access_key_id": self._credential.access_key_id or "",
            "secret_access_key": self._credential.secret_access_key or "",
            "token": self._credential.session_token,
            "expires_at": None,
        }


def _is_broken_stream(error: Exception) -> bool:
    """Tell a connection that broke, which is taken up again, from one that stalls."""
    return _reason(error) is Reason.SOURCE_UNAVAILABLE and not isinstance(error, TimeoutError)


def _backoff_seconds(attempt: int) -> float:
    return 0.05 * float(2**attempt)


def _reason(error: Exception) -> Reason:
    if isinstance(error, FileNotFoundError):
        return Reason.SOURCE_NOT_FOUND
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return Reason.SOURCE_FORBIDDEN
    if isinstance(error, PreconditionError):
        return Reason.SOURCE_CHANGED
    if isinstance(error, InvalidPathError):
        return Reason.UNSAFE_PATH
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    if code is not None and code[1] in _BY_CODE:
        return _BY_CODE[code[1]]
    return _BY_STATUS.get(status[1] if status else "", Reason.SOURCE_UNAVAILABLE)


_SENTENCES = {
    Reason.SOURCE_NOT_FOUND: "does not exist",
    Reason.SOURCE_FORBIDDEN: "was refused by the object store",
    Reason.SOURCE_CHANGED: "changed while being read",
    Reason.UNSAFE_PATH: "holds a key that is no plain path",
    Reason.SOURCE_UNAVAILABLE: "cannot be read: the object store does not answer",
}


def _translate(error: Exception, what: str) -> ReasonedError:
    """Keep the store's status and code, and nothing else of a text that others write."""
    reason = _reason(error)
    text = str(error)
    found = [match[1] for match in (_STATUS.search(text), _CODE.search(text)) if match]
    detail = f" ({' '.join(found)})" if found else ""
    return ReasonedError(reason, f"{what} {_SENTENCES[reason]}{detail}")
