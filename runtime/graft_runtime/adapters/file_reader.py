"""Reads slot files into the page cache, so that the engine's loop never waits for a disk.

The page cache is the tier between disk and device: what was read lately is still there, its owner
is the kernel, and its size needs no setting. The engine's process has one of these.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

CHUNK_BYTES = 2**20
NUM_THREADS = 2
"""Files read at the same time."""


class PageCacheReader:
    """A few threads that read and throw away."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="slot-file")

    def __call__(self, path: Path) -> Future[None]:
        """Begin to read a file. Whatever goes wrong shows when it is mapped."""
        return self._threads.submit(_read, path)


def _read(path: Path) -> None:
    buffer = bytearray(CHUNK_BYTES)
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.readv(file, [buffer]):
            pass
    finally:
        os.close(file)
