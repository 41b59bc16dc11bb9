"""A bucket of the cluster's object store, filled the way a user fills one. Stories own one each."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import httpx
import obstore
from obstore.store import S3Store

from e2e.cluster import addons, clusters
from e2e.cluster.paths import REPOSITORY
from e2e.cluster.tools import Kubectl, run_tool

EXAMPLES = REPOSITORY / "examples"
REGION = "us-east-1"
SIGNED_FOR = timedelta(minutes=5)


class Bucket:
    """One bucket, reached from outside the cluster."""

    def __init__(self, name: str, endpoint: str) -> None:
        self.name = name
        self._endpoint = endpoint
        self._store = S3Store(
            name,
            endpoint=endpoint,
            region=REGION,
            access_key_id=addons.STORE_USER,
            secret_access_key=addons.STORE_PASSWORD,
            client_options={"allow_http": True},
        )

    def create(self) -> None:
        """Make the bucket, unless it is there."""
        answer = httpx.put(obstore.sign(self._store, "PUT", "", SIGNED_FOR))
        if answer.status_code != httpx.codes.CONFLICT:
            answer.raise_for_status()

    def delete(self) -> None:
        """Remove the bucket and all that is in it."""
        self.remove()
        httpx.delete(obstore.sign(self._store, "DELETE", "", SIGNED_FOR)).raise_for_status()

    def remove(self, prefix: str | None = None) -> None:
        """Remove what lies under a prefix, or all."""
        for page in self._store.list(prefix):
            self._store.delete([item["path"] for item in page])

    def uri(self, prefix: str) -> str:
        """Return the URI of what lies under a prefix."""
        return f"s3://{self.name}/{prefix}"

    def put(self, prefix: str, files: dict[str, bytes]) -> None:
        """Write files under a prefix."""
        for name, content in files.items():
            self._store.put(f"{prefix}/{name}", content)

    def upload(self, folder: Path, prefix: str) -> None:
        """Copy a folder's files."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.put(prefix, files)

    def publish(self, adapter: str, name: str, *options: str) -> str:
        """Publish one of the example adapters for the service `base`; return its manifest."""
        program = Path(sys.executable).with_name("graft")
        folder = EXAMPLES / "adapters" / adapter
        command = [str(program), "adapter", "publish", str(folder)]
        command += [self.uri(f"adapters/{adapter}"), "--endpoint", self._endpoint, "--name", name]
        command += ["--service", "base", "--secret", "object-store", *options]
        keys = {
            "AWS_ACCESS_KEY_ID": addons.STORE_USER,
            "AWS_SECRET_ACCESS_KEY": addons.STORE_PASSWORD,
            "AWS_REGION": REGION,
        }
        return run_tool(command, {**os.environ, **keys})


def open_bucket(name: str, kubectl: Kubectl) -> Bucket:
    """Return a bucket of the cluster's object store, existing or not."""
    return Bucket(name, f"http://{node_address(kubectl)}:{addons.STORE_NODE_PORT}")


def node_address(kubectl: Kubectl) -> str:
    """Return an address at which the nodes' ports answer."""
    addresses = kubectl.get("nodes")["items"][0]["status"]["addresses"]
    return str(next(item["address"] for item in addresses if item["type"] == "InternalIP"))


def main() -> None:
    """Fill a bucket with the examples: `python -m e2e.buckets NAME`."""
    bucket = open_bucket(sys.argv[1], clusters.find().kubectl)
    bucket.create()
    for folder in (EXAMPLES / "models" / "tiny", *sorted((EXAMPLES / "adapters").iterdir())):
        prefix = f"{folder.parent.name}/{folder.name}"
        bucket.upload(folder, prefix)
        print(f"uploaded {bucket.uri(prefix)}")


if __name__ == "__main__":
    main()
