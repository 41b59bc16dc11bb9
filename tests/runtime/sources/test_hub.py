"""``hf://``, against a small hub that behaves as hubs do."""

from collections.abc import Iterator

import pytest

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.ambient import read_ambient
from graft_runtime.sources.base import Source, SourceFile
from graft_runtime.sources.endpoints import SourcePolicy
from graft_runtime.sources.factory import open_source
from tests.support.hub import Hub, serve_hub

WEIGHTS = bytes(range(256)) * 12_000
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "README.md": b"hello", "sub/x": b"1"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as running:
        running.tokens = {"good", "granted"}
        running.granted = {"granted"}
        yield running


def source_at(hub: Hub, uri: str, token: str | None = None, *, storage: bool = True) -> Source:
    allowed = (hub.endpoint, hub.storage) if storage else (hub.endpoint,)
    policy = SourcePolicy(allowed_endpoints=allowed, idle_timeout_seconds=5.0, max_retries=0)
    return open_source(uri, Credential(endpoint=hub.endpoint, token=token), policy)


async def read(source: Source, file: SourceFile, *span: int) -> bytes:
    return b"".join([chunk async for chunk in source.read(file, *span)])


async def read_all(source: Source) -> dict[str, bytes]:
    return {file.name: await read(source, file) for file in await source.list_files()}


async def refusal(source: Source) -> ReasonedError:
    with pytest.raises(ReasonedError) as caught:
        await read_all(source)
    await source.aclose()
    return caught.value


async def test_a_repositorys_own_files_are_listed_and_read_at_one_commit(hub: Hub) -> None:
    commit = hub.repository("org/model").commit(FILES)
    source = source_at(hub, "hf://org/model")
    files = await source.list_files()
    hub.repository("org/model").commit({"config.json": b"[]"})
    assert {file.name: file.size for file in files} == {
        name: len(body) for name, body in FILES.items() if "/" not in name
    }
    assert source.uri == f"hf://org/model@{commit}"
    for file in files:
        assert await read(source, file) == FILES[file.name]
    await source.aclose()


async def test_a_folder_of_a_tag_can_be_a_source(hub: Hub) -> None:
    files = {"a/x": b"1", "a/y": b"2", "a/z/deep": b"3", "ab/x": b"4"}
    commit = hub.repository("org/adapters").commit(files, "v1.0")
    hub.repository("org/adapters").commit({"a/x": b"newer"})
    source = source_at(hub, "hf://org/adapters@v1.0/a")
    assert await read_all(source) == {"x": b"1", "y": b"2"}
    assert source.uri == f"hf://org/adapters@{commit}/a"
    await source.aclose()


async def test_a_revision_with_a_slash_is_one_revision(hub: Hub) -> None:
    hub.repository("org/m").commit({"x": b"1"}, "refs/pr/7")
    source = source_at(hub, "hf://org/m@refs%2Fpr%2F7")
    assert await read_all(source) == {"x": b"1"}
    await source.aclose()


async def test_a_named_commit_is_not_looked_up(hub: Hub) -> None:
    commit = hub.repository("org/m").commit({"x": b"1"})
    source = source_at(hub, f"hf://org/m@{commit}")
    assert await read_all(source) == {"x": b"1"}
    assert not any("/revision/" in path for path in hub.requests)
    await source.aclose()


async def test_large_files_carry_the_hash_that_the_hub_promises(hub: Hub) -> None:
    hub.repository("org/model").commit(FILES)
    source = source_at(hub, "hf://org/model")
    hashed = {file.name: file.sha256 is not None for file in await source.list_files()}
    assert hashed == {"config.json": False, "README.md": False, "model.safetensors": True}
    await source.aclose()


async def test_parts_of_a_large_file_are_read_from_the_storage_host_without_the_token(
    hub: Hub,
) -> None:
    hub.repository("org/model").commit(FILES)
    source = source_at(hub, "hf://org/model", "good")
    (file,) = [file for file in await source.list_files() if file.size == len(WEIGHTS)]
    assert await read(source, file, 500, 90_000) == WEIGHTS[500:90_500]
    assert hub.storage_authorizations == [None]
    await source.aclose()


async def test_a_stream_cut_in_the_middle_goes_on_where_it_ended(hub: Hub) -> None:
    hub.repository("org/model").commit(FILES)
    source = source_at(hub, "hf://org/model")
    (file,) = [file for file in await source.list_files() if file.size == len(WEIGHTS)]
    hub.cut_after_bytes = 2_500_000
    assert await read(source, file) == WEIGHTS
    assert len(hub.storage_authorizations) == 2
    await source.aclose()


async def test_a_redirect_to_a_host_that_nobody_allowed_is_refused(hub: Hub) -> None:
    hub.repository("org/model").commit(FILES)
    error = await refusal(source_at(hub, "hf://org/model", "good", storage=False))
    assert error.reason is Reason.SOURCE_FORBIDDEN
    assert "redirects to another host" in error.message
    assert hub.storage_authorizations == []


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest", "http://metadata/x", "file:///etc", "//user@x/", ""]
)
async def test_a_redirect_to_a_metadata_service_is_refused_whoever_allowed_it(
    hub: Hub, target: str
) -> None:
    hub.repository("org/model").commit(FILES)
    hub.redirect = target or "http://[::ffff:169.254.169.254]"
    assert (await refusal(source_at(hub, "hf://org/model"))).reason is Reason.SOURCE_FORBIDDEN


async def test_a_private_repository_needs_a_token(hub: Hub) -> None:
    hub.repository("org/private").commit({"x": b"1"})
    hub.repository("org/private").is_private = True
    error = await refusal(source_at(hub, "hf://org/private"))
    assert error.reason is Reason.SOURCE_NOT_FOUND
    assert "the token may not see it" in error.message
    source = source_at(hub, "hf://org/private", "good")
    assert await read_all(source) == {"x": b"1"}
    await source.aclose()


async def test_a_gated_repository_says_so(hub: Hub) -> None:
    hub.repository("org/gated").commit({"x": b"1"})
    hub.repository("org/gated").is_gated = True
    error = await refusal(source_at(hub, "hf://org/gated", "good"))
    assert error.reason is Reason.SOURCE_FORBIDDEN
    source = source_at(hub, "hf://org/gated", "granted")
    assert await read_all(source) == {"x": b"1"}
    await source.aclose()


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("hf://org/absent", "does not exist"),
        ("hf://org/model@absent", "no such revision"),
        ("hf://org/model@" + "0" * 40, "no such revision"),
        ("hf://org/model/absent", "no such folder"),
    ],
)
async def test_what_is_not_there_is_told_apart(hub: Hub, uri: str, said: str) -> None:
    hub.repository("org/model").commit(FILES)
    error = await refusal(source_at(hub, uri))
    assert error.reason is Reason.SOURCE_NOT_FOUND
    assert said in error.message


async def test_a_wrong_token_is_forbidden_and_never_shown(hub: Hub) -> None:
    hub.repository("org/model").commit(FILES)
    error = await refusal(source_at(hub, "hf://org/model", "hunter2"))
    assert error.reason is Reason.SOURCE_FORBIDDEN
    assert "hunter2" not in error.message


async def test_the_environments_hub_and_token_are_used_where_no_credential_is(hub: Hub) -> None:
    hub.repository("org/private").commit({"x": b"1"})
    hub.repository("org/private").is_private = True
    ambient = read_ambient({"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "good"})
    source = open_source("hf://org/private", None, SourcePolicy(ambient=ambient))
    assert await read_all(source) == {"x": b"1"}
    await source.aclose()


async def test_the_environments_token_never_goes_to_an_endpoint_of_a_credential(hub: Hub) -> None:
    hub.repository("org/private").commit({"x": b"1"})
    hub.repository("org/private").is_private = True
    policy = SourcePolicy(
        allowed_endpoints=(hub.endpoint,), ambient=read_ambient({"HF_TOKEN": "good"})
    )
    source = open_source("hf://org/private", Credential(endpoint=hub.endpoint), policy)
    assert (await refusal(source)).reason is Reason.SOURCE_NOT_FOUND


def test_offline_no_hub_is_asked() -> None:
    policy = SourcePolicy(ambient=read_ambient({"HF_HUB_OFFLINE": "1"}))
    with pytest.raises(ReasonedError) as caught:
        open_source("hf://org/model", None, policy)
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
    assert "offline" in caught.value.message
