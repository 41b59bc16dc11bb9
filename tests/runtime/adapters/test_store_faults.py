"""What object stores do to their readers, played against the loader: each fault ends in its reason,
leaves nothing half-written and disturbs nobody else.
"""

import asyncio
import itertools
import resource
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from graft_protocol.reasons import Reason
from graft_runtime.ipc.channel import AsyncChannel
from graft_runtime.ipc.messages import (
    AdapterPrepared,
    AdapterRefused,
    FromLoader,
    ModelPrepared,
    PrepareAdapter,
    PrepareModel,
    ToLoader,
)
from graft_runtime.sources import object_store
from graft_runtime.sources.endpoints import SourcePolicy
from tests.support.fault_proxy import Fault, FaultProxy, spoil
from tests.support.loader_process import run_loader_here, write_key
from tests.support.s3 import S3
from tests.support.spoiled_adapters import CONFIG, WEIGHTS

Plan = Callable[[str], Fault | None]
BUCKETS = itertools.count()


def everywhere(**fault: object) -> Plan:
    return lambda path: Fault(**fault)  # type: ignore[arg-type] # the rows below know them


def weights(**fault: object) -> Plan:
    return lambda path: Fault(**fault) if path.endswith(WEIGHTS) else None  # type: ignore[arg-type]


FAULTS: dict[str, tuple[Plan, Reason]] = {
    "no such key": (weights(status=404, code="NoSuchKey"), Reason.SOURCE_NOT_FOUND),
    "no such bucket": (everywhere(status=404, code="NoSuchBucket"), Reason.SOURCE_NOT_FOUND),
    "access denied": (everywhere(status=403, code="AccessDenied"), Reason.SOURCE_FORBIDDEN),
    "access denied to one file": (weights(status=403), Reason.SOURCE_FORBIDDEN),
    "expired keys": (everywhere(status=400, code="ExpiredToken"), Reason.SOURCE_FORBIDDEN),
    "a clock that is wrong": (
        everywhere(status=403, code="RequestTimeTooSkewed"),
        Reason.SOURCE_FORBIDDEN,
    ),
    "an internal error": (everywhere(status=500), Reason.SOURCE_UNAVAILABLE),
    "slow down": (weights(status=503, code="SlowDown"), Reason.SOURCE_UNAVAILABLE),
    "a stall in the middle": (weights(stall_after_bytes=100), Reason.SOURCE_UNAVAILABLE),
    "a stall before the first byte": (weights(stall_after_bytes=0), Reason.SOURCE_UNAVAILABLE),
    "one byte at a time": (weights(drip_seconds=0.05), Reason.SOURCE_UNAVAILABLE),
    "a break in the middle, always": (weights(cut_after_bytes=100), Reason.TRUNCATED_DOWNLOAD),
    "extra bytes": (weights(append=b"extra"), Reason.SOURCE_CHANGED),
    "a length that is a lie": (weights(announce=7), Reason.SOURCE_CHANGED),
    "gzip instead of the bytes": (weights(compress=True), Reason.SOURCE_CHANGED),
    "another object's ETag": (weights(headers={"ETag": '"x"'}), Reason.SOURCE_CHANGED),
    "a permanent redirect": (
        everywhere(status=301, location="http://127.0.0.1:1/elsewhere"),
        Reason.SOURCE_FORBIDDEN,
    ),
    "a temporary redirect": (
        weights(status=307, location="http://169.254.169.254/latest/meta-data"),
        Reason.SOURCE_FORBIDDEN,
    ),
}


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = partial(SourcePolicy, idle_timeout_seconds=1.0, max_retries=1)
    monkeypatch.setattr("graft_runtime.adapters.loader.SourcePolicy", policy)


@pytest.fixture
def proxy(s3: S3) -> Iterator[FaultProxy]:
    with spoil(s3.endpoint) as running:
        yield running


def upload(s3: S3, adapter: Path) -> str:
    """Put an adapter where no other test looks; return the bucket."""
    bucket = f"faults-{next(BUCKETS)}"
    files = {name: (adapter / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    s3.put(bucket, {f"t/a1/{name}": body for name, body in files.items()})
    return bucket


async def run(
    folder: Path, s3: S3, proxy: FaultProxy, base_model: Path, neighbour: Path, uri: str
) -> AdapterPrepared | AdapterRefused:
    """Ask for an adapter from a store with faults and for another one; return the first answer."""
    write_key(folder, "k", s3.credential.model_copy(update={"endpoint": proxy.endpoint}))
    async with run_loader_here(folder, allowed_endpoints=(proxy.endpoint,)) as channel:
        channel.post(PrepareModel(base_model.as_uri()))
        channel.post(PrepareAdapter("bad", uri, credential="k"))
        channel.post(PrepareAdapter("good", neighbour.as_uri()))
        answers = await _answers(channel)
        assert isinstance(answers["good"], AdapterPrepared), answers["good"]
        answer = answers["bad"]
        whole = {answers["good"].digest, answer.digest}
        names = {f"sha256:{path.name}" for path in (folder / "cache/adapters").iterdir()}
        assert names <= whole
        assert isinstance(answer, AdapterPrepared) or len(names) == 1
        for place in ("tmp", "partial"):
            assert list((folder / "cache" / place).iterdir()) == []
    return answer


async def _answers(
    channel: AsyncChannel[FromLoader, ToLoader], count: int = 2
) -> dict[str, AdapterPrepared | AdapterRefused]:
    answers: dict[str, AdapterPrepared | AdapterRefused] = {}
    async with asyncio.timeout(60):
        while len(answers) < count:
            message = await channel.receive()
            if isinstance(message, AdapterPrepared | AdapterRefused):
                answers[message.revision] = message
    return answers


@pytest.mark.parametrize("name", FAULTS)
async def test_each_fault_ends_in_its_reason_and_disturbs_nobody(
    name: str, folder: Path, s3: S3, proxy: FaultProxy, base_model: Path, peft_adapter: Path
) -> None:
    proxy.plan, reason = FAULTS[name]
    uri = f"s3://{upload(s3, peft_adapter)}/t/a1"
    answer = await run(folder, s3, proxy, base_model, peft_adapter, uri)
    assert isinstance(answer, AdapterRefused), answer
    assert answer.reason == reason, answer.message
    assert "169.254" not in answer.message


async def test_nobody_listening_ends_as_unavailable(
    folder: Path, s3: S3, base_model: Path, peft_adapter: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = FaultProxy(f"http://127.0.0.1:{server.getsockname()[1]}")
    answer = await run(folder, s3, nobody, base_model, peft_adapter, "s3://bucket/a")
    assert isinstance(answer, AdapterRefused)
    assert answer.reason == Reason.SOURCE_UNAVAILABLE


async def test_a_name_that_nobody_knows_ends_as_unavailable(
    folder: Path, s3: S3, base_model: Path, peft_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "no")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    nobody = FaultProxy("http://store.example:9000")
    answer = await run(folder, s3, nobody, base_model, peft_adapter, "s3://bucket/a")
    assert isinstance(answer, AdapterRefused)
    assert answer.reason == Reason.SOURCE_UNAVAILABLE


async def test_a_prefix_with_more_objects_than_an_adapter_has_is_given_up(
    folder: Path,
    s3: S3,
    proxy: FaultProxy,
    base_model: Path,
    peft_adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(object_store, "MAX_LISTED", 5)
    bucket = upload(s3, peft_adapter)
    s3.put(bucket, {f"t/a1/below/{number}": b"" for number in range(6)})
    answer = await run(folder, s3, proxy, base_model, peft_adapter, f"s3://{bucket}/t/a1")
    assert isinstance(answer, AdapterRefused)
    assert answer.reason == Reason.TOO_LARGE


async def test_a_full_disk_ends_as_such_and_the_next_attempt_succeeds(
    folder: Path, s3: S3, base_model: Path, peft_adapter: Path
) -> None:
    uri = f"s3://{upload(s3, peft_adapter)}/t/a1"
    write_key(folder, "k", s3.credential)
    async with run_loader_here(folder, allowed_endpoints=(s3.endpoint,)) as channel:
        channel.post(PrepareModel(base_model.as_uri()))
        while not isinstance(await channel.receive(), ModelPrepared):
            pass
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as if there were no more room
        try:
            channel.post(PrepareAdapter("bad", uri, credential="k"))
            answer = (await _answers(channel, 1))["bad"]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert isinstance(answer, AdapterRefused)
        assert answer.reason == Reason.CACHE_FULL
        for place in ("adapters", "tmp", "partial"):
            assert list((folder / "cache" / place).iterdir()) == []
        channel.post(PrepareAdapter("bad", uri, credential="k"))
        assert isinstance((await _answers(channel, 1))["bad"], AdapterPrepared)


async def test_a_break_near_the_end_is_mended(
    folder: Path, s3: S3, proxy: FaultProxy, base_model: Path, peft_adapter: Path
) -> None:
    size = (peft_adapter / WEIGHTS).stat().st_size
    faults = iter([Fault(cut_after_bytes=size * 99 // 100)])
    proxy.plan = lambda path: next(faults, None) if path.endswith(WEIGHTS) else None
    uri = f"s3://{upload(s3, peft_adapter)}/t/a1"
    assert isinstance(await run(folder, s3, proxy, base_model, peft_adapter, uri), AdapterPrepared)
    assert proxy.gets_of(WEIGHTS) == 2


@pytest.mark.parametrize("replaced", [CONFIG, WEIGHTS])
async def test_an_object_replaced_under_the_readers_hands_is_read_anew_as_a_whole(
    folder: Path, s3: S3, proxy: FaultProxy, base_model: Path, peft_adapter: Path, replaced: str
) -> None:
    bucket = upload(s3, peft_adapter)
    newer = {CONFIG: (peft_adapter / CONFIG).read_bytes() + b" "}
    newer[WEIGHTS] = (peft_adapter / WEIGHTS).read_bytes()

    def replace() -> None:
        s3.put(bucket, {f"t/a1/{name}": body for name, body in newer.items()})

    faults = iter([Fault(before=replace)])
    proxy.plan = lambda path: next(faults, None) if path.endswith(replaced) else None
    answer = await run(folder, s3, proxy, base_model, peft_adapter, f"s3://{bucket}/t/a1")
    assert isinstance(answer, AdapterPrepared), answer
    assert answer.bytes == sum(map(len, newer.values()))


async def test_a_source_that_never_holds_still_is_given_up(
    folder: Path, s3: S3, proxy: FaultProxy, base_model: Path, peft_adapter: Path
) -> None:
    bucket = upload(s3, peft_adapter)
    body = (peft_adapter / CONFIG).read_bytes()
    spaces = itertools.count(1)

    def replace() -> None:
        s3.put(bucket, {f"t/a1/{CONFIG}": body + b" " * next(spaces)})

    proxy.plan = lambda path: Fault(before=replace) if path.endswith(CONFIG) else None
    answer = await run(folder, s3, proxy, base_model, peft_adapter, f"s3://{bucket}/t/a1")
    assert isinstance(answer, AdapterRefused)
    assert answer.reason == Reason.SOURCE_CHANGED


async def test_neighbours_of_the_prefix_are_never_read(
    folder: Path, s3: S3, proxy: FaultProxy, base_model: Path, peft_adapter: Path
) -> None:
    bucket = upload(s3, peft_adapter)
    s3.put(bucket, {f"t/a10/{CONFIG}": b"{", f"t/a1/below/{CONFIG}": b"{", "t/a1/": b""})
    answer = await run(folder, s3, proxy, base_model, peft_adapter, f"s3://{bucket}/t/a1")
    assert isinstance(answer, AdapterPrepared), answer


@pytest.mark.parametrize("key", ["t/a1/../secret", "t/a1//x.safetensors"])
async def test_a_key_that_would_lead_elsewhere_refuses_the_whole(
    folder: Path, s3: S3, proxy: FaultProxy, base_model: Path, peft_adapter: Path, key: str
) -> None:
    bucket = upload(s3, peft_adapter)
    s3.put(bucket, {key: b"x"})
    answer = await run(folder, s3, proxy, base_model, peft_adapter, f"s3://{bucket}/t/a1")
    assert isinstance(answer, AdapterRefused)
    assert answer.reason == Reason.UNSAFE_PATH
