"""A stand-in on loopback for two object stores: Google's XML interface and Azure's blobs.

It answers the two requests that readers make (list a prefix, get an object with conditions and
ranges) in each one's own dialect, and remembers who asked.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.support.server_thread import serving

DATE = "Thu, 01 Jan 2026 00:00:00 GMT"
Dialect = Callable[[Mapping[str, bytes], str], bytes]
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class BucketServer:
    """A running server. Objects are kept by the path of their URL."""

    endpoint: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    authorizations: list[str | None] = field(default_factory=list)
    queries: list[dict[str, list[str]]] = field(default_factory=list)
    page_size: int = 1000

    def put(self, place: str, objects: Mapping[str, bytes]) -> None:
        """Write objects by key into ``bucket`` or ``account/container``."""
        for key, body in objects.items():
            self.objects[f"/{place}/{key}"] = body


@contextmanager
def serve_buckets() -> Iterator[BucketServer]:
    """Run a server on a free port for the length of a with statement."""
    buckets = BucketServer()
    server = _Server(buckets)
    buckets.endpoint = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        yield buckets


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, buckets: BucketServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets = buckets


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server  # type: ignore[mutable-override] # only a _Server makes these

    def do_GET(self) -> None:
        buckets = self.server.buckets
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        buckets.authorizations.append(self.headers["Authorization"])
        buckets.queries.append(query)
        path = unquote(url.path)
        if query.get("comp") == ["list"]:
            self._answer(200, self._listing(path, query, _azure_listing, "marker"))
        elif "list-type" in query:
            self._answer(200, self._listing(path, query, _google_listing, "continuation-token"))
        elif path in buckets.objects:
            self._send_object(buckets.objects[path])
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _listing(
        self, path: str, query: Mapping[str, list[str]], dialect: Dialect, marker: str
    ) -> bytes:
        root = path.rstrip("/") + "/"
        prefix = query.get("prefix", [""])[0]
        keys = sorted(
            key.removeprefix(root)
            for key in self.server.buckets.objects
            if key.startswith(root + prefix)
        )
        start = int(query.get(marker, ["0"])[0] or 0)
        stop = start + self.server.buckets.page_size
        found = {key: self.server.buckets.objects[root + key] for key in keys[start:stop]}
        return dialect(found, str(stop) if stop < len(keys) else "")

    def _send_object(self, body: bytes) -> None:
        wanted = self.headers["If-Match"]
        if wanted is not None and wanted != _etag(body):
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        match = _RANGE.fullmatch(self.headers["Range"] or self.headers["x-ms-range"] or "")
        if match is None:
            self._answer(200, body, ETag=_etag(body))
            return
        first, last = int(match[1]), min(int(match[2] or len(body)), len(body) - 1)
        self._answer(
            206,
            body[first : last + 1],
            ETag=_etag(body),
            **{"Content-Range": f"bytes {first}-{last}/{len(body)}"},
        )

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Last-Modified": DATE, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def _etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:16]}"'


def _listed_etag(body: bytes) -> str:
    """Both list it without the quotes."""
    return _etag(body).strip('"')


def _google_listing(found: Mapping[str, bytes], following: str) -> bytes:
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00Z</LastModified>"
        f"<ETag>{escape(_listed_etag(body))}</ETag><Size>{len(body)}</Size></Contents>"
        for key, body in found.items()
    )
    token = f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
    return (
        f"<ListBucketResult><Name>b</Name>{token}"
        f"<IsTruncated>{str(bool(following)).lower()}</IsTruncated>{contents}</ListBucketResult>"
    ).encode()


def _azure_listing(found: Mapping[str, bytes], following: str) -> bytes:
    blobs = "".join(
        f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{DATE}</Last-Modified>"
        f"<Etag>{escape(_listed_etag(body))}</Etag><Content-Length>{len(body)}</Content-Length>"
        "<Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
        for key, body in found.items()
    )
    return (
        f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>{following}</NextMarker>"
        "</EnumerationResults>"
    ).encode()
