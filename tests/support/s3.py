"""A real S3 endpoint on loopback: moto's server, filled over plain HTTP."""

import http.client
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote, urlsplit

from moto.server import ThreadedMotoServer

from graft_protocol.credentials import Credential

ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"

_SIGNED = f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/us-east-1/s3/aws4_request"
"""Enough for moto, which tells anonymous requests from others and verifies nothing."""


class S3:
    """A running endpoint. Buckets are made on first use."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._buckets: set[str] = set()

    @property
    def credential(self) -> Credential:
        """What opens this endpoint."""
        return Credential(
            access_key_id=ACCESS_KEY, secret_access_key=SECRET_KEY, endpoint=self.endpoint
        )

    def put(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Write objects by key, whatever the key, replacing what was there."""
        if bucket not in self._buckets:
            self._put(f"/{bucket}", b"")
            self._buckets.add(bucket)
        for key, body in objects.items():
            self._put(f"/{bucket}/{quote(key)}", body)

    def _put(self, path: str, body: bytes) -> None:
        connection = http.client.HTTPConnection(urlsplit(self.endpoint).netloc, timeout=10)
        try:
            connection.request("PUT", path, body=body, headers={"Authorization": _SIGNED})
            answer = connection.getresponse()
            answer.read()
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            message = f"PUT {path} answered {answer.status}"
            raise RuntimeError(message)


@contextmanager
def serve_s3() -> Iterator[S3]:
    """Run an endpoint on a free port for the length of a with statement."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield S3(f"http://{host}:{port}")
    finally:
        server.stop()
