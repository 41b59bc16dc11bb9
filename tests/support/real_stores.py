"""Real servers of Amazon's, Google's and Azure's interfaces, where `make test-stores` put them."""

import base64
import hashlib
import hmac
import http.client
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import obstore
from obstore.store import AzureStore, S3Store

from graft_operator.cluster.ports import free_port

FOLDER = Path(__file__).parents[2] / "build/stores"
AMAZON = FOLDER / "minio"
GOOGLE = FOLDER / "fake-gcs-server"
AZURE = FOLDER / "node_modules/azurite/dist/src/blob/main.js"
ACCOUNT = "account"
ACCOUNT_KEY = base64.b64encode(b"k" * 32).decode()
ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"
_PATIENCE_SECONDS = 60
_VERSION = "2021-12-02"


@contextmanager
def serve_amazon(folder: Path, bucket: str, objects: Mapping[str, bytes]) -> Iterator[str]:
    """Run a server that holds objects in one bucket, by key; yield its endpoint."""
    (folder / "data" / bucket).mkdir(parents=True)
    port = free_port()
    command = [str(AMAZON), "server", str(folder / "data"), "--address", f"127.0.0.1:{port}"]
    keys = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
    quiet = {"MINIO_BROWSER": "off", "MINIO_UPDATE": "off"}
    with _running(command, keys | quiet, folder / "amazon.log"):
        _wait_for(port)
        store = S3Store(
            bucket,
            endpoint=f"http://127.0.0.1:{port}",
            region="us-east-1",
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            client_options={"allow_http": True},
        )
        for key, body in objects.items():
            obstore.put(store, key, body)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def serve_google(folder: Path, objects: Mapping[str, bytes]) -> Iterator[str]:
    """Run a server that holds objects, by ``bucket/key``; yield its endpoint."""
    for key, body in objects.items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    port = free_port()
    flags = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    named = ["-public-host", f"127.0.0.1:{port}", "-data", str(folder)]
    with _running([str(GOOGLE), *flags, *named], {}, folder.with_suffix(".log")):
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def serve_azure(folder: Path, container: str, objects: Mapping[str, bytes]) -> Iterator[str]:
    """Run a server that holds objects in one container, by key; yield its endpoint."""
    port = free_port()
    node = shutil.which("node") or "node"
    flags = ["--inMemoryPersistence", "--skipApiVersionCheck", "--silent"]
    place = ["--blobHost", "127.0.0.1", "--blobPort", str(port)]
    accounts = {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{ACCOUNT_KEY}"}
    with _running([node, str(AZURE), *flags, *place], accounts, folder / "azure.log"):
        _wait_for(port)
        _make_container(port, container)
        store = AzureStore(
            container,
            account_name=ACCOUNT,
            account_key=ACCOUNT_KEY,
            endpoint=f"http://127.0.0.1:{port}/{ACCOUNT}",
            client_options={"allow_http": True},
        )
        for key, body in objects.items():
            obstore.put(store, key, body)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _running(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        process.kill()
        process.wait(_PATIENCE_SECONDS)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _make_container(port: int, container: str) -> None:
    """Ask for a container as the interface wants it signed; obstore makes none."""
    date = formatdate(usegmt=True)
    headers = f"x-ms-date:{date}\nx-ms-version:{_VERSION}"
    text = f"PUT{chr(10) * 12}{headers}\n/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container"
    key = base64.b64decode(ACCOUNT_KEY)
    signature = base64.b64encode(hmac.new(key, text.encode(), hashlib.sha256).digest()).decode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
    try:
        connection.putrequest("PUT", f"/{ACCOUNT}/{container}?restype=container")
        for line in headers.splitlines():
            connection.putheader(*re.split(":", line, maxsplit=1))
        connection.putheader("Authorization", f"SharedKey {ACCOUNT}:{signature}")
        connection.putheader("Content-Length", "0")
        connection.endheaders()
        answer = connection.getresponse()
        said = answer.read()
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.CREATED:
        message = f"the container was not made: {answer.status} {said[:300]!r}"
        raise RuntimeError(message)
