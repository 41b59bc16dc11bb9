"""Makes an OCI image archive of one file-system layer, without any image tool."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MEDIA_TYPE = "application/vnd.oci.image"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class OneLayer:
    """An image of one layer."""

    name: str
    layer: Path
    """An uncompressed tar archive; it is moved into the image."""
    entrypoint: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write the archive into an empty folder and return where it is."""
        blobs = folder / "oci" / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        with self.layer.open("rb") as file:
            layer_digest = hashlib.file_digest(file, "sha256").hexdigest()
        layer_size = self.layer.stat().st_size
        shutil.move(self.layer, blobs / layer_digest)
        config = {
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Env": list(self.environment), "Entrypoint": list(self.entrypoint)},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
            # Podman counts these against the layers.
            "history": [{"created_by": "graft e2e/cluster"}],
        }
        layer = {
            "mediaType": f"{MEDIA_TYPE}.layer.v1.tar",
            "digest": f"sha256:{layer_digest}",
            "size": layer_size,
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{MEDIA_TYPE}.manifest.v1+json",
            "config": _put(blobs, "config", config),
            "layers": [layer],
        }
        names = {
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name,
        }
        entry = {**_put(blobs, "manifest", manifest), "annotations": names}
        index = {"schemaVersion": 2, "manifests": [entry]}
        (folder / "oci" / "index.json").write_text(json.dumps(index))
        (folder / "oci" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        archive = folder / "image.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(folder / "oci", arcname=".")
        return archive


def _put(blobs: Path, kind: str, content: Mapping[str, object]) -> dict[str, object]:
    """Store a document under its digest and describe it."""
    data = json.dumps(content).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    media_type = f"{MEDIA_TYPE}.{kind}.v1+json"
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
