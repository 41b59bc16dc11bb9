import json
import logging
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from safetensors import safe_open

from graft_protocol.credentials import Credential
from graft_protocol.reasons import Reason
from graft_runtime.adapters.slot_source import SlotSource
from graft_runtime.adapters.slots import SlotPool
from graft_runtime.ipc.messages import (
    AdapterPrepared,
    AdapterRefused,
    ModelPrepared,
    ModelRefused,
    PrepareAdapter,
    PrepareModel,
)
from graft_runtime.layers.lora.layout import SlotHeader, layout_hash
from graft_runtime.models.arch import DecoderArch
from tests.support.fault_proxy import spoil
from tests.support.loader_process import (
    LoaderProcess,
    prepared,
    refusal,
    run_loader_here,
    run_loader_process,
    upload,
    write_key,
)
from tests.support.s3 import S3
from tests.support.spoiled_adapters import CONFIG, WEIGHTS, with_config, with_weights

pytestmark = pytest.mark.asyncio(loop_scope="module")

REVISION = "team-a/shout@0123456789ab"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loader(base_model: Path, s3: S3) -> AsyncIterator[LoaderProcess]:
    """Run the loader that most tests share; revisions and buckets keep them apart."""
    with tempfile.TemporaryDirectory(prefix="graft-") as name:
        folder = Path(name)
        write_key(folder, "team-a", s3.credential)
        async with run_loader_process(folder, allowed_endpoints=(s3.endpoint,)) as running:
            assert isinstance(await running.prepare_model(base_model.as_uri()), ModelPrepared)
            yield running


async def test_an_adapter_comes_from_a_bucket_to_a_slot_file(
    loader: LoaderProcess, s3: S3, peft_adapter: Path, arch: DecoderArch
) -> None:
    uri = upload(s3, "shout", peft_adapter)
    answer = prepared(await loader.prepare(REVISION, uri, credential="team-a"))
    assert (answer.rank, answer.target_modules) == (4, ("down_proj", "q_proj"))
    sizes = [(peft_adapter / name).stat().st_size for name in (CONFIG, WEIGHTS)]
    assert answer.bytes == sum(sizes)
    with safe_open(answer.path, "pt") as file:
        header = SlotHeader.from_metadata(file.metadata())
    assert header == SlotHeader(answer.digest, 4, 1, "float32", layout_hash(arch))
    pool = SlotPool(arch, num_pages=1, dtype=torch.float32, device=torch.device("cpu"))
    load = pool.begin_load(SlotSource.of(Path(answer.path)))
    while not load.advance(1 << 20):
        pass
    last = [message for message in loader.progress if message.revision == REVISION][-1]
    assert last.done_bytes == last.total_bytes == answer.bytes


async def test_an_adapter_comes_from_a_folder(loader: LoaderProcess, peft_adapter: Path) -> None:
    assert prepared(await loader.prepare(REVISION, peft_adapter.as_uri())).rank == 4


async def test_a_known_digest_is_answered_without_its_source(
    loader: LoaderProcess, s3: S3, peft_adapter: Path
) -> None:
    first = prepared(await loader.prepare(REVISION, peft_adapter.as_uri()))
    again = await loader.prepare(
        "team-b/x@0", "s3://gone/a", digest=first.digest, credential="gone"
    )
    assert prepared(again).path == first.path


async def test_a_restarted_loader_finds_what_it_had(
    folder: Path, base_model: Path, peft_adapter: Path
) -> None:
    async with run_loader_process(folder) as loader:
        model = await loader.prepare_model(base_model.as_uri())
        assert isinstance(model, ModelPrepared)
        first = prepared(await loader.prepare(REVISION, peft_adapter.as_uri()))
        assert await loader.stop() == 0
    async with run_loader_process(folder) as loader:
        again = await loader.prepare_model("file:///nowhere", digest=model.digest)
        assert again == model
        answer = await loader.prepare(REVISION, "file:///nowhere", digest=first.digest)
        assert answer == first
        assert loader.progress == []


async def test_a_load_from_the_cache_names_the_neighbours_as_the_load_from_the_source_did(
    folder: Path,
    base_model: Path,
    s3: S3,
    peft_adapter: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    uri = upload(s3, "neighbours", peft_adapter)
    write_key(folder, "k", s3.credential)
    digest = None
    for _ in range(2):
        async with run_loader_here(folder, allowed_endpoints=(s3.endpoint,)) as channel:
            channel.post(PrepareModel(base_model.as_uri()))
            channel.post(PrepareAdapter(REVISION, uri, digest, "k"))
            while not isinstance(message := await channel.receive(), AdapterPrepared):
                assert not isinstance(message, AdapterRefused), message
            digest = message.digest
            s3.put("neighbours", {"t/a1/later.txt": b"not there when it was read"})
    told = [vars(record) for record in caplog.records if hasattr(record, "num_ignored")]
    ours = [(one["ignored"], one["num_ignored"]) for one in told if one["source"] == uri]
    assert ours == [(["x.py"], 1)] * 2


async def test_every_failure_has_its_reason_and_concerns_no_other(
    loader: LoaderProcess, s3: S3, peft_adapter: Path, tmp_path: Path
) -> None:
    good = upload(s3, "good", peft_adapter)
    dora = upload(s3, "dora", with_config(peft_adapter, tmp_path / "dora", use_dora=True))
    wide = upload(s3, "wide", with_config(peft_adapter, tmp_path / "wide", r=17))
    s3.put("pickled", {f"a/{CONFIG}": b"{}", "a/adapter_model.bin": b"\x80\x04."})
    wishes: dict[str, tuple[str, dict[str, Any], Reason]] = {
        "dora": (dora, {"credential": "team-a"}, Reason.UNSUPPORTED_ADAPTER_TYPE),
        "wide": (wide, {"credential": "team-a"}, Reason.RANK_TOO_LARGE),
        "pickle": ("s3://pickled/a", {"credential": "team-a"}, Reason.UNSAFE_FORMAT),
        "absent": ("s3://nobucket/a", {"credential": "team-a"}, Reason.SOURCE_NOT_FOUND),
        "secret": (good, {"credential": "team-z"}, Reason.SECRET_NOT_FOUND),
        "digest": (
            good,
            {"credential": "team-a", "digest": "sha256:" + "1" * 64},
            Reason.CHECKSUM_MISMATCH,
        ),
        "scheme": ("http://x/a", {}, Reason.SOURCE_FORBIDDEN),
        "path": ("s3://good/a/../b", {"credential": "team-a"}, Reason.UNSAFE_PATH),
    }
    for revision, (uri, fields, _) in wishes.items():
        loader.channel.post(PrepareAdapter(revision, uri, **fields))
    loader.channel.post(PrepareAdapter(REVISION, good, credential="team-a"))
    for revision, (_, _, reason) in wishes.items():
        assert refusal(await loader.answer(revision))[0] == reason, revision
    prepared(await loader.answer(REVISION))


async def test_a_refusal_after_the_download_tells_the_digest(
    loader: LoaderProcess, s3: S3, peft_adapter: Path, tmp_path: Path
) -> None:
    uri = upload(s3, "bias", with_config(peft_adapter, tmp_path / "x", bias="all"))
    answer = await loader.prepare(REVISION, uri, credential="team-a")
    assert isinstance(answer, AdapterRefused)
    assert answer.digest is not None
    assert answer.digest.startswith("sha256:")


async def test_an_endpoint_that_nobody_allowed_is_not_contacted(
    loader: LoaderProcess, s3: S3
) -> None:
    with spoil(s3.endpoint) as proxy:
        credential = s3.credential.model_copy(update={"endpoint": proxy.endpoint})
        write_key(loader.folder, "evil", credential)
        answer = await loader.prepare(REVISION, "s3://good/a", credential="evil")
        assert refusal(answer)[0] == Reason.SOURCE_FORBIDDEN
        assert proxy.requests == []


async def test_a_rotated_credential_is_used_at_once(
    loader: LoaderProcess, s3: S3, peft_adapter: Path
) -> None:
    uri = upload(s3, "rotated", peft_adapter)
    write_key(loader.folder, "rotated", Credential(endpoint="http://127.0.0.1:1"))
    answer = await loader.prepare(REVISION, uri, credential="rotated")
    assert refusal(answer)[0] == Reason.SOURCE_FORBIDDEN
    write_key(loader.folder, "rotated", s3.credential)
    prepared(await loader.prepare(REVISION, uri, credential="rotated"))


async def test_damaged_files_in_the_cache_are_fetched_again(
    loader: LoaderProcess, s3: S3, peft_adapter: Path
) -> None:
    uri = upload(s3, "damaged", peft_adapter)
    first = prepared(await loader.prepare(REVISION, uri, credential="team-a"))
    slot = Path(first.path)
    good = slot.read_bytes()
    slot.write_bytes(b"damaged")
    weights = slot.parent / "files" / WEIGHTS
    weights.write_bytes(bytes(weights.stat().st_size))
    again = await loader.prepare(REVISION, uri, credential="team-a", digest=first.digest)
    assert prepared(again) == first
    assert slot.read_bytes() == good


async def test_an_adapter_may_be_wished_for_before_its_model(
    folder: Path, base_model: Path, peft_adapter: Path
) -> None:
    async with run_loader_process(folder) as loader:
        loader.channel.post(PrepareAdapter(REVISION, peft_adapter.as_uri()))
        loader.channel.post(PrepareModel(base_model.as_uri()))
        messages = [await loader.receive(), await loader.receive()]
    assert [type(message) for message in messages] == [ModelPrepared, AdapterPrepared]


async def test_a_model_that_is_not_served_is_refused_and_another_may_follow(
    folder: Path, base_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Other"]}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    async with run_loader_process(folder) as loader:
        answer = await loader.prepare_model(tmp_path.as_uri())
        assert isinstance(answer, ModelRefused)
        assert answer.reason == Reason.UNSUPPORTED_MODEL
        assert isinstance(await loader.prepare_model(base_model.as_uri()), ModelPrepared)


async def test_auto_takes_the_checkpoints_own_dtype(
    folder: Path, base_model: Path, peft_adapter: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in base_model.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    async with run_loader_process(folder, dtype="auto") as loader:
        await loader.prepare_model(model.as_uri())
        answer = prepared(await loader.prepare(REVISION, peft_adapter.as_uri()))
    with safe_open(answer.path, "pt") as file:
        assert file.metadata()["dtype"] == "bfloat16"


async def test_the_loader_is_nice_and_brings_no_torch(loader: LoaderProcess) -> None:
    process = Path("/proc") / str(loader.process.pid)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, loader.process.pid) == min(own + 10, 19)
    assert "libtorch" not in (process / "maps").read_text()


async def test_non_finite_weights_are_refused(
    loader: LoaderProcess, peft_adapter: Path, tmp_path: Path
) -> None:
    folder = with_weights(
        peft_adapter,
        tmp_path / "x",
        lambda tensors: {name: tensor * float("nan") for name, tensor in tensors.items()},
    )
    answer = await loader.prepare(REVISION, folder.as_uri())
    assert refusal(answer)[0] == Reason.NON_FINITE_WEIGHTS
