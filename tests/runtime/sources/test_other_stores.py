"""Google Cloud Storage and Azure Blob Storage, against a stand-in that speaks their dialects."""

import base64
import json
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from obstore.store import GCSStore

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.ambient import read_ambient
from graft_runtime.sources.base import Source, SourceFile
from graft_runtime.sources.endpoints import SourcePolicy
from graft_runtime.sources.factory import open_source
from graft_runtime.sources.store_config import StoreAccess, open_store
from graft_runtime.sources.uri import parse_uri
from tests.support.bucket_server import BucketServer, serve_buckets

BODY = bytes(range(256)) * 12_000
TOKEN = Credential(token="a-token")
ACCOUNT_KEY = base64.b64encode(b"k" * 32).decode()
PLACES = {"gs": "bucket", "az": "account/container"}
BOTH = pytest.mark.parametrize("scheme", ["gs", "az"])


@pytest.fixture
def store() -> Iterator[BucketServer]:
    with serve_buckets() as running:
        yield running


def source_at(store: BucketServer, scheme: str, path: str, given: Credential = TOKEN) -> Source:
    credential = given.model_copy(update={"endpoint": store.endpoint})
    policy = SourcePolicy(
        allowed_endpoints=(store.endpoint,), idle_timeout_seconds=5.0, max_retries=0
    )
    return open_source(f"{scheme}://{PLACES[scheme]}/{path}", credential, policy)


async def read(source: Source, file: SourceFile, *span: int) -> bytes:
    return b"".join([chunk async for chunk in source.read(file, *span)])


@BOTH
async def test_files_directly_under_the_prefix_are_listed_and_read(
    store: BucketServer, scheme: str
) -> None:
    keys = {"t/a1/config": b"{}", "t/a1/weights": BODY, "t/a10/x": b"1", "t/a1/below/x": b"1"}
    store.put(PLACES[scheme], keys)
    source = source_at(store, scheme, "t/a1")
    files = await source.list_files()
    assert [(file.name, file.size) for file in files] == [("config", 2), ("weights", len(BODY))]
    assert await read(source, files[1]) == BODY
    assert await read(source, files[1], 1000, 70_000) == BODY[1000:71_000]
    assert set(store.authorizations) == {"Bearer a-token"}


@BOTH
async def test_a_listing_goes_over_as_many_pages_as_the_store_wants(
    store: BucketServer, scheme: str
) -> None:
    store.page_size = 2
    store.put(PLACES[scheme], {f"a/{number}": b"1" for number in range(5)})
    assert len(await source_at(store, scheme, "a").list_files()) == 5


@BOTH
async def test_an_object_replaced_after_the_listing_is_not_read(
    store: BucketServer, scheme: str
) -> None:
    store.put(PLACES[scheme], {"a/x": b"one"})
    source = source_at(store, scheme, "a")
    (listed,) = await source.list_files()
    store.put(PLACES[scheme], {"a/x": b"two"})
    with pytest.raises(ReasonedError) as caught:
        await read(source, listed)
    assert caught.value.reason is Reason.SOURCE_CHANGED


@BOTH
async def test_an_object_that_is_gone_is_not_found(store: BucketServer, scheme: str) -> None:
    source = source_at(store, scheme, "a")
    with pytest.raises(ReasonedError) as caught:
        await read(source, SourceFile("x", 3, None))
    assert caught.value.reason is Reason.SOURCE_NOT_FOUND


@BOTH
async def test_an_endpoint_without_an_identity_gets_none_of_the_pods(
    store: BucketServer, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "the pods own")
    monkeypatch.setenv("AZURE_STORAGE_TOKEN", "the pods own")
    store.put(PLACES[scheme], {"a/x": b"1"})
    assert await source_at(store, scheme, "a", Credential()).list_files()
    assert set(store.authorizations) == {None}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Credential(account_key=ACCOUNT_KEY), "SharedKey account:"),
        (Credential(token="t"), "Bearer t"),
    ],
)
async def test_azure_takes_an_accounts_key_or_a_token(
    store: BucketServer, given: Credential, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sig=of-the-environment")
    store.put(PLACES["az"], {"a/x": b"1"})
    assert await source_at(store, "az", "a", given).list_files()
    assert str(store.authorizations[0]).startswith(expected)
    assert "sig" not in store.queries[0]


async def test_azure_takes_a_shared_access_signature(store: BucketServer) -> None:
    store.put(PLACES["az"], {"a/x": b"1"})
    given = Credential(sas_token="?sv=2024-01-01&sig=abc%3D")
    assert await source_at(store, "az", "a", given).list_files()
    assert store.queries[0]["sig"] == ["abc="]


async def test_azure_puts_the_account_into_the_host_where_that_is_wanted() -> None:
    endpoint = "https://blobs.example"
    credential = Credential(endpoint=endpoint, addressing_style="virtual", sas_token="sig=a")
    policy = SourcePolicy(allowed_endpoints=(endpoint,))
    assert open_source("az://account/container/a", credential, policy).uri


def test_google_takes_a_service_accounts_key_and_no_address_from_it() -> None:
    """A key file may say where to go; that is for the allow-list alone to decide."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    fields = {"client_email": "a@b", "private_key": private, "private_key_id": "1"}
    evil = {"gcs_base_url": "http://127.0.0.1:9", "disable_oauth": True, "type": "authorized_user"}
    credential = Credential(service_account_key=json.dumps(fields | evil))
    store = open_store(
        parse_uri("gs://bucket/a"), StoreAccess(credential, endpoint=None), SourcePolicy()
    )
    assert isinstance(store, GCSStore)
    assert json.loads(store.config["service_account_key"]) == fields
    assert "base_url" not in store.config


@pytest.mark.parametrize(
    ("uri", "given"),
    [
        ("gs://bucket/a", Credential(service_account_key="{")),
        ("gs://bucket/a", Credential(service_account_key='["hunter2"]')),
        ("gs://bucket/a", Credential(service_account_key='{"private_key": "hunter2"}')),
        ("az://account/container/a", Credential(account_key="hunter2!")),
    ],
)
async def test_a_malformed_key_is_refused_without_being_quoted(uri: str, given: Credential) -> None:
    with pytest.raises(ReasonedError) as caught:
        await open_source(uri, given, SourcePolicy()).list_files()
    assert caught.value.reason is Reason.SECRET_NOT_FOUND
    assert "hunter2" not in caught.value.message


@BOTH
async def test_the_environments_endpoint_needs_no_permission(
    store: BucketServer, scheme: str
) -> None:
    names = {"gs": "GOOGLE_BASE_URL", "az": "AZURE_STORAGE_ENDPOINT"}
    store.put(PLACES[scheme], {"a/x": b"1"})
    policy = SourcePolicy(ambient=read_ambient({names[scheme]: store.endpoint}), max_retries=0)
    source = open_source(f"{scheme}://{PLACES[scheme]}/a", TOKEN, policy)
    assert [file.name for file in await source.list_files()] == ["x"]
