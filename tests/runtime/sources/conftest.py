"""One S3 endpoint for all tests of this folder, and an end for every source they open."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from graft_runtime.sources.object_store import ObjectStoreSource
from tests.support.s3 import S3, serve_s3


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """Start an endpoint; tests use buckets of their own."""
    with serve_s3() as server:
        yield server


@pytest_asyncio.fixture(autouse=True)
async def sources_end(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Close the object stores that a test opened, as the loader does."""
    opened: list[ObjectStoreSource] = []
    make = ObjectStoreSource.__init__

    def remember(self: ObjectStoreSource, *given: Any) -> None:
        make(self, *given)
        opened.append(self)

    monkeypatch.setattr(ObjectStoreSource, "__init__", remember)
    yield
    for source in opened:
        await source.aclose()
