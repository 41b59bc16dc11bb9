r"""``https://host/path/manifest``: a list of files on any web server, the files beside it.

The manifest is the canonical one that a digest is made of (`graft_protocol.digest`), so its own
SHA-256 is the digest of what it lists. One line per file: ``<name> <size> <sha256 hex>\n``.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from urllib.parse import quote

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import MAX_LISTED, SourceFile
from graft_runtime.sources.endpoints import Endpoint, SourcePolicy
from graft_runtime.sources.http_client import HttpClient, HttpRules
from graft_runtime.sources.http_read import RemoteFile, read_remote
from graft_runtime.sources.uri import SourceUri

_MAX_BYTES = 1 << 20
_LINE = re.compile(r"(?P<name>[^/\\\x00-\x1f]{1,255}) (?P<size>\d{1,16}) (?P<sha256>[0-9a-f]{64})")


class ManifestSource:
    """The files that one manifest lists."""

    def __init__(
        self, uri: SourceUri, endpoint: Endpoint, credential: Credential, policy: SourcePolicy
    ) -> None:
        self._uri = uri
        self._knows_ranges = False
        self._client = HttpClient(
            endpoint, HttpRules(token=credential.token, ca_bundle=credential.ca_bundle), policy
        )

    @property
    def uri(self) -> str:
        """Where this is, for messages."""
        return str(self._uri)

    @property
    def reads_parts(self) -> bool:
        """Whether the server said that it knows ranges."""
        return self._knows_ranges

    async def list_files(self) -> list[SourceFile]:
        """Return what the manifest lists; each file is known by its hash."""
        path = f"/{quote(self._uri.path)}"
        body, answer = await self._client.get_bytes(path, self.uri, _MAX_BYTES)
        self._knows_ranges = answer.headers.get("accept-ranges") == "bytes"
        try:
            lines = body.decode().splitlines()
        except UnicodeDecodeError as error:
            raise self._malformed("is no text") from error
        if len(lines) > MAX_LISTED:
            message = f"{self.uri} lists more than {MAX_LISTED} files"
            raise ReasonedError(Reason.TOO_LARGE, message)
        files = [self._parse(number, line) for number, line in enumerate(lines, start=1)]
        if len({file.name for file in files}) != len(files):
            raise self._malformed("lists a name twice")
        return files

    def read(
        self, file: SourceFile, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Return the bytes of one file, as a stream."""
        folder = self._uri.path.rpartition("/")[0]
        path = f"/{quote(folder)}/{quote(file.name)}" if folder else f"/{quote(file.name)}"
        what = f"{self.uri.rpartition('/')[0]}/{file.name}"
        return read_remote(self._client, RemoteFile(file, path, what), offset, length)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _parse(self, number: int, line: str) -> SourceFile:
        match = _LINE.fullmatch(line)
        if match is None or match["name"] in {".", ".."}:
            raise self._malformed(f"has no file in line {number}: <name> <size> <sha256>")
        return SourceFile(match["name"], int(match["size"]), match["sha256"], match["sha256"])

    def _malformed(self, what: str) -> ReasonedError:
        return ReasonedError(Reason.MALFORMED_ARTIFACT, f"{self.uri} {what}")
