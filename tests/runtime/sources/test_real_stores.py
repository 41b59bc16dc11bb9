"""Google's and Azure's interfaces as other people's servers speak them (`make test-stores`)."""

import base64
from collections.abc import Iterator

import pytest

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import Source, SourceFile
from graft_runtime.sources.endpoints import SourcePolicy
from graft_runtime.sources.factory import open_source
from tests.support.real_stores import ACCOUNT_KEY, AZURE, GOOGLE, serve_azure, serve_google

WEIGHTS = bytes(range(256)) * 12_000
OBJECTS = {
    "t/a1/config": b"{}",
    "t/a1/weights": WEIGHTS,
    "t/a1/below/x": b"1",
    "t/a10/x": b"1",
}

pytestmark = pytest.mark.slow


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


@pytest.fixture(params=["gs://bucket", "az://account/container"])
def place(request: pytest.FixtureRequest) -> tuple[str, Credential]:
    name = "google" if request.param.startswith("gs") else "azure"
    return request.param, request.getfixturevalue(name)


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


async def test_a_wrong_key_is_forbidden(azure: Credential) -> None:
    key = base64.b64encode(b"another key of this account 1234").decode()
    wrong = azure.model_copy(update={"account_key": key})
    with pytest.raises(ReasonedError) as caught:
        await source_at(("az://account/container", wrong), "t/a1").list_files()
    assert caught.value.reason is Reason.SOURCE_FORBIDDEN
