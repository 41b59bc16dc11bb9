"""``https://``: a manifest on a web server, and the files beside it."""

import asyncio
import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from graft_protocol.credentials import Credential
from graft_protocol.digest import FileRecord, canonical_manifest
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import Source, SourceFile
from graft_runtime.sources.endpoints import SourcePolicy
from graft_runtime.sources.factory import open_source
from tests.support.tls import authority, make_certificate
from tests.support.web_server import Misbehaviour, WebServer, serve_files

WEIGHTS = bytes(range(256)) * 12_000
FILES = {"adapter_config.json": b"{}", "weights with space.safetensors": WEIGHTS}
WEIGHTS_PATH = "/t/a1/weights%20with%20space.safetensors"


def manifest(files: dict[str, bytes]) -> bytes:
    return canonical_manifest(
        FileRecord(name, len(body), hashlib.sha256(body).hexdigest())
        for name, body in files.items()
    )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def web(certificate: Path) -> Iterator[WebServer]:
    with serve_files(certificate) as running:
        running.files = {"/t/a1/manifest": manifest(FILES)}
        running.files |= {f"/t/a1/{name.replace(' ', '%20')}": body for name, body in FILES.items()}
        yield running


@pytest.fixture
def trust(certificate: Path) -> str:
    return authority(certificate)


def source_at(
    web: WebServer, trust: str | None, path: str = "/t/a1/manifest", max_retries: int = 0
) -> Source:
    policy = SourcePolicy(
        allowed_endpoints=(f"https://{web.host}",),
        idle_timeout_seconds=5.0,
        max_retries=max_retries,
    )
    return open_source(
        f"https://{web.host}{path}", Credential(token="good", ca_bundle=trust), policy
    )


async def read(source: Source, file: SourceFile, *span: int) -> bytes:
    return b"".join([chunk async for chunk in source.read(file, *span)])


async def weights_of(source: Source) -> SourceFile:
    (file,) = [file for file in await source.list_files() if file.size == len(WEIGHTS)]
    return file


async def refusal(source: Source) -> ReasonedError:
    with pytest.raises(ReasonedError) as caught:
        await read(source, await weights_of(source))
    await source.aclose()
    return caught.value


async def test_the_manifests_files_are_listed_with_their_hashes_and_read(
    web: WebServer, trust: str
) -> None:
    source = source_at(web, trust)
    files = await source.list_files()
    assert {file.name: file.size for file in files} == {n: len(b) for n, b in FILES.items()}
    for file in files:
        body = await read(source, file)
        assert body == FILES[file.name]
        assert file.sha256 == hashlib.sha256(body).hexdigest()
    assert {headers["authorization"] for _, headers in web.requests} == {"Bearer good"}
    assert {headers["accept-encoding"] for _, headers in web.requests} == {"identity"}
    await source.aclose()


async def test_a_manifest_may_lie_at_the_root(web: WebServer, trust: str) -> None:
    web.files |= {"/m": manifest({"x": b"1"}), "/x": b"1"}
    source = source_at(web, trust, "/m")
    (file,) = await source.list_files()
    assert await read(source, file) == b"1"
    await source.aclose()


def test_a_host_that_the_service_does_not_allow_is_never_asked() -> None:
    for uri in ("https://host.example/m", "https://169.254.169.254/m", "https://metadata/m"):
        with pytest.raises(ReasonedError) as caught:
            open_source(uri, None, SourcePolicy(allowed_endpoints=("https://other.example",)))
        assert caught.value.reason is Reason.SOURCE_FORBIDDEN


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "100.100.100.200"]
)
async def test_a_name_that_leads_to_a_metadata_address_is_refused(
    web: WebServer, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    port = int(web.host.rpartition(":")[2])

    async def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        found = [("127.0.0.1", port), (address, port)]
        return [(socket.AF_UNSPEC, socket.SOCK_STREAM, 6, "", where) for where in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    host = f"files.example:{port}"
    policy = SourcePolicy(allowed_endpoints=(f"https://{host}",), max_retries=0)
    error = await refusal(open_source(f"https://{host}/t/a1/manifest", None, policy))
    assert error.reason is Reason.SOURCE_FORBIDDEN
    assert web.requests == []


async def test_an_unknown_authority_is_not_trusted(web: WebServer) -> None:
    error = await refusal(source_at(web, None))
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert web.requests == []


def test_a_bundle_without_certificates_is_refused(web: WebServer) -> None:
    with pytest.raises(ReasonedError) as caught:
        source_at(web, "no certificate")
    assert caught.value.reason is Reason.SECRET_NOT_FOUND


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, Reason.SOURCE_FORBIDDEN),
        (403, Reason.SOURCE_FORBIDDEN),
        (404, Reason.SOURCE_NOT_FOUND),
        (410, Reason.SOURCE_NOT_FOUND),
        (429, Reason.SOURCE_UNAVAILABLE),
        (500, Reason.SOURCE_UNAVAILABLE),
        (503, Reason.SOURCE_UNAVAILABLE),
        (418, Reason.SOURCE_UNAVAILABLE),
    ],
)
async def test_what_the_server_answers_becomes_a_reason(
    web: WebServer, trust: str, status: int, reason: Reason
) -> None:
    web.faults = [("/t/a1/manifest", Misbehaviour(status=status))]
    error = await refusal(source_at(web, trust))
    assert error.reason is reason
    assert str(status) in error.message
    web.faults = [(WEIGHTS_PATH, Misbehaviour(status=status))]
    assert (await refusal(source_at(web, trust))).reason is reason


async def test_a_server_that_recovers_is_asked_again(web: WebServer, trust: str) -> None:
    web.faults = [
        (WEIGHTS_PATH, Misbehaviour(status=503, headers={"Retry-After": "0"})),
        (WEIGHTS_PATH, Misbehaviour(status=429)),
    ]
    source = source_at(web, trust, max_retries=2)
    assert await read(source, await weights_of(source)) == WEIGHTS
    await source.aclose()


async def test_a_stream_cut_near_its_end_goes_on_where_it_ended(web: WebServer, trust: str) -> None:
    cut = len(WEIGHTS) * 99 // 100
    web.faults = [(WEIGHTS_PATH, Misbehaviour(cut_after_bytes=cut))]
    source = source_at(web, trust)
    assert await read(source, await weights_of(source)) == WEIGHTS
    assert web.requests[-1][1]["range"] == f"bytes={cut}-{len(WEIGHTS) - 1}"
    await source.aclose()


async def test_a_server_without_ranges_is_read_too(web: WebServer, trust: str) -> None:
    web.knows_ranges = False
    web.faults = [(WEIGHTS_PATH, Misbehaviour(cut_after_bytes=2_000_000))]
    source = source_at(web, trust)
    file = await weights_of(source)
    assert await read(source, file) == WEIGHTS
    assert await read(source, file, 1_500_000, 10) == WEIGHTS[1_500_000:1_500_010]
    await source.aclose()


async def test_a_stream_that_never_gets_further_is_truncated(web: WebServer, trust: str) -> None:
    web.faults = [(WEIGHTS_PATH, Misbehaviour(cut_after_bytes=0)) for _ in range(4)]
    assert (await refusal(source_at(web, trust))).reason is Reason.TRUNCATED_DOWNLOAD


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Misbehaviour(body=WEIGHTS + b"extra"), Reason.SOURCE_CHANGED),
        (Misbehaviour(body=WEIGHTS[:-1]), Reason.SOURCE_CHANGED),
        (Misbehaviour(headers={"Content-Encoding": "gzip"}), Reason.SOURCE_UNAVAILABLE),
        (Misbehaviour(status=302, headers={"Location": "https://evil.example/x"}),
         Reason.SOURCE_FORBIDDEN),
        (Misbehaviour(status=307, headers={"Location": "http://127.0.0.1/x"}),
         Reason.SOURCE_FORBIDDEN),
        (Misbehaviour(status=301, headers={"Location": WEIGHTS_PATH}), None),
        (Misbehaviour(status=302), None),
    ],
)  # fmt: skip
async def test_odd_answers_are_noticed(
    web: WebServer, trust: str, fault: Misbehaviour, reason: Reason | None
) -> None:
    web.faults = [(WEIGHTS_PATH, fault)]
    source = source_at(web, trust)
    if reason is None:  # a redirect on the same host
        assert await read(source, await weights_of(source)) == WEIGHTS
        await source.aclose()
    else:
        assert (await refusal(source)).reason is reason


async def test_redirects_in_a_circle_end(web: WebServer, trust: str) -> None:
    there = Misbehaviour(status=302, headers={"Location": "/t/a1/manifest"})
    web.faults = [("/t/a1/manifest", there) for _ in range(10)]
    assert (await refusal(source_at(web, trust))).reason is Reason.SOURCE_FORBIDDEN


async def test_a_file_replaced_between_two_parts_of_a_stream_is_noticed(
    web: WebServer, trust: str
) -> None:
    web.faults = [
        (WEIGHTS_PATH, Misbehaviour(cut_after_bytes=2_000_000)),
        (WEIGHTS_PATH, Misbehaviour(body=WEIGHTS[::-1])),
    ]
    assert (await refusal(source_at(web, trust))).reason is Reason.SOURCE_CHANGED


HASH = "0" * 64


@pytest.mark.parametrize(
    "text",
    [
        "x",
        f"x 1 {HASH[:-1]}",
        f"x -1 {HASH}",
        f"x 1 {HASH.replace('0', 'G')}",
        f"../x 1 {HASH}",
        f".. 1 {HASH}",
        f"a/x 1 {HASH}",
        f"a\\x 1 {HASH}",
        f"x 1 {HASH}\n\ny 1 {HASH}",
        f"x 1 {HASH}\nx 1 {HASH}",
        f"x 99999999999999999 {HASH}",
        "<html>hello</html>",
        "{}",
    ],
)
async def test_a_manifest_that_is_none_is_refused(web: WebServer, trust: str, text: str) -> None:
    web.files["/t/a1/manifest"] = text.encode()
    error = await refusal(source_at(web, trust))
    assert error.reason is Reason.MALFORMED_ARTIFACT


async def test_a_manifest_that_is_too_long_is_refused(web: WebServer, trust: str) -> None:
    web.files["/t/a1/manifest"] = b"x" * 2_000_000
    assert (await refusal(source_at(web, trust))).reason is Reason.TOO_LARGE
    lines = [f"{number} 1 {HASH}" for number in range(5000)]
    web.files["/t/a1/manifest"] = "\n".join(lines).encode()
    assert (await refusal(source_at(web, trust))).reason is Reason.TOO_LARGE
    web.files["/t/a1/manifest"] = b"\xff\xfe"
    assert (await refusal(source_at(web, trust))).reason is Reason.MALFORMED_ARTIFACT
