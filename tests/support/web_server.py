"""A web server of files on loopback, behind TLS, that can be told to misbehave."""

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.server_thread import serving

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class Misbehaviour:
    """What is wrong with one answer."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut_after_bytes: int | None = None


@dataclass
class WebServer:
    """A running server: `files` by path; `faults` are used up one answer after the other."""

    host: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[tuple[str, Misbehaviour]] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    knows_ranges: bool = True

    def fault(self, path: str) -> Misbehaviour:
        """Take the first fault meant for a path."""
        for index, (wanted, _) in enumerate(self.faults):
            if wanted == path:
                return self.faults.pop(index)[1]
        return Misbehaviour()


@contextmanager
def serve_files(certificate: Path) -> Iterator[WebServer]:
    """Run a server on a free port for the length of a with statement."""
    web = WebServer()
    server = _Server(web)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    web.host = f"127.0.0.1:{server.server_port}"
    with serving(server):
        yield web


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, web: WebServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.web = web


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server  # type: ignore[mutable-override] # only a _Server makes these

    def do_GET(self) -> None:
        web = self.server.web
        web.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        fault = web.fault(self.path)
        content = web.files.get(self.path, b"") if fault.body is None else fault.body
        match = _RANGE.fullmatch(self.headers["Range"] or "") if web.knows_ranges else None
        first, last = (int(match[1]), int(match[2])) if match else (0, len(content) - 1)
        found = 200 if self.path in web.files else 404
        status = fault.status or (206 if match else found)
        body = content[first : last + 1]
        headers = {"Content-Length": str(len(body)), "ETag": f'"{hash(content)}"'}
        if match:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.send_response(status)
        for name, value in {**headers, **fault.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: fault.cut_after_bytes])
        self.close_connection = fault.cut_after_bytes is not None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
