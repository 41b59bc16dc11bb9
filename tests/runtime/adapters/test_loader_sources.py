"""Every kind of source, through a real loader process: base models and adapters alike."""

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from graft_protocol.credentials import Credential
from graft_protocol.digest import FileRecord, canonical_manifest
from graft_protocol.reasons import Reason
from graft_runtime.ipc.messages import ModelPrepared, ModelRefused
from tests.support.bucket_server import BucketServer, serve_buckets
from tests.support.hub import Hub, serve_hub
from tests.support.loader_process import (
    LoaderProcess,
    prepared,
    refusal,
    run_loader_process,
    write_key,
)
from tests.support.s3 import S3
from tests.support.spoiled_adapters import CONFIG, WEIGHTS
from tests.support.tls import authority, make_certificate
from tests.support.web_server import WebServer, serve_files

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONLINE = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "0"}
KINDS = ("s3", "gs", "az", "hf", "https", "pvc", "file")
REVISION = "team-a/shout@0123456789ab"


class Places:
    """One server of each kind, and what opens it."""

    def __init__(self, stack: ExitStack, s3: S3, folder: Path) -> None:
        certificate = make_certificate(folder)
        self.s3 = s3
        self.buckets: BucketServer = stack.enter_context(serve_buckets())
        self.hub: Hub = stack.enter_context(serve_hub())
        self.web: WebServer = stack.enter_context(serve_files(certificate))
        self.folder = folder
        self.hub.tokens, self.hub.granted = {"good"}, {"good"}
        token = Credential(token="good")
        self.credentials = {
            "s3": s3.credential,
            "gs": token.model_copy(update={"endpoint": self.buckets.endpoint}),
            "az": token.model_copy(update={"endpoint": self.buckets.endpoint}),
            "hf": token.model_copy(update={"endpoint": self.hub.endpoint}),
            "https": token.model_copy(update={"ca_bundle": authority(certificate)}),
        }
        self.allowed = (
            s3.endpoint,
            self.buckets.endpoint,
            self.hub.endpoint,
            self.hub.storage,
            f"https://{self.web.host}",
        )

    def publish(self, kind: str, name: str, source: Path) -> str:
        """Bring a folder's files to a source of a kind; return their URI."""
        files = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
        below = {f"t/{name}/{file}": body for file, body in files.items()}
        match kind:
            case "s3":
                self.s3.put("places", below)
                return f"s3://places/t/{name}"
            case "gs":
                self.buckets.put("bucket", below)
                return f"gs://bucket/t/{name}"
            case "az":
                self.buckets.put("account/container", below)
                return f"az://account/container/t/{name}"
            case "hf":
                self.hub.repository(f"org/{name}").commit(files)
                self.hub.repository(f"org/{name}").is_gated = True
                return f"hf://org/{name}@main"
            case "https":
                self.web.files |= {f"/{key}": body for key, body in below.items()}
                self.web.files[f"/t/{name}/manifest"] = manifest_of(files)
                return f"https://{self.web.host}/t/{name}/manifest"
            case "pvc":
                shutil.copytree(source, self.folder / "claims/shared" / name)
                return f"pvc://shared/{name}"
            case _:
                return source.as_uri()


def manifest_of(files: dict[str, bytes]) -> bytes:
    return canonical_manifest(
        FileRecord(name, len(body), hashlib.sha256(body).hexdigest())
        for name, body in files.items()
    )


@pytest.fixture(scope="module")
def places(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with ExitStack() as stack:
        yield Places(stack, s3, tmp_path_factory.mktemp("places"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loader(places: Places, base_model: Path) -> AsyncIterator[LoaderProcess]:
    with tempfile.TemporaryDirectory(prefix="graft-") as name:
        folder = Path(name)
        (folder / "claims").symlink_to(places.folder / "claims")
        for kind, credential in places.credentials.items():
            write_key(folder, kind, credential)
        async with run_loader_process(
            folder, environment=ONLINE, allowed_endpoints=places.allowed
        ) as running:
            await running.prepare_model(base_model.as_uri())
            yield running


@pytest.mark.parametrize("kind", KINDS)
async def test_an_adapter_comes_from_every_kind_of_source(
    loader: LoaderProcess, places: Places, peft_adapter: Path, kind: str, tmp_path: Path
) -> None:
    copy = adapter_of_its_own(peft_adapter, tmp_path, kind)
    uri = places.publish(kind, "adapter", copy)
    credential = kind if kind in places.credentials else None
    answer = prepared(await loader.prepare(f"{kind}@0", uri, credential=credential))
    assert answer.rank == 4
    assert any(progress.revision == f"{kind}@0" for progress in loader.progress)
    again = await loader.prepare(f"{kind}@1", uri, digest=answer.digest, credential=credential)
    assert prepared(again).path == answer.path


@pytest.mark.parametrize("kind", KINDS)
async def test_a_base_model_comes_from_every_kind_of_source_and_tells_its_progress(
    loader: LoaderProcess, places: Places, base_model: Path, kind: str, tmp_path: Path
) -> None:
    copy = shutil.copytree(base_model, tmp_path / "model")
    (copy / "tokenizer_config.json").write_text(f'{{"kind": "{kind}"}}')
    uri = places.publish(kind, "model", copy)
    credential = kind if kind in places.credentials else None
    loader.progress.clear()
    answer = await loader.prepare_model(uri, credential=credential)
    assert isinstance(answer, ModelPrepared), answer
    assert (Path(answer.path) / "tokenizer_config.json").read_text() == f'{{"kind": "{kind}"}}'
    told = [progress for progress in loader.progress if progress.revision is None]
    assert told[-1].done_bytes == told[-1].total_bytes == answer.bytes
    assert (answer.origin is not None) == (kind == "hf")


async def test_a_hub_revision_is_read_at_its_commit_which_is_told_and_remembered(
    places: Places, base_model: Path, peft_adapter: Path, folder: Path
) -> None:
    uri = places.publish("hf", "moving", peft_adapter)
    write_key(folder, "hf", places.credentials["hf"])
    async with run_loader_process(
        folder, environment=ONLINE, allowed_endpoints=places.allowed
    ) as loader:
        await loader.prepare_model(base_model.as_uri())
        first = prepared(await loader.prepare(REVISION, uri, credential="hf"))
    commit = places.hub.repository("org/moving").revisions["main"]
    assert first.origin == f"hf://org/moving@{commit}"
    places.hub.repository("org/moving").commit({CONFIG: b"{}", WEIGHTS: b"newer"})
    asked = len(places.hub.requests)
    offline = {"HF_HUB_OFFLINE": "1"}
    async with run_loader_process(folder, environment=offline) as loader:
        await loader.prepare_model(base_model.as_uri())
        again = prepared(await loader.prepare(REVISION, first.origin))
        assert (again.digest, again.path) == (first.digest, first.path)
        reason, message = refusal(await loader.prepare("team-a/x@0", uri))
        assert (reason, "offline" in message) == (Reason.SOURCE_UNAVAILABLE, True)
    assert len(places.hub.requests) == asked


async def test_an_adapter_of_another_model_of_the_hub_is_served_with_a_warning(
    places: Places, base_model: Path, peft_adapter: Path, folder: Path, tmp_path: Path
) -> None:
    uri = places.publish("hf", "small-model", base_model)
    write_key(folder, "hf", places.credentials["hf"])
    copy = adapter_of_its_own(peft_adapter, tmp_path, "foreign")
    fields = json.loads((copy / CONFIG).read_bytes())
    (copy / CONFIG).write_text(json.dumps(fields | {"base_model_name_or_path": "org/large-model"}))
    (copy / "README.md").write_text("not part of it")
    async with run_loader_process(
        folder, environment=ONLINE, allowed_endpoints=places.allowed
    ) as loader:
        await loader.prepare_model(uri, credential="hf")
        warned = prepared(await loader.prepare(REVISION, copy.as_uri()))
        silent = prepared(await loader.prepare("team-a/own@0", peft_adapter.as_uri()))
    assert "org/large-model" in warned.warning
    assert "org/small-model" in warned.warning
    assert silent.warning == ""


async def read_from_the_hub(
    places: Places, base_model: Path, folder: Path, name: str
) -> ModelPrepared:
    """Bring a base model into the cache, by a loader that has ended since."""
    uri = places.publish("hf", name, base_model)
    write_key(folder, "hf", places.credentials["hf"])
    async with run_loader_process(
        folder, environment=ONLINE, allowed_endpoints=places.allowed
    ) as loader:
        first = await loader.prepare_model(uri, credential="hf")
    assert isinstance(first, ModelPrepared), first
    return first


async def test_a_base_model_of_the_hub_is_found_again_offline(
    places: Places, base_model: Path, folder: Path
) -> None:
    first = await read_from_the_hub(places, base_model, folder, "kept")
    assert first.origin is not None
    asked = len(places.hub.requests)
    async with run_loader_process(folder, environment={"HF_HUB_OFFLINE": "1"}) as loader:
        again = await loader.prepare_model(first.origin)
        assert isinstance(again, ModelPrepared), again
        assert (again.digest, again.path) == (first.digest, first.path)
        moving = await loader.prepare_model("hf://org/never-seen@main")
        assert isinstance(moving, ModelRefused)
        assert moving.reason == Reason.SOURCE_UNAVAILABLE
        assert "offline" in moving.message
    assert len(places.hub.requests) == asked


async def test_what_a_commit_holds_is_forgotten_at_a_start_that_does_not_find_it_in_the_cache(
    places: Places, base_model: Path, folder: Path
) -> None:
    first = await read_from_the_hub(places, base_model, folder, "remembered")
    (kept,) = (folder / "cache/pins").iterdir()
    (kept.parent / ("0" * 64)).write_text("sha256:" + "0" * 64)
    async with run_loader_process(folder, environment={"HF_HUB_OFFLINE": "1"}) as loader:
        async with asyncio.timeout(20):
            while list(kept.parent.iterdir()) != [kept]:
                await asyncio.sleep(0.01)
        again = await loader.prepare_model(first.origin or "")
        assert isinstance(again, ModelPrepared), again
        assert again.digest == first.digest


async def test_a_gated_base_model_is_refused_to_who_was_not_granted_it(
    loader: LoaderProcess, places: Places, base_model: Path
) -> None:
    uri = places.publish("hf", "gated-model", base_model)
    places.hub.tokens |= {"stranger"}
    stranger = Credential(token="stranger", endpoint=places.hub.endpoint)
    write_key(loader.folder, "stranger", stranger)
    refused = await loader.prepare_model(uri, credential="stranger")
    assert isinstance(refused, ModelRefused), refused
    assert refused.reason == Reason.SOURCE_FORBIDDEN
    assert "gated" in refused.message
    assert "stranger" not in refused.message
    assert isinstance(await loader.prepare_model(uri, credential="hf"), ModelPrepared)


async def test_a_file_that_is_not_what_its_manifest_says_is_refused(
    loader: LoaderProcess, places: Places, peft_adapter: Path, tmp_path: Path
) -> None:
    copy = adapter_of_its_own(peft_adapter, tmp_path, "tampered")
    uri = places.publish("https", "tampered", copy)
    path = f"/t/tampered/{WEIGHTS}"
    body = places.web.files[path]
    places.web.files[path] = bytes([body[0] ^ 1]) + body[1:]
    reason, message = refusal(await loader.prepare("tampered@0", uri, credential="https"))
    assert reason == Reason.CHECKSUM_MISMATCH
    assert WEIGHTS in message
    assert list((loader.folder / "cache/tmp").iterdir()) == []


async def test_adapters_lie_where_the_service_allows_and_the_model_anywhere(
    places: Places, base_model: Path, peft_adapter: Path, folder: Path
) -> None:
    (folder / "claims").symlink_to(places.folder / "claims")
    inside = places.publish("pvc", "inside", peft_adapter)
    async with run_loader_process(folder, allowed_uris=("pvc://shared/inside",)) as loader:
        answer = await loader.prepare_model(base_model.as_uri())
        assert not isinstance(answer, ModelRefused)
        digest = prepared(await loader.prepare("a@0", inside)).digest
        # Not even what lies in the cache is given to who asks for it under another name.
        outside = await loader.prepare("b@0", peft_adapter.as_uri(), digest=digest)
        assert refusal(outside)[0] == Reason.SOURCE_FORBIDDEN


def adapter_of_its_own(adapter: Path, folder: Path, mark: str) -> Path:
    """Copy an adapter so that its content, and with it its digest, is nobody else's."""
    copy = shutil.copytree(adapter, folder / "copy")
    text = (copy / CONFIG).read_text()
    (copy / CONFIG).write_text(text + " " * (1 + len(mark) + sum(map(ord, mark))))
    return copy
