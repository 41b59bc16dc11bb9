"""`graft adapter publish`: to files and to a real S3 endpoint."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from obstore.store import AzureStore, GCSStore, S3Store

from graft_operator.cli import main
from graft_operator.cli.publish import open_store
from graft_operator.errors import InvalidManifestError
from graft_operator.resources.admission import admit
from graft_protocol.digest import FileRecord, manifest_digest
from tests.support.s3 import S3, serve_s3


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with serve_s3() as endpoint:
        yield endpoint


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "My_Adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights-1")
    (folder / "README.md").write_text("not part of it")
    return folder


def publish(folder: Path, uri: str, *more: str) -> Result:
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_REGION": "us-east-1"}
    return CliRunner(env=keys).invoke(main, ["adapter", "publish", str(folder), uri, *more])


def digest_of(folder: Path) -> str:
    names = ("adapter_config.json", "adapter_model.safetensors")
    contents = {name: (folder / name).read_bytes() for name in names}
    return manifest_digest(
        FileRecord(name, len(data), hashlib.sha256(data).hexdigest())
        for name, data in contents.items()
    )


def test_the_printed_manifest_is_admitted_and_names_what_was_copied(
    adapter: Path, tmp_path: Path
) -> None:
    target = tmp_path / "store"
    done = publish(adapter, target.as_uri(), "--service", "tiny", "--secret", "keys")
    assert done.exit_code == 0, done.output
    manifest = yaml.safe_load(done.stdout)
    admit(manifest, None)
    assert manifest["metadata"]["name"] == "my-adapter"
    assert manifest["spec"]["source"] == {
        "uri": target.as_uri(),
        "digest": digest_of(adapter),
        "credentialsSecretRef": {"name": "keys"},
    }
    assert sorted(path.name for path in target.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_publishing_again_changes_nothing_and_another_version_is_refused(
    adapter: Path, s3: S3
) -> None:
    uri = "s3://adapters/team/mine"
    s3.put("adapters", {"team/mine-too/adapter_config.json": b"{}"})
    options = ("--endpoint", s3.endpoint)
    first = publish(adapter, uri, *options)
    assert first.exit_code == 0, first.output
    assert publish(adapter, uri, *options).stdout == first.stdout
    (adapter / "adapter_model.safetensors").write_bytes(b"weights-2")
    refused = publish(adapter, uri, *options)
    assert refused.exit_code == 1
    assert "another version" in refused.stderr
    forced = publish(adapter, uri, *options, "--overwrite")
    assert yaml.safe_load(forced.stdout)["spec"]["source"]["digest"] == digest_of(adapter)


def test_a_replaced_version_leaves_no_file_behind(adapter: Path, tmp_path: Path) -> None:
    target = tmp_path / "store"
    (adapter / "extra.safetensors").write_bytes(b"more")
    assert publish(adapter, target.as_uri()).exit_code == 0
    (adapter / "extra.safetensors").unlink()
    assert publish(adapter, target.as_uri(), "--overwrite").exit_code == 0
    assert not (target / "extra.safetensors").exists()


@pytest.mark.parametrize(
    ("missing", "message"),
    [("adapter_config.json", "has no adapter_config.json"), ("*.safetensors", "no safetensors")],
)
def test_a_folder_that_is_no_adapter_is_refused(
    adapter: Path, tmp_path: Path, missing: str, message: str
) -> None:
    for path in adapter.glob(missing):
        path.unlink()
    done = publish(adapter, (tmp_path / "store").as_uri())
    assert done.exit_code == 1
    assert message in done.stderr


def test_pickled_weights_are_refused_with_the_reason(adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    done = publish(adapter, (tmp_path / "store").as_uri())
    assert "adapter_model.bin is not loaded: it can run code" in done.stderr


@pytest.mark.parametrize("uri", ["http://example.test/x", "s3://", "bucket/key", "file://host/x"])
def test_a_place_that_pods_cannot_read_is_refused(adapter: Path, uri: str) -> None:
    done = publish(adapter, uri)
    assert done.exit_code == 1
    assert "is not s3://bucket/prefix, gs://bucket/prefix, az://account/container" in done.stderr
    assert "or file:///folder" in done.stderr


def test_an_account_without_a_container_is_refused(adapter: Path) -> None:
    done = publish(adapter, "az://account")
    assert done.exit_code == 1
    assert "az://account/container/prefix" in done.stderr


@pytest.mark.parametrize(
    ("uri", "kind", "prefix"),
    [
        ("gs://bucket/team/a", GCSStore, "team/a/"),
        ("az://account/container/team/a", AzureStore, "team/a/"),
        ("az://account/container", AzureStore, ""),
        ("s3://bucket", S3Store, ""),
    ],
)
def test_a_uri_is_a_store_and_a_prefix(
    uri: str, kind: type, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    store, found = open_store(uri, "http://127.0.0.1:1")
    assert isinstance(store, kind)
    assert found == prefix


def test_a_store_that_refuses_ends_in_one_line(adapter: Path, s3: S3) -> None:
    done = publish(adapter, "s3://no-such-bucket/x", "--endpoint", s3.endpoint)
    assert done.exit_code == 1
    assert "s3://no-such-bucket/x" in done.stderr
    assert "Traceback" not in done.output


def test_its_own_chat_template_is_part_of_an_adapter_if_asked(
    adapter: Path, tmp_path: Path
) -> None:
    missing = publish(adapter, (tmp_path / "a").as_uri(), "--chat-template")
    assert missing.exit_code != 0
    assert "has no chat_template.jinja" in missing.output
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    plain = yaml.safe_load(publish(adapter, (tmp_path / "a").as_uri()).stdout)
    more = ("--chat-template", "--service", "tiny")
    own = yaml.safe_load(publish(adapter, (tmp_path / "b").as_uri(), *more).stdout)
    admit(own, None)
    assert "chatTemplate" not in plain["spec"]
    assert own["spec"]["chatTemplate"] == "Adapter"
    assert own["spec"]["source"]["digest"] != plain["spec"]["source"]["digest"]
    assert (tmp_path / "b" / "chat_template.jinja").is_file()
    assert not (tmp_path / "a" / "chat_template.jinja").exists()


def test_a_manifest_whose_service_was_not_put_in_is_refused(adapter: Path, tmp_path: Path) -> None:
    manifest = yaml.safe_load(publish(adapter, (tmp_path / "a").as_uri()).stdout)
    with pytest.raises(InvalidManifestError, match=r"spec\.inferenceServiceRef\.name"):
        admit(manifest, None)
