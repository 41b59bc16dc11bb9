import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.ambient import read_ambient
from graft_runtime.sources.base import Source
from graft_runtime.sources.endpoints import SourcePolicy
from graft_runtime.sources.factory import open_source
from tests.support.server_thread import serving
from tests.support.tls import authority, make_certificate

LISTING = b"""<?xml version="1.0"?>
<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated><Contents><Key>a/x</Key>
<LastModified>2026-01-01T00:00:00Z</LastModified><ETag>"1"</ETag><Size>1</Size></Contents>
</ListBucketResult>"""

BLOBS = b"""<EnumerationResults><Blobs><Blob><Name>a/x</Name><Properties>
<Last-Modified>Thu, 01 Jan 2026 00:00:00 GMT</Last-Modified><Etag>1</Etag>
<Content-Length>1</Content-Length><Content-Type>application/octet-stream</Content-Type>
</Properties></Blob></Blobs><NextMarker/></EnumerationResults>"""

TOKEN = b'{"token_type": "Bearer", "access_token": "a-token-for-a-while", "expires_in": 3600}'

KEYS = b"""<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
<AccessKeyId>AKIDFORAWHILE</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>
<SessionToken>session</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


@dataclass
class Store:
    """A server that answers every request with one listing, or sends it elsewhere.

    To whom posts it gives keys or a token for a while.
    """

    url: str = ""
    location: str | None = None
    hits: list[str] = field(default_factory=list)
    posts: list[str] = field(default_factory=list)
    forms: list[str] = field(default_factory=list)
    """What was posted."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of the last request for a listing."""


def serve(certificate: Path | None) -> Iterator[Store]:
    store = Store()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            store.hits.append(self.path)
            store.headers = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(200 if store.location is None else 307)
            if store.location is not None:
                self.send_header("Location", store.location)
            self._end(BLOBS if "comp=list" in self.path else LISTING)

        def do_POST(self) -> None:
            store.posts.append(self.path)
            store.forms.append(self.rfile.read(int(self.headers["Content-Length"] or 0)).decode())
            self.send_response(200)
            self._end(TOKEN if self.path.endswith("/token") else KEYS)

        def _end(self, body: bytes) -> None:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    store.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    with serving(server):
        yield store


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls_store(certificate: Path) -> Iterator[Store]:
    yield from serve(certificate)


@pytest.fixture
def plain_store() -> Iterator[Store]:
    yield from serve(None)


def source_at(store: Store, ca_bundle: str | None) -> Source:
    credential = Credential(
        access_key_id="a", secret_access_key="b", endpoint=store.url, ca_bundle=ca_bundle
    )
    policy = SourcePolicy(allowed_endpoints=(store.url,), max_retries=0)
    return open_source("s3://bucket/a", credential, policy)


async def test_a_private_authority_is_trusted_where_the_credential_names_it(
    tls_store: Store, certificate: Path
) -> None:
    files = await source_at(tls_store, authority(certificate)).list_files()
    assert [file.name for file in files] == ["x"]


async def test_a_pods_web_identity_is_exchanged_for_keys_that_sign(
    tls_store: Store, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("the-pods-own-token")
    for name, value in {
        "AWS_ENDPOINT_URL": tls_store.url,
        "AWS_ENDPOINT_URL_STS": tls_store.url,
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/graft",
    }.items():
        monkeypatch.setenv(name, value)
    policy = SourcePolicy(ambient=read_ambient(os.environ), max_retries=0)
    trusting = Credential(ca_bundle=authority(certificate))
    files = await open_source("s3://bucket/a", trusting, policy).list_files()
    assert [file.name for file in files] == ["x"]
    asked = parse_qs(urlsplit(tls_store.posts[0]).query)
    assert asked["Action"] == ["AssumeRoleWithWebIdentity"]
    assert asked["WebIdentityToken"] == ["the-pods-own-token"]
    assert asked["RoleArn"] == ["arn:aws:iam::123456789012:role/graft"]
    assert "Credential=AKIDFORAWHILE/" in tls_store.headers["authorization"]
    assert tls_store.headers["x-amz-security-token"] == "session"


async def test_a_pods_workload_identity_is_exchanged_for_a_token_of_azures(
    tls_store: Store, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("the-pods-own-token")
    for name, value in {
        "AZURE_STORAGE_ENDPOINT": tls_store.url,
        "AZURE_AUTHORITY_HOST": tls_store.url,
        "AZURE_FEDERATED_TOKEN_FILE": str(token),
        "AZURE_CLIENT_ID": "the-client",
        "AZURE_TENANT_ID": "the-tenant",
    }.items():
        monkeypatch.setenv(name, value)
    policy = SourcePolicy(ambient=read_ambient(os.environ), max_retries=0)
    trusting = Credential(ca_bundle=authority(certificate))
    source = open_source("az://account/container/a", trusting, policy)
    assert [file.name for file in await source.list_files()] == ["x"]
    assert tls_store.posts == ["/the-tenant/oauth2/v2.0/token"]
    asked = parse_qs(tls_store.forms[0])
    assert asked["client_assertion"] == ["the-pods-own-token"]
    assert asked["client_id"] == ["the-client"]
    assert asked["scope"] == ["https://storage.azure.com/.default"]
    assert tls_store.headers["authorization"] == "Bearer a-token-for-a-while"


async def test_an_unknown_authority_is_not_trusted(tls_store: Store) -> None:
    with pytest.raises(ReasonedError) as caught:
        await source_at(tls_store, None).list_files()
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
    assert tls_store.hits == []


async def test_a_store_behind_tls_cannot_redirect_to_a_plain_one(
    tls_store: Store, plain_store: Store, certificate: Path
) -> None:
    """Metadata services speak plain HTTP, so none can be reached this way."""
    tls_store.location = f"{plain_store.url}/latest/meta-data"
    with pytest.raises(ReasonedError):
        await source_at(tls_store, authority(certificate)).list_files()
    assert tls_store.hits
    assert plain_store.hits == []


async def test_a_store_behind_tls_cannot_redirect_to_another_one_behind_tls(
    tls_store: Store, certificate: Path
) -> None:
    for other in serve(certificate):
        tls_store.location = f"{other.url}/b?list-type=2"
        with pytest.raises(ReasonedError) as caught:
            await source_at(tls_store, authority(certificate)).list_files()
        assert caught.value.reason is Reason.SOURCE_FORBIDDEN
        assert other.hits == []
