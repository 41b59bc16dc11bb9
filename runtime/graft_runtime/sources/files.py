"""A folder of this machine as a source: ``file://``.

Reads regular files directly in the folder and nothing else: no symlinks, pipes or devices.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncGenerator
from pathlib import Path

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import CHUNK_BYTES, MAX_LISTED, SourceFile

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
# A pipe without a writer would block an ordinary open for ever.
_FILE_FLAGS = _READ_FLAGS | os.O_NONBLOCK


class FileSource:
    """One folder of the local file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def uri(self) -> str:
        """Where this is, for messages."""
        return f"file://{self._folder}"

    async def list_files(self) -> list[SourceFile]:
        """Return the folder's regular files; other kinds of entries are refused by name."""
        return await asyncio.to_thread(self._list)

    async def read(self, file: SourceFile) -> AsyncGenerator[bytes, None]:
        """Yield one file's bytes; a file that changes meanwhile raises SourceChanged."""
        descriptor = await asyncio.to_thread(self._open, file.name)
        try:
            left = file.size
            while left:
                self._check_unchanged(descriptor, file)
                chunk = await asyncio.to_thread(os.read, descriptor, min(CHUNK_BYTES, left))
                if not chunk:
                    raise _error(Reason.SOURCE_CHANGED, f"{self.uri}/{file.name} became shorter")
                left -= len(chunk)
                yield chunk
            self._check_unchanged(descriptor, file)
        finally:
            os.close(descriptor)

    def _list(self) -> list[SourceFile]:
        try:
            root = os.open(self._folder, _READ_FLAGS | os.O_DIRECTORY)
        except OSError as error:
            raise self._translate(error, "") from error
        try:
            with os.scandir(root) as entries:
                found = [self._describe(entry) for entry in entries if not _is_folder(entry)]
        except OSError as error:
            raise self._translate(error, "") from error
        finally:
            os.close(root)
        if len(found) > MAX_LISTED:
            raise _error(Reason.TOO_LARGE, f"{self.uri} holds more than {MAX_LISTED} files")
        return sorted(found)

    def _describe(self, entry: os.DirEntry[str]) -> SourceFile:
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise _error(Reason.UNSAFE_PATH, f"{self.uri}/{entry.name} is not a regular file")
        return SourceFile(entry.name, status.st_size, _etag(status))

    def _open(self, name: str) -> int:
        try:
            root = os.open(self._folder, _READ_FLAGS | os.O_DIRECTORY)
            try:
                descriptor = os.open(name, _FILE_FLAGS, dir_fd=root)
            finally:
                os.close(root)
        except OSError as error:
            raise self._translate(error, f"/{name}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _error(Reason.UNSAFE_PATH, f"{self.uri}/{name} is not a regular file")
        return descriptor

    def _check_unchanged(self, descriptor: int, file: SourceFile) -> None:
        if _etag(os.fstat(descriptor)) != file.etag:
            raise _error(Reason.SOURCE_CHANGED, f"{self.uri}/{file.name} changed while being read")

    def _translate(self, error: OSError, suffix: str) -> ReasonedError:
        where = f"{self.uri}{suffix}"
        if isinstance(error, FileNotFoundError):
            return _error(Reason.SOURCE_NOT_FOUND, f"{where} does not exist")
        if isinstance(error, PermissionError):
            return _error(Reason.SOURCE_FORBIDDEN, f"{where} may not be read")
        if isinstance(error, NotADirectoryError) or error.errno in _SYMLINK_ERRNOS:
            return _error(Reason.UNSAFE_PATH, f"{where} is a link or not a folder")
        return _error(Reason.SOURCE_UNAVAILABLE, f"{where}: {error.strerror}")


_SYMLINK_ERRNOS = frozenset({errno.ELOOP, errno.ENXIO})
"""ELOOP: a symlink where none may be. ENXIO: a socket or a device without driver."""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_dev}-{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _error(reason: Reason, message: str) -> ReasonedError:
    return ReasonedError(reason, message)
