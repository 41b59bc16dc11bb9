"""`graft adapter publish`: to files and to a real S3 endpoint."""

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from obstore.store import AzureStore, GCSStore, S3Store

from graft_operator.cli import main
from graft_operator.cli.publish import open_store
from graft_operator.cli.signing_key import ENV_PASSWORD
from graft_operator.errors import InvalidManifestError
from graft_operator.plan.public_key import has_signed
from graft_operator.resources.admission import admit
from graft_protocol.digest import FileRecord, manifest_digest
from tests.support.s3 import S3, serve_s3
from tests.support.signing import private_pem, public_pem


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


def publish(folder: Path, uri: str, *more: str, **env: str) -> Result:
    keys = {
        **env,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_REGION": "us-east-1",
    }
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


def test_the_manifests_text_is_what_the_digest_is_made_of(adapter: Path) -> None:
    done = CliRunner().invoke(main, ["adapter", "manifest", str(adapter)])
    assert done.exit_code == 0, done.output
    assert f"sha256:{hashlib.sha256(done.stdout_bytes).hexdigest()}" == digest_of(adapter)
    own = CliRunner().invoke(main, ["adapter", "manifest", str(adapter), "--chat-template"])
    assert "has no chat_template.jinja" in own.output


@pytest.mark.parametrize("kind", ["P-256", "RSA-2048"])
@pytest.mark.parametrize("password", [None, "of the key"])
def test_a_digest_is_signed_with_the_key_in_a_file(
    adapter: Path, tmp_path: Path, kind: str, password: str | None
) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(private_pem(kind, password=password))
    env = {ENV_PASSWORD: password or "of another key, and not asked for"}
    more = ("--service", "tiny", "--sign-key", str(key))
    done = publish(adapter, (tmp_path / "a").as_uri(), *more, **env)
    assert done.exit_code == 0, done.output
    manifest = yaml.safe_load(done.stdout)
    admit(manifest, None)
    source = manifest["spec"]["source"]
    assert has_signed(public_pem(kind), digest_of(adapter), source["signature"])


@pytest.mark.parametrize(
    ("text", "env", "message"),
    [
        (private_pem(password="x"), {}, f"is encrypted: put its password into {ENV_PASSWORD}"),
        (private_pem(password="x"), {ENV_PASSWORD: "y"}, f"in {ENV_PASSWORD} does not open"),
        (private_pem("Ed25519"), {}, "is Ed25519; keys have to be ECDSA on P-256"),
        (private_pem("RSA-1024"), {}, "is RSA of 1024 bits; keys have to be"),
        (public_pem().encode(), {}, "is no private key in PEM"),
        (b"", {}, "is no private key in PEM"),
        (None, {}, "No such file"),
    ],
)
def test_with_a_key_that_cannot_sign_nothing_is_copied(
    adapter: Path, tmp_path: Path, text: bytes | None, env: dict[str, str], message: str
) -> None:
    key = tmp_path / "key.pem"
    if text is not None:
        key.write_bytes(text)
    done = publish(adapter, (tmp_path / "a").as_uri(), "--sign-key", str(key), **env)
    assert done.exit_code == 1
    assert message in done.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA-2048"])
def test_what_openssl_signs_as_the_docs_say_is_a_signature(
    adapter: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "key.pem").write_bytes(private_pem(kind))
    text = CliRunner().invoke(main, ["adapter", "manifest", str(adapter)]).stdout_bytes
    (tmp_path / "manifest").write_bytes(text)
    command = "openssl dgst -sha256 -sign key.pem manifest | openssl base64 -A"
    made = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, check=True)
    assert has_signed(public_pem(kind), digest_of(adapter), made.stdout.decode())
    public = subprocess.run(
        ["openssl", "pkey", "-in", "key.pem", "-pubout"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert public.stdout.decode() == public_pem(kind)
