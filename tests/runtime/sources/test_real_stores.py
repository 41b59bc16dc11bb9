"""Amazon's, Google's and Azure's interfaces as other people's servers speak them.

`make test-stores` fetches or makes the servers.
"""

import base64
from collections.abc import Iterator

import pytest

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import Source, SourceFile
from graft_runtime.sources.endpoints import SourcePolicy
from graft_runtime.sources.factory import open_source
from tests.support.real_stores import (
    ACCESS_KEY,
    ACCOUNT_KEY,
    AMAZON,
    AZURE,
    GOOGLE,
    SECRET_KEY,
    serve_amazon,
    serve_azure,
    serve_google,
)

WEIGHTS = bytes(range(256)) * 12_000
OBJECTS = {
    "t/a1/config": b"{}",
    "t/a1/weights": WEIGHTS,
    "t/a1/below/x": b"1",
    "t/a10/x": b"1",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def amazon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Credential]:
    if not AMAZON.exists():
        pytest.skip("no server of Amazon's interface: make test-stores makes one")
    with serve_amazon(tmp_path_factory.mktemp("amazon"), "bucket", OBJECTS) as endpoint:
        yield Credential(endpoint=endpoint, access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY)


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Credential]:
    if not GOOGLE.exists():
        pytest.skip("no server of Google's interface: make test-stores fetches one")
    objects = {f"bucket/{key}": body for key, body in OBJECTS.items()}
    with serve_google(tmp_path_factory.mktemp("google") / "data", objects) as endpoint:
        yield Credential(endpoint=endpoint)


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Credential]:
    if not AZURE.exists():
        pytest.skip("no server of Azure's interface: make test-stores fetches one")
    with serve_azure(tmp_path_factory.mktemp("azure"), "container", OBJECTS) as endpoint:
        yield Credential(endpoint=endpoint, account_key=ACCOUNT_KEY)


NAMES = {"s3": "amazon", "gs": "google", "az": "azure"}


@pytest.fixture(params=["s3://bucket", "gs://bucket", "az://account/container"])
def place(request: pytest.FixtureRequest) -> tuple[str, Credential]:
    return request.param, request.getfixturevalue(NAMES[request.param[:2]])


def source_at(place: tuple[str, Credential], path: str) -> Source:
    root, credential = place
    policy = SourcePolicy(
        allowed_endpoints=(str(credential.endpoint),), idle_timeout_seconds=20, max_retries=0
    )
    return open_source(f"{root}/{path}", credential, policy)


async def read(source: Source, file: SourceFile, *span: int) -> bytes:
    return b"".join([chunk async for chunk in source.read(file, *span)])


async def test_files_directly_under_the_prefix_are_listed_and_read(
    place: tuple[str, Credential],
) -> None:
    source = source_at(place, "t/a1")
    files = await source.list_files()
    assert {file.name: file.size for file in files} == {"config": 2, "weights": len(WEIGHTS)}
    (weights,) = [file for file in files if file.name == "weights"]
    assert weights.etag is not None
    assert await read(source, weights) == WEIGHTS
    assert await read(source, weights, 1000, 70_000) == WEIGHTS[1000:71_000]


async def test_an_object_that_is_no_longer_the_listed_one_is_not_read(
    place: tuple[str, Credential],
) -> None:
    source = source_at(place, "t/a1")
    for stale in (SourceFile("config", 2, '"0x0"'), SourceFile("config", 3, None)):
        with pytest.raises(ReasonedError) as caught:
            await read(source, stale)
        assert caught.value.reason is Reason.SOURCE_CHANGED


async def test_what_is_not_there_is_not_found(place: tuple[str, Credential]) -> None:
    with pytest.raises(ReasonedError) as caught:
        await read(source_at(place, "t/a1"), SourceFile("absent", 1, None))
    assert caught.value.reason is Reason.SOURCE_NOT_FOUND


async def test_a_wrong_secret_is_forbidden(amazon: Credential) -> None:
    wrong = amazon.model_copy(update={"secret_access_key": "another"})
    with pytest.raises(ReasonedError) as caught:
        await source_at(("s3://bucket", wrong), "t/a1").list_files()
    assert caught.value.reason is Reason.SOURCE_FORBIDDEN


async def test_a_wrong_key_is_forbidden(azure: Credential) -> None:
    key = base64.b64encode(b"another key of this account 1234").decode()
    wrong = azure.model_copy(update={"account_key": key})
    with pytest.raises(ReasonedError) as caught:
        await source_at(("az://account/container", wrong), "t/a1").list_files()
    assert caught.value.reason is Reason.SOURCE_FORBIDDEN
