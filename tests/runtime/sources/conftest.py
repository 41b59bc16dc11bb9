"""One S3 endpoint for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.s3 import S3, serve_s3


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """Start an endpoint; tests use buckets of their own."""
    with serve_s3() as server:
        yield server
