"""``hf://org/repo@revision/folder``: a folder of a repository on a model hub.

A revision is resolved to its commit once, and everything is read at that commit. Large files lie on
the hub's own storage hosts: it may send us to those and to endpoints that the service allows.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import HttpRefusedError, ReasonedError
from graft_runtime.sources.base import MAX_LISTED, SourceFile
from graft_runtime.sources.endpoints import Endpoint, SourcePolicy
from graft_runtime.sources.http_client import HttpAnswer, HttpClient, HttpRules
from graft_runtime.sources.http_read import RemoteFile, read_remote
from graft_runtime.sources.uri import SourceUri

_MAX_JSON_BYTES = 16 << 20
_MAX_PAGES = 100
_NEXT = re.compile(r'<[^<>?]*\?([A-Za-z0-9%=&+._~-]+)>\s*;\s*rel="next"')
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_STORAGE_DOMAINS = (".huggingface.co", ".hf.co")
"""Where the public hub keeps large files; its answers lead there."""
_REFUSALS = {
    "GatedRepo": (Reason.SOURCE_FORBIDDEN, "is gated: its owner has to grant access to the token"),
    "RepoNotFound": (Reason.SOURCE_NOT_FOUND, "does not exist, or the token may not see it"),
    "RevisionNotFound": (Reason.SOURCE_NOT_FOUND, "has no such revision"),
    "EntryNotFound": (Reason.SOURCE_NOT_FOUND, "has no such folder"),
}


class HubSource:
    """One folder of one repository."""

    def __init__(
        self, uri: SourceUri, endpoint: Endpoint, credential: Credential, policy: SourcePolicy
    ) -> None:
        self._uri = uri
        may_redirect = partial(_may_redirect, policy, credential.endpoint is None)
        rules = HttpRules(credential.token, credential.ca_bundle, may_redirect)
        self._client = HttpClient(endpoint, rules, policy)

    @property
    def uri(self) -> str:
        """Where this is, for messages; with the commit as soon as that is known."""
        return str(self._uri)

    @property
    def reads_parts(self) -> bool:
        """Always."""
        return True

    async def list_files(self) -> list[SourceFile]:
        """Return the files of the folder, at the commit that the revision means now."""
        try:
            if not self._uri.is_immutable:
                self._uri = self._uri.at(await self._commit())
            return await self._list()
        except HttpRefusedError as error:
            reason, sentence = _REFUSALS.get(error.code, (error.reason, ""))
            message = f"{self.uri} {sentence}" if sentence else error.message
            raise ReasonedError(reason, message) from error

    def read(
        self, file: SourceFile, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Return the bytes of one file at the listed commit, which is never another's."""
        inside = f"{self._uri.path}/{file.name}" if self._uri.path else file.name
        path = f"/{self._uri.bucket}/resolve/{_quoted(self._uri.revision)}/{quote(inside)}"
        remote = RemoteFile(file, path, f"{self.uri}/{file.name}")
        return read_remote(self._client, remote, offset, length)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _commit(self) -> str:
        path = f"/api/models/{self._uri.bucket}/revision/{_quoted(self._uri.revision)}"
        facts, _ = await self._client.get_json(path, self.uri, _MAX_JSON_BYTES)
        commit = facts.get("sha") if isinstance(facts, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise self._odd("names no commit")
        return commit

    async def _list(self) -> list[SourceFile]:
        folder = f"/{quote(self._uri.path)}" if self._uri.path else ""
        path = f"/api/models/{self._uri.bucket}/tree/{self._uri.revision}{folder}"
        found: list[SourceFile] = []
        seen = 0
        for _ in range(_MAX_PAGES):
            page, answer = await self._client.get_json(path, self.uri, _MAX_JSON_BYTES)
            if not isinstance(page, list):
                raise self._odd("lists no files")
            seen += len(page)
            if seen > MAX_LISTED:
                message = f"{self.uri} holds more than {MAX_LISTED} files"
                raise ReasonedError(Reason.TOO_LARGE, message)
            found += self._files(page)
            following = _following(path, answer)
            if following is None:
                return found
            path = following
        raise self._odd("lists without end")

    def _files(self, page: list[Any]) -> Iterator[SourceFile]:
        prefix = f"{self._uri.path}/" if self._uri.path else ""
        for entry in page:
            match entry:
                case {"type": "file", "path": str(path), "size": int(size), "oid": str(oid)}:
                    name = path.removeprefix(prefix)
                    if path.startswith(prefix) and "/" not in name:
                        yield SourceFile(name, size, oid, _sha256_of(entry))
                case {"type": "directory"}:
                    continue
                case _:
                    raise self._odd("lists what is no file")

    def _odd(self, what: str) -> ReasonedError:
        message = f"{self.uri} cannot be read: the hub's answer {what}"
        return ReasonedError(Reason.SOURCE_UNAVAILABLE, message)


def _may_redirect(policy: SourcePolicy, is_own_hub: bool, target: Endpoint) -> bool:
    """Whether the hub may send us there: the service's hub knows its own storage hosts."""
    of_hub = target.scheme == "https" and f".{target.host}".endswith(_STORAGE_DOMAINS)
    return (is_own_hub and of_hub) or policy.allows(target)


def _following(path: str, answer: HttpAnswer) -> str | None:
    """Return the next page's path; whatever host the link names, the same one is asked."""
    match = _NEXT.search(answer.headers.get("link", ""))
    return match and f"{path.partition('?')[0]}?{match[1]}"


def _sha256_of(entry: dict[str, Any]) -> str | None:
    large = entry.get("lfs")
    found = large.get("oid") if isinstance(large, dict) else None
    return found if isinstance(found, str) and _SHA256.fullmatch(found) else None


def _quoted(revision: str) -> str:
    return quote(revision, safe="")
