"""A pod's volumes in local mode: from a pod template and stored objects to folders of files."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from graft_operator.cluster.volumes import project
from graft_operator.errors import NotFoundError
from graft_operator.resources.meta import Manifest, ObjectKey
from graft_protocol.naming import PodPaths

Lookup = Callable[[ObjectKey], Manifest | None]
SECRET_MODE = 0o600


class Ports(NamedTuple):
    """Where one local pod listens on 127.0.0.1."""

    http: int
    grpc: int
    internal: int


def references(template: Mapping[str, Any], namespace: str) -> frozenset[ObjectKey]:
    """Return the ConfigMaps and Secrets that a pod template mounts."""
    return frozenset(
        key for volume in template["spec"]["volumes"] for key in _sources(volume, namespace)
    )


def mount_all(
    template: Mapping[str, Any],
    namespace: str,
    root: Path,
    lookup: Lookup,
    ports: Ports,
    claims_dir: Path,
) -> None:
    """Bring every mounted volume of a pod up to date.

    Raises:
        NotFoundError: A mounted object does not exist.
        OSError: The files cannot be written.
    """
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    for mount in template["spec"]["containers"][0]["volumeMounts"]:
        volume = volumes[mount["name"]]
        folder = root / mount["mountPath"].lstrip("/")
        if "persistentVolumeClaim" in volume:
            _link_claim(folder, claims_dir / volume["persistentVolumeClaim"]["claimName"])
            continue
        keys = _sources(volume, namespace)
        if not keys:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if not folder.is_symlink():
                folder.mkdir(exist_ok=True)
            continue
        files: dict[str, bytes] = {}
        for key in keys:
            stored = lookup(key)
            if stored is None:
                raise NotFoundError(f"{key} does not exist")
            files |= _files_of(stored)
        is_secret = any(key.kind == "Secret" for key in keys)
        _localise(root, folder, files, ports)
        project(folder, files, mode=SECRET_MODE if is_secret else 0o644)


def _link_claim(folder: Path, claim: Path) -> None:
    """Show a claim, which locally is a folder of the user's, where the pod expects its mount."""
    claim.mkdir(parents=True, exist_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.is_symlink():
        folder.symlink_to(claim, target_is_directory=True)


def _sources(volume: Mapping[str, Any], namespace: str) -> list[ObjectKey]:
    sources = volume["projected"]["sources"] if "projected" in volume else [volume]
    keys = []
    for source in sources:
        if "configMap" in source:
            keys.append(ObjectKey("ConfigMap", namespace, source["configMap"]["name"]))
        elif "secret" in source:
            secret = source["secret"]
            name = secret.get("secretName") or secret["name"]
            keys.append(ObjectKey("Secret", namespace, name))
    return keys


def _files_of(stored: Manifest) -> dict[str, bytes]:
    data = stored.get("data") or {}
    if stored["kind"] == "Secret":
        return {name: base64.b64decode(value) for name, value in data.items()}
    return {name: str(value).encode() for name, value in data.items()}


def _localise(root: Path, folder: Path, files: dict[str, bytes], ports: Ports) -> None:
    """Tell the runtime which address is its own; in a cluster every pod has a whole host."""
    config = PodPaths(root).config_file
    if folder != config.parent:
        return
    document = yaml.safe_load(files[config.name])
    document["server"] = {
        **document.get("server", {}),
        "host": "127.0.0.1",
        "port": ports.http,
        "grpcPort": ports.grpc,
        "internalPort": ports.internal,
    }
    files[config.name] = yaml.safe_dump(document).encode()
