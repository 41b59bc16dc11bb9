"""Advisory file locks (``flock``) that hold between processes and between tasks of one process.

A lock dies with its process, so a crash never leaves one behind. Only the disk cache uses this.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from graft_runtime.sources.disk_errors import disk_errors

_POLL_SECONDS = 0.02
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def try_lock(descriptor: int, *, exclusive: bool) -> bool:
    """Take a lock on an open file or folder if nobody stands against it."""
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_still_at(descriptor: int, path: Path) -> bool:
    """Tell whether a path still leads to the file that was opened: it may have been replaced."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


@asynccontextmanager
async def exclusive(path: Path) -> AsyncIterator[None]:
    """Hold a lock file; wait for other holders without blocking the event loop."""
    descriptor = -1
    try:
        while True:
            with disk_errors():
                descriptor = os.open(path, _LOCK_FLAGS, 0o600)
            if try_lock(descriptor, exclusive=True) and is_still_at(descriptor, path):
                break
            os.close(descriptor)
            descriptor = -1
            await asyncio.sleep(_POLL_SECONDS)
        yield
    finally:
        if descriptor >= 0:
            # Unlinked while held: whoever waits on the old file sees that it is gone.
            with suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108 - pathlib's twin is taken for slow I/O here
            os.close(descriptor)
