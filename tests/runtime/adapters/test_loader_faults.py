import asyncio
from pathlib import Path

import pytest

from graft_protocol.reasons import Reason
from graft_runtime.ipc.messages import (
    AdapterRefused,
    ModelPrepared,
    PrepareAdapter,
    ReleaseAdapter,
)
from tests.support.fault_proxy import Fault, spoil
from tests.support.loader_process import (
    prepared,
    refusal,
    run_loader_here,
    run_loader_process,
    upload,
    write_key,
)
from tests.support.s3 import S3
from tests.support.spoiled_adapters import CONFIG, WEIGHTS, with_config

pytestmark = pytest.mark.asyncio(loop_scope="module")

REVISION = "team-a/shout@0123456789ab"


async def test_a_killed_loader_leaves_a_cache_that_the_next_one_can_use(
    folder: Path, base_model: Path, s3: S3, peft_adapter: Path
) -> None:
    uri = upload(s3, "killed", peft_adapter)
    with spoil(s3.endpoint) as proxy:
        proxy.plan = lambda path: Fault(stall_after_bytes=10) if path.endswith(WEIGHTS) else None
        credential = s3.credential.model_copy(update={"endpoint": proxy.endpoint})
        write_key(folder, "k", credential)
        async with run_loader_process(folder, allowed_endpoints=(proxy.endpoint,)) as loader:
            loader.channel.post(PrepareAdapter(REVISION, uri, credential="k"))
            async with asyncio.timeout(10):
                while not proxy.gets_of(WEIGHTS):
                    await asyncio.sleep(0.01)
            loader.process.kill()
            await loader.process.wait()
            assert list((folder / "cache" / "tmp").iterdir())
    async with run_loader_process(folder) as loader:
        assert list((folder / "cache" / "tmp").iterdir()) == []
        await loader.prepare_model(base_model.as_uri())
        prepared(await loader.prepare(REVISION, peft_adapter.as_uri()))


async def test_a_cache_that_became_read_only_serves_what_it_holds_until_it_takes_more(
    folder: Path, base_model: Path, peft_adapter: Path, tmp_path: Path
) -> None:
    other = with_config(peft_adapter, tmp_path / "other", lora_alpha=3)
    async with run_loader_process(folder) as loader:
        model = await loader.prepare_model(base_model.as_uri())
        first = prepared(await loader.prepare("team-a/held@0", peft_adapter.as_uri()))
    assert isinstance(model, ModelPrepared)
    places = [folder / "cache", *(path for path in (folder / "cache").rglob("*") if path.is_dir())]
    try:
        for place in places:
            place.chmod(0o500)
        async with run_loader_process(folder, obeys_modes=True) as loader:
            again = await loader.prepare_model("file:///nowhere", digest=model.digest)
            assert isinstance(again, ModelPrepared), again
            held = await loader.prepare("team-a/held@0", "file:///nowhere", digest=first.digest)
            assert prepared(held).path == first.path
            reason, message = refusal(await loader.prepare("team-a/new@0", other.as_uri()))
            assert reason == Reason.CACHE_FULL
            assert "may not be written" in message
            for place in places:
                place.chmod(0o700)
            prepared(await loader.prepare("team-a/new@0", other.as_uri()))
    finally:
        for place in places:
            place.chmod(0o700)


async def test_a_slow_source_does_not_hold_up_another(
    folder: Path, base_model: Path, s3: S3, peft_adapter: Path
) -> None:
    uri = upload(s3, "slow", peft_adapter)
    with spoil(s3.endpoint) as proxy:
        proxy.plan = lambda path: Fault(stall_after_bytes=10) if path.endswith(WEIGHTS) else None
        credential = s3.credential.model_copy(update={"endpoint": proxy.endpoint})
        write_key(folder, "k", credential)
        async with run_loader_process(folder, allowed_endpoints=(proxy.endpoint,)) as loader:
            await loader.prepare_model(base_model.as_uri())
            loader.channel.post(PrepareAdapter("team-a/slow@0", uri, credential="k"))
            async with asyncio.timeout(10):
                while not proxy.gets_of(WEIGHTS):
                    await asyncio.sleep(0.01)
            prepared(await loader.prepare(REVISION, peft_adapter.as_uri()))
            # Released in the middle of its download, it leaves nothing and says nothing.
            loader.channel.post(ReleaseAdapter("team-a/slow@0"))
            prepared(await loader.prepare("team-a/other@0", peft_adapter.as_uri()))
            async with asyncio.timeout(10):
                while list((folder / "cache" / "tmp").iterdir()):
                    await asyncio.sleep(0.01)


async def test_a_source_that_takes_too_long_is_given_up(
    folder: Path, s3: S3, peft_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graft_runtime.adapters.loader.FETCH_TIMEOUT_SECONDS", 0.2)
    uri = upload(s3, "endless", peft_adapter)
    with spoil(s3.endpoint) as proxy:
        proxy.plan = lambda path: Fault(stall_after_bytes=10) if path.endswith(WEIGHTS) else None
        credential = s3.credential.model_copy(update={"endpoint": proxy.endpoint})
        write_key(folder, "k", credential)
        async with run_loader_here(folder, allowed_endpoints=(proxy.endpoint,)) as channel:
            channel.post(PrepareAdapter(REVISION, uri, credential="k"))
            while not isinstance(message := await channel.receive(), AdapterRefused):
                pass
    assert message.reason == Reason.LOAD_TIMEOUT


async def test_an_unexpected_fault_is_answered_and_survived(
    folder: Path, base_model: Path, peft_adapter: Path
) -> None:
    digest = "sha256:" + "2" * 64
    async with run_loader_process(folder) as loader:
        await loader.prepare_model(base_model.as_uri())
        # A folder where the lock file should be: no code of ours expects that.
        (folder / "cache" / "locks" / f"adapters-{'2' * 64}").mkdir()
        answer = await loader.prepare("team-a/x@0", peft_adapter.as_uri(), digest=digest)
        assert refusal(answer) == (Reason.INTERNAL_ERROR, "unexpected IsADirectoryError")
        prepared(await loader.prepare(REVISION, peft_adapter.as_uri()))
        assert await loader.stop() == 0
    assert "Traceback" in loader.log


async def test_keys_never_reach_log_or_answers(folder: Path, base_model: Path, s3: S3) -> None:
    with spoil(s3.endpoint) as proxy:
        proxy.plan = lambda path: Fault(status=403, code="AccessDenied")
        credential = s3.credential.model_copy(
            update={"endpoint": proxy.endpoint, "secret_access_key": "hunter2hunter2"}
        )
        write_key(folder, "k", credential)
        async with run_loader_process(folder, allowed_endpoints=(proxy.endpoint,)) as loader:
            answer = await loader.prepare(REVISION, "s3://x-bucket/a", credential="k")
            assert refusal(answer)[0] == Reason.SOURCE_FORBIDDEN
            await loader.stop()
    assert "hunter2" not in loader.log + str(answer)


async def test_a_released_adapter_makes_room_and_a_wanted_one_does_not(
    folder: Path, base_model: Path, peft_adapter: Path, tmp_path: Path
) -> None:
    versions = [
        with_config(peft_adapter, tmp_path / f"v{number}", lora_alpha=10 + number)
        for number in range(3)
    ]
    async with run_loader_process(folder) as loader:
        await loader.prepare_model(base_model.as_uri())
        await loader.prepare("v0", versions[0].as_uri())
        used = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    adapter_bytes = sum((peft_adapter / name).stat().st_size for name in (CONFIG, WEIGHTS))
    limit = used + 2 * adapter_bytes  # one adapter with its slot file, and not a second
    async with run_loader_process(folder, cache_max_bytes=limit) as loader:
        await loader.prepare_model(base_model.as_uri())
        first = prepared(await loader.prepare("v0", versions[0].as_uri()))
        assert refusal(await loader.prepare("v1", versions[1].as_uri()))[0] == Reason.CACHE_FULL
        loader.channel.post(ReleaseAdapter("v0"))
        prepared(await loader.prepare("v1", versions[1].as_uri()))
        assert not Path(first.path).exists()


async def test_a_herd_of_revisions_with_one_content_downloads_it_once(
    folder: Path, base_model: Path, s3: S3, peft_adapter: Path
) -> None:
    uri = upload(s3, "herd", peft_adapter)
    with spoil(s3.endpoint) as proxy:
        credential = s3.credential.model_copy(update={"endpoint": proxy.endpoint})
        write_key(folder, "k", credential)
        async with run_loader_process(
            folder, allowed_endpoints=(proxy.endpoint,), load_concurrency=8
        ) as loader:
            await loader.prepare_model(base_model.as_uri())
            digest = prepared(await loader.prepare("first", peft_adapter.as_uri())).digest
            loader.channel.post(ReleaseAdapter("first"))
            for path in (folder / "cache" / "adapters").iterdir():
                path.rename(folder / "gone")
            revisions = [f"team-{number}/x@0" for number in range(8)]
            for revision in revisions:
                loader.channel.post(PrepareAdapter(revision, uri, digest=digest, credential="k"))
            answers = [prepared(await loader.answer(revision)) for revision in revisions]
        assert len({answer.path for answer in answers}) == 1
        assert proxy.gets_of(WEIGHTS) == 1
