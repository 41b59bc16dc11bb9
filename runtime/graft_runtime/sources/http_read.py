"""Read a file over HTTP, or a part of it, going on after the connection broke.

Shared by the sources that speak plain HTTP; what the bytes are is checked by whoever asked.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import NamedTuple

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import MAX_RESUMES, SourceFile, backoff_seconds
from graft_runtime.sources.http_client import HttpAnswer, HttpClient

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class RemoteFile(NamedTuple):
    """One file of a server."""

    file: SourceFile
    path: str
    """Quoted, from the endpoint on."""
    what: str
    """Its name in messages."""


async def read_remote(
    client: HttpClient, remote: RemoteFile, offset: int, length: int | None
) -> AsyncGenerator[bytes, None]:
    """Yield bytes of a file: exactly `length` from `offset` on, or all up to its end.

    Raises:
        ReasonedError: As `Source.read` says.
    """
    size = remote.file.size
    end = size if length is None else offset + length
    etag: str | None = None
    for attempt in range(MAX_RESUMES + 1):
        if attempt:
            await asyncio.sleep(backoff_seconds(attempt))
        try:
            async with client.get(remote.path, remote.what, _wanted(remote, offset, end)) as answer:
                etag = _check_same(remote, answer, etag)
                async with aclosing(_from(remote, answer, offset)) as chunks:
                    async for chunk in chunks:
                        if end == size and offset + len(chunk) > end:
                            raise _changed(remote, "has grown")
                        # A server that knows no ranges goes on after the part that is wanted.
                        wanted = chunk[: end - offset]
                        offset += len(wanted)
                        yield wanted
                        if offset == end < size:
                            break
        except TimeoutError as error:
            message = f"{remote.what} cannot be read: the server stopped in the middle"
            raise ReasonedError(Reason.SOURCE_UNAVAILABLE, message) from error
        except OSError:
            pass
        if offset == end:
            return
    message = f"{remote.what} ends after {offset} of {end} bytes, again and again"
    raise ReasonedError(Reason.TRUNCATED_DOWNLOAD, message)


def _wanted(remote: RemoteFile, offset: int, end: int) -> dict[str, str]:
    is_whole = (offset, end) == (0, remote.file.size)
    return {} if is_whole else {"Range": f"bytes={offset}-{end - 1}"}


def _check_same(remote: RemoteFile, answer: HttpAnswer, etag: str | None) -> str | None:
    """Hold the answers of one file together; return what the next one is compared with."""
    if answer.headers.get("content-encoding", "identity") != "identity":
        message = f"{remote.what} cannot be read: the server encodes what it sends"
        raise ReasonedError(Reason.SOURCE_UNAVAILABLE, message)
    found = answer.headers.get("etag")
    if etag is not None and found != etag:
        raise _changed(remote, "changed while being read")
    announced = answer.headers.get("content-length")
    if answer.status == 200 and announced not in (None, str(remote.file.size)):
        raise _changed(remote, "is not of the size that was listed")
    return found


async def _from(remote: RemoteFile, answer: HttpAnswer, offset: int) -> AsyncGenerator[bytes, None]:
    """Yield the body from an offset of the file on, also where the server sent all of it."""
    skip = offset
    if answer.status == 206:
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        if match is None or int(match[1]) != offset or int(match[3]) != remote.file.size:
            raise _changed(remote, "is not of the size that was listed")
        skip = 0
    async with aclosing(answer.chunks()) as chunks:
        async for chunk in chunks:
            if skip < len(chunk):
                yield chunk[skip:]
            skip = max(0, skip - len(chunk))


def _changed(remote: RemoteFile, what: str) -> ReasonedError:
    return ReasonedError(Reason.SOURCE_CHANGED, f"{remote.what} {what}")
