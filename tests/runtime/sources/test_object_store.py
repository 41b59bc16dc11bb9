import asyncio
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources import object_store
from graft_runtime.sources.base import Source, SourceFile
from graft_runtime.sources.endpoints import SourcePolicy
from graft_runtime.sources.factory import open_source
from tests.support.fault_proxy import Fault, FaultProxy, spoil
from tests.support.s3 import S3

BODY = bytes(range(256)) * 12_000
"""3 MB: several chunks."""


def source_at(s3: S3, uri: str, endpoint: str | None = None, **policy: float) -> Source:
    endpoint = endpoint or s3.endpoint
    credential = s3.credential.model_copy(update={"endpoint": endpoint})
    limits = {"idle_timeout_seconds": 5.0, "max_retries": 0} | policy
    return open_source(
        uri,
        credential,
        SourcePolicy(allowed_endpoints=(endpoint,), **limits),  # type: ignore[arg-type] # numbers
    )


async def read(source: Source, file: SourceFile) -> bytes:
    return b"".join([chunk async for chunk in source.read(file)])


async def read_only_file(source: Source) -> bytes:
    (file,) = await source.list_files()
    return await read(source, file)


async def reason_of_listing(source: Source) -> Reason:
    with pytest.raises(ReasonedError) as caught:
        await source.list_files()
    return caught.value.reason


async def reason_of_reading(source: Source) -> Reason:
    (file,) = await source.list_files()
    with pytest.raises(ReasonedError) as caught:
        await read(source, file)
    return caught.value.reason


@pytest.fixture
def proxy(s3: S3) -> Iterator[FaultProxy]:
    s3.put("faults", {"a/weights": BODY})
    with spoil(s3.endpoint) as running:
        yield running


def on_object(*faults: Fault) -> Callable[[str], Fault | None]:
    """Spoil the reads of the object, one after the other, and nothing else."""
    waiting = list(faults)
    return lambda path: waiting.pop(0) if path.endswith("/a/weights") and waiting else None


def always(fault: Fault) -> Callable[[str], Fault | None]:
    return lambda path: fault if path.endswith("/a/weights") else None


async def test_objects_directly_under_the_prefix_are_listed_and_read(s3: S3) -> None:
    objects = {"t/a1/config": b"{}", "t/a1/weights": BODY, "t/a1/empty": b""}
    s3.put("plain", objects)
    source = source_at(s3, "s3://plain/t/a1")
    files = await source.list_files()
    assert {file.name: file.size for file in files} == {
        "config": 2,
        "weights": len(BODY),
        "empty": 0,
    }
    for file in files:
        assert await read(source, file) == objects[f"t/a1/{file.name}"]


async def test_siblings_subfolders_and_folder_markers_are_not_listed(s3: S3) -> None:
    keys = ["t/a1/x", "t/a1/", "t/a1", "t/a10/x", "t/a1/below/x", "t/a", "x"]
    s3.put("siblings", dict.fromkeys(keys, b"1"))
    assert [file.name for file in await source_at(s3, "s3://siblings/t/a1").list_files()] == ["x"]


async def test_the_marker_of_a_folder_at_the_root_is_no_file(s3: S3) -> None:
    s3.put("markers", {"a/": b"", "a/x": b"1"})
    assert [file.name for file in await source_at(s3, "s3://markers/a").list_files()] == ["x"]


async def test_an_object_of_another_size_than_listed_has_changed(s3: S3) -> None:
    """Some stores give no ETag; then the size is what is left to compare."""
    s3.put("sizes", {"a/x": b"123"})
    for listed in (2, 5):
        with pytest.raises(ReasonedError) as caught:
            await read(source_at(s3, "s3://sizes/a"), SourceFile("x", listed, None))
        assert caught.value.reason is Reason.SOURCE_CHANGED


async def test_a_whole_bucket_can_be_a_source(s3: S3) -> None:
    s3.put("root", {"x": b"1", "below/y": b"2"})
    source = source_at(s3, "s3://root")
    assert [file.name for file in await source.list_files()] == ["x"]
    assert await read_only_file(source) == b"1"


async def test_names_with_spaces_and_escapes_are_literal(s3: S3) -> None:
    s3.put("names", {"a/x y%20z é": b"1"})
    assert await read_only_file(source_at(s3, "s3://names/a")) == b"1"


@pytest.mark.parametrize("key", ["a/../x", "a//x", "a/./x"])
async def test_a_key_that_is_no_plain_path_is_refused(s3: S3, key: str) -> None:
    bucket = "keys" + str(len(key)) + key[2].replace(".", "d").replace("/", "s")
    s3.put(bucket, {key: b"1"})
    assert await reason_of_listing(source_at(s3, f"s3://{bucket}/a")) is Reason.UNSAFE_PATH


async def test_a_prefix_with_very_many_objects_is_refused(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "MAX_LISTED", 3)
    s3.put("many", {f"a/{number}": b"" for number in range(3)})
    assert len(await source_at(s3, "s3://many/a").list_files()) == 3
    s3.put("many", {"a/below/4": b""})
    assert await reason_of_listing(source_at(s3, "s3://many/a")) is Reason.TOO_LARGE


async def test_a_missing_bucket_is_not_found(s3: S3) -> None:
    assert await reason_of_listing(source_at(s3, "s3://nobucket/a")) is Reason.SOURCE_NOT_FOUND


async def test_an_object_removed_after_the_listing_is_not_found(s3: S3) -> None:
    s3.put("gone", {"a/x": b"1"})
    with pytest.raises(ReasonedError) as caught:
        await read(source_at(s3, "s3://gone/a"), SourceFile("y", 1, None))
    assert caught.value.reason is Reason.SOURCE_NOT_FOUND


async def test_nobody_listening_is_unavailable(s3: S3) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        source = source_at(s3, "s3://x-bucket/a", endpoint)
        assert await reason_of_listing(source) is Reason.SOURCE_UNAVAILABLE


async def test_a_name_that_leads_to_a_metadata_address_is_refused(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 80))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    source = source_at(s3, "s3://x-bucket/a", "http://store.example")
    assert await reason_of_listing(source) is Reason.SOURCE_FORBIDDEN


async def test_a_name_that_leads_elsewhere_after_it_was_checked_is_not_followed(
    s3: S3, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(proxy.endpoint.rpartition(":")[2])
    answers = [["127.0.0.1"], ["127.0.0.1", "169.254.169.254"]]

    async def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (where, port)) for where in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    source = source_at(s3, "s3://faults/a", f"http://localhost:{port}")
    assert await reason_of_listing(source) is Reason.SOURCE_UNAVAILABLE
    assert proxy.requests == []
    answers[:] = [["127.0.0.1"]]
    assert await read_only_file(source) == BODY


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (401, "Unauthorized", Reason.SOURCE_FORBIDDEN),
        (403, "AccessDenied", Reason.SOURCE_FORBIDDEN),
        (403, "RequestTimeTooSkewed", Reason.SOURCE_FORBIDDEN),
        (400, "ExpiredToken", Reason.SOURCE_FORBIDDEN),
        (404, "NoSuchKey", Reason.SOURCE_NOT_FOUND),
        (500, "InternalError", Reason.SOURCE_UNAVAILABLE),
        (503, "SlowDown", Reason.SOURCE_UNAVAILABLE),
    ],
)
async def test_what_the_store_answers_becomes_a_reason(
    s3: S3, proxy: FaultProxy, status: int, code: str, reason: Reason
) -> None:
    source = source_at(s3, "s3://faults/a", proxy.endpoint)
    proxy.plan = lambda path: Fault(status=status, code=code)
    with pytest.raises(ReasonedError) as listing:
        await source.list_files()
    with pytest.raises(ReasonedError) as reading:
        await read(source, SourceFile("weights", len(BODY), None))
    assert (listing.value.reason, reading.value.reason) == (reason, reason)
    assert code in listing.value.message or str(status) in listing.value.message
    assert "127.0.0.1" not in listing.value.message


async def test_a_store_that_recovers_is_asked_again(s3: S3, proxy: FaultProxy) -> None:
    proxy.plan = on_object(Fault(status=503), Fault(status=500))
    source = source_at(s3, "s3://faults/a", proxy.endpoint, max_retries=3)
    assert await read_only_file(source) == BODY


async def test_a_stream_cut_near_its_end_goes_on_where_it_ended(s3: S3, proxy: FaultProxy) -> None:
    cut = len(BODY) * 99 // 100
    proxy.plan = on_object(Fault(cut_after_bytes=cut))
    assert await read_only_file(source_at(s3, "s3://faults/a", proxy.endpoint)) == BODY
    assert proxy.gets_of("/a/weights") == 2


async def test_a_stream_that_never_gets_further_is_truncated(s3: S3, proxy: FaultProxy) -> None:
    proxy.plan = lambda path: (
        Fault(cut_after_bytes=0 if proxy.gets_of("/a/weights") > 1 else 2_000_000)
        if path.endswith("/a/weights")
        else None
    )
    source = source_at(s3, "s3://faults/a", proxy.endpoint)
    assert await reason_of_reading(source) is Reason.TRUNCATED_DOWNLOAD


async def test_a_stalled_stream_is_given_up(s3: S3, proxy: FaultProxy) -> None:
    proxy.plan = always(Fault(stall_after_bytes=100_000))
    source = source_at(s3, "s3://faults/a", proxy.endpoint, idle_timeout_seconds=0.3)
    async with asyncio.timeout(5):
        assert await reason_of_reading(source) is Reason.SOURCE_UNAVAILABLE


async def test_a_reader_can_leave_a_stalled_stream_at_once(s3: S3, proxy: FaultProxy) -> None:
    stalled = threading.Event()
    proxy.plan = always(Fault(stall_after_bytes=100_000, before=stalled.set))
    source = source_at(s3, "s3://faults/a", proxy.endpoint, idle_timeout_seconds=60)
    reading = asyncio.create_task(read_only_file(source))
    assert await asyncio.to_thread(stalled.wait, 10)
    reading.cancel()
    async with asyncio.timeout(2):
        await asyncio.gather(reading, return_exceptions=True)
    assert reading.cancelled()


async def test_an_object_replaced_after_the_listing_is_not_read(s3: S3) -> None:
    s3.put("replaced", {"a/x": b"one"})
    source = source_at(s3, "s3://replaced/a")
    (listed,) = await source.list_files()
    s3.put("replaced", {"a/x": b"two"})
    with pytest.raises(ReasonedError) as caught:
        await read(source, listed)
    assert caught.value.reason is Reason.SOURCE_CHANGED


async def test_an_object_replaced_between_two_parts_of_a_stream_is_noticed(
    s3: S3, proxy: FaultProxy
) -> None:
    def replace() -> None:
        s3.put("faults", {"a/weights": BODY[::-1]})

    proxy.plan = on_object(Fault(cut_after_bytes=2_000_000), Fault(before=replace))
    source = source_at(s3, "s3://faults/a", proxy.endpoint)
    assert await reason_of_reading(source) is Reason.SOURCE_CHANGED


async def test_bytes_beyond_the_listed_size_are_refused(s3: S3, proxy: FaultProxy) -> None:
    proxy.plan = always(Fault(append=b"extra"))
    source = source_at(s3, "s3://faults/a", proxy.endpoint)
    assert await reason_of_reading(source) is Reason.SOURCE_CHANGED


async def test_keys_never_reach_a_message(s3: S3, proxy: FaultProxy) -> None:
    proxy.plan = lambda path: Fault(status=403, code="SignatureDoesNotMatch")
    credential = Credential(
        access_key_id="AKIDSECRET", secret_access_key="hunter2", endpoint=proxy.endpoint
    )
    policy = SourcePolicy(allowed_endpoints=(proxy.endpoint,))
    with pytest.raises(ReasonedError) as caught:
        await open_source("s3://faults/a", credential, policy).list_files()
    assert "AKIDSECRET" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(credential)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_host_is_not_followed(
    s3: S3, proxy: FaultProxy, status: int
) -> None:
    with spoil(s3.endpoint) as other:
        proxy.plan = lambda path: Fault(status=status, location=other.endpoint + path)
        source = source_at(s3, "s3://faults/a", proxy.endpoint)
        with pytest.raises(ReasonedError) as listing:
            await source.list_files()
        with pytest.raises(ReasonedError) as reading:
            await read(source, SourceFile("weights", len(BODY), None))
        assert other.requests == []
    for caught in (listing, reading):
        assert caught.value.reason is Reason.SOURCE_FORBIDDEN
        assert "redirects to another host" in caught.value.message
