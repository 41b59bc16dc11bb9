"""`graft adapter publish`: an adapter's files to where pods read them, and its manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
import obstore
import yaml
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from graft_operator.cli.signing_key import ENV_PASSWORD, read_signing_key, sign
from graft_operator.constants import API_VERSION, KIND_ADAPTER
from graft_operator.errors import PublishError
from graft_protocol.digest import (
    TEMPLATE_FILE,
    FileRecord,
    canonical_manifest,
    is_adapter_file,
    manifest_digest,
)

if TYPE_CHECKING:
    from obstore.store import GCSCredential

CONFIG = "adapter_config.json"
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
Store = AzureStore | GCSStore | LocalStore | S3Store
URIS = "s3://bucket/prefix, gs://bucket/prefix, az://account/container/prefix or file:///folder"


@dataclass(frozen=True)
class Publication:
    """What to publish where."""

    folder: Path
    uri: str
    endpoint: str | None = None
    overwrite: bool = False
    with_template: bool = False
    """Whether the adapter is to be served with its own chat template."""
    sign_key: Path | None = None
    """File with the private key that signs the digest."""


def run_publish(wanted: Publication, names: Mapping[str, str | None]) -> None:
    """Copy the files and print the manifest.

    Raises:
        PublishError: The folder holds no adapter, or it could not be signed or copied.
    """
    files = adapter_files(wanted.folder, with_template=wanted.with_template)
    key = wanted.sign_key and read_signing_key(wanted.sign_key, os.environ.get(ENV_PASSWORD))
    digest = publish(wanted, files)
    total = sum(path.stat().st_size for path in files.values())
    click.echo(f"published {len(files)} files, {total} bytes, {digest}", err=True)
    document = manifest(wanted, digest, names, signature=sign(key, digest) if key else None)
    click.echo(yaml.safe_dump(document, sort_keys=False), nl=False)


def run_manifest(folder: Path, *, with_template: bool) -> None:
    """Print the text that a digest is made of, and that other tools sign.

    Raises:
        PublishError: The folder holds no adapter.
    """
    files = adapter_files(folder, with_template=with_template)
    records = (_record(name, path) for name, path in files.items())
    click.echo(canonical_manifest(records), nl=False)


def adapter_files(folder: Path, *, with_template: bool = False) -> dict[str, Path]:
    """Return the files of a folder that make up the adapter.

    Args:
        folder: Where they are.
        with_template: Whether its own chat template is one of them.

    Raises:
        PublishError: Something is missing, or the weights are not safetensors.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    found = {
        name: folder / name for name in names if is_adapter_file(name, with_template=with_template)
    }
    for needed in (CONFIG, TEMPLATE_FILE) if with_template else (CONFIG,):
        if needed not in found:
            raise PublishError(f"{folder} has no {needed}")
    if not any(name.endswith(".safetensors") for name in found):
        unsafe = next((name for name in names if name.endswith(UNSAFE_SUFFIXES)), None)
        hint = f" ({unsafe} is not loaded: it can run code)" if unsafe else ""
        raise PublishError(f"{folder} has no safetensors file{hint}")
    return found


def publish(wanted: Publication, files: Mapping[str, Path]) -> str:
    """Copy files to the URI and return their digest.

    Raises:
        PublishError: Another version is there already, or the store refused.
    """
    records = {name: _record(name, path) for name, path in files.items()}
    digest = manifest_digest(records.values())
    try:
        store, prefix = open_store(wanted.uri, wanted.endpoint)
        present = _present(store, prefix, with_template=wanted.with_template)
        if _is_published(store, prefix, present, records):
            return digest
        if present and not wanted.overwrite:
            raise PublishError(
                f"{wanted.uri} holds another version; publish to a new URI, or replace it with "
                "--overwrite"
            )
        for name in sorted(files, key=lambda item: item == CONFIG):
            obstore.put(store, f"{prefix}{name}", files[name])
        for name in present.keys() - files.keys():
            obstore.delete(store, f"{prefix}{name}")
    except (BaseError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PublishError(f"{wanted.uri}: {first}") from error
    return digest


def open_store(uri: str, endpoint: str | None) -> tuple[Store, str]:
    """Return the store of a URI and the prefix of its keys.

    Raises:
        PublishError: Not a URI that can be written to.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file" and not parts.netloc:
        return LocalStore(parts.path, mkdir=True), ""
    make = {"s3": _s3, "gs": _gcs, "az": _azure}.get(parts.scheme)
    if make is None or not parts.netloc:
        raise PublishError(f"{uri!r} is not {URIS}")
    store, prefix = make(parts.netloc, parts.path.strip("/"), endpoint)
    return store, f"{prefix}/" if prefix else ""


def _s3(bucket: str, prefix: str, endpoint: str | None) -> tuple[Store, str]:
    options: dict[str, Any] = {}
    if endpoint is not None:
        options = {"endpoint": endpoint, "client_options": {"allow_http": True}}
    return S3Store(bucket, **options), prefix


def _gcs(bucket: str, prefix: str, endpoint: str | None) -> tuple[Store, str]:
    options: dict[str, Any] = {}
    if endpoint is not None:
        options = {"base_url": endpoint, "client_options": {"allow_http": True}}
        options["credential_provider"] = _nobody
    return GCSStore(bucket, **options), prefix


def _nobody() -> GCSCredential:
    """Identify as nobody: no identity of Google's goes to somebody else's server."""
    return {"token": "nobody", "expires_at": None}


def _azure(account: str, path: str, endpoint: str | None) -> tuple[Store, str]:
    container, _, prefix = path.partition("/")
    if not container:
        raise PublishError(f"'az://{account}' names no container: az://account/container/prefix")
    options: dict[str, Any] = {"account_name": account}
    if endpoint is not None:
        options["endpoint"] = f"{endpoint.rstrip('/')}/{account}"
        options["client_options"] = {"allow_http": True}
    return AzureStore(container, **options), prefix


def manifest(
    wanted: Publication,
    digest: str,
    names: Mapping[str, str | None],
    signature: str | None = None,
) -> dict[str, Any]:
    """Return the LoraAdapter that serves what was published."""
    metadata = {"name": names.get("name") or wanted.folder.resolve().name.lower().replace("_", "-")}
    if names.get("namespace"):
        metadata["namespace"] = str(names["namespace"])
    source: dict[str, Any] = {"uri": wanted.uri, "digest": digest}
    if signature is not None:
        source["signature"] = signature
    if names.get("secret"):
        source["credentialsSecretRef"] = {"name": names["secret"]}
    template = {"chatTemplate": "Adapter"} if wanted.with_template else {}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND_ADAPTER,
        "metadata": metadata,
        "spec": {
            "inferenceServiceRef": {"name": names.get("service")},
            "source": source,
            **template,
        },
    }


def _record(name: str, path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(name, path.stat().st_size, digest)


def _present(store: Store, prefix: str, *, with_template: bool) -> dict[str, int]:
    """Return the adapter files directly under a prefix, with their sizes."""
    listed = obstore.list_with_delimiter(store, prefix or None)["objects"]
    names = {item["path"].rpartition("/")[2]: item["size"] for item in listed}
    return {
        name: size
        for name, size in names.items()
        if is_adapter_file(name, with_template=with_template)
    }


def _is_published(
    store: Store, prefix: str, present: Mapping[str, int], records: Mapping[str, FileRecord]
) -> bool:
    """Whether exactly these files are there already, byte for byte."""
    if present != {name: record.size for name, record in records.items()}:
        return False
    return all(
        hashlib.sha256(obstore.get(store, f"{prefix}{name}").bytes()).hexdigest() == record.sha256
        for name, record in records.items()
    )
