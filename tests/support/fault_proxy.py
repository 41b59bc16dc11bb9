"""A reverse proxy on loopback that spoils chosen answers of an HTTP server on their way back."""

import gzip
import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.support.server_thread import serving

XML_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"


@dataclass(frozen=True)
class Fault:
    """What happens to one answer."""

    status: int | None = None
    """Answer this, with `code` in an S3 error document, and ask no one."""
    code: str = "Fault"
    location: str | None = None
    """Redirect there."""
    cut_after_bytes: int | None = None
    """Close the connection after so many bytes of the body."""
    stall_after_bytes: int | None = None
    """Send so many bytes of the body and then nothing, until the proxy ends."""
    drip_seconds: float | None = None
    """Send one byte per so many seconds, until the proxy ends."""
    announce: int = 0
    """Add to the announced length alone."""
    headers: dict[str, str] = field(default_factory=dict)
    """Send these too."""
    append: bytes = b""
    """Add to the body, and to its announced length."""
    compress: bool = False
    """Send the body gzipped, and say so."""
    before: Callable[[], None] | None = None
    """Do this before the request is passed on."""


@dataclass
class FaultProxy:
    """A running proxy: `plan` is asked for each request's fault."""

    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    """The range of each request."""
    plan: Callable[[str], Fault | None] = lambda path: None
    ending: threading.Event = field(default_factory=threading.Event)

    def gets_of(self, suffix: str) -> int:
        """Count requests for an object."""
        return sum(urlsplit(path).path.endswith(suffix) for path in self.requests)


@contextmanager
def spoil(upstream: str) -> Iterator[FaultProxy]:
    """Run a proxy before `upstream` for the length of a with statement."""
    proxy = FaultProxy()
    server = _Server(proxy, urlsplit(upstream).netloc)
    proxy.endpoint = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        try:
            yield proxy
        finally:
            proxy.ending.set()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, proxy: FaultProxy, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy
        self.upstream = upstream


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server  # type: ignore[mutable-override] # only a _Server makes these

    def do_GET(self) -> None:
        self.server.proxy.requests.append(self.path)
        self.server.proxy.ranges.append(self.headers["Range"])
        fault = self.server.proxy.plan(self.path) or Fault()
        if fault.before is not None:
            fault.before()
        if fault.status is not None:
            self._answer_error(fault.status, fault)
        else:
            self._pass_on(fault)

    def _answer_error(self, status: int, fault: Fault) -> None:
        body = XML_ERROR.format(code=fault.code).encode()
        self.send_response(status)
        if fault.location is not None:
            self.send_header("Location", fault.location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _pass_on(self, fault: Fault) -> None:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=10)
        try:
            connection.request("GET", self.path, headers=dict(self.headers))
            answer = connection.getresponse()
            body = answer.read() + fault.append
        finally:
            connection.close()
        if fault.compress:
            body = gzip.compress(body)
        self.send_response(answer.status)
        ours = {"content-length", "transfer-encoding", "connection", *map(str.lower, fault.headers)}
        for name, value in answer.getheaders():
            if name.lower() not in ours:
                self.send_header(name, value)
        for name, value in fault.headers.items():
            self.send_header(name, value)
        if fault.compress:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body) + fault.announce))
        self.close_connection = fault.announce != 0
        self.end_headers()
        self._send_body(body, fault)

    def _send_body(self, body: bytes, fault: Fault) -> None:
        if fault.cut_after_bytes is not None:
            self.wfile.write(body[: fault.cut_after_bytes])
            self.close_connection = True
        elif fault.drip_seconds is not None:
            self.close_connection = True
            for byte in body:
                self.wfile.write(bytes([byte]))
                if self.server.proxy.ending.wait(fault.drip_seconds):
                    return
        elif fault.stall_after_bytes is not None:
            self.wfile.write(body[: fault.stall_after_bytes])
            self.server.proxy.ending.wait()
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
