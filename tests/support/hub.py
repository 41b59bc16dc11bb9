"""A small model hub on loopback: repositories with commits, tokens, gates and a storage host.

Large files are answered with a redirect to the storage host, a server of its own, as hubs do.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.server_thread import serving

LARGE_BYTES = 1000
"""Files from this size on lie on the storage host."""
_PAGE = 2
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class Repository:
    """One repository: what each commit holds, and what each branch or tag means now."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    is_private: bool = False
    is_gated: bool = False

    def commit(self, files: Mapping[str, bytes], revision: str = "main") -> str:
        """Add a commit and let a branch or tag mean it; return its id."""
        text = repr(sorted(files.items())) + repr(len(self.commits))
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = dict(files)
        self.revisions[revision] = sha
        return sha


@dataclass
class Hub:
    """A running hub."""

    endpoint: str = ""
    storage: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    granted: set[str] = field(default_factory=set)
    """Tokens that may read what is gated."""
    requests: list[str] = field(default_factory=list)
    storage_authorizations: list[str | None] = field(default_factory=list)
    redirect: str | None = None
    """Send readers of large files here instead."""
    cut_after_bytes: int | None = None
    """Break the storage's next answer off, once."""

    def repository(self, name: str) -> Repository:
        """Return a repository, made on first use."""
        return self.repositories.setdefault(name, Repository())


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a hub and its storage on free ports for the length of a with statement."""
    hub = Hub()
    with ExitStack() as stack:
        hub.endpoint = stack.enter_context(_running(hub, _HubHandler))
        hub.storage = stack.enter_context(_running(hub, _StorageHandler))
        yield hub


@contextmanager
def _running(hub: Hub, handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = _Server(hub, handler)
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server  # type: ignore[mutable-override] # only a _Server makes these

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send an answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_content(self, content: bytes, cut_after_bytes: int | None = None) -> None:
        """Send a file or the range of it that is asked for."""
        match = _RANGE.fullmatch(self.headers["Range"] or "")
        first, last = (int(match[1]), int(match[2])) if match else (0, len(content) - 1)
        body = content[first : last + 1]
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut_after_bytes])
        self.close_connection = cut_after_bytes is not None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _HubHandler(_Handler):
    def do_GET(self) -> None:
        self.server.hub.requests.append(self.path)
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.split("/")[1:]]
        if parts[:2] == ["api", "models"]:
            name, (kind, revision, *folder) = "/".join(parts[2:4]), parts[4:]
            self._about(name, kind, revision, "/".join(folder), parse_qs(url.query))
        else:
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _about(
        self, name: str, kind: str, revision: str, folder: str, query: dict[str, list[str]]
    ) -> None:
        repository = self._admitted(name)
        if repository is None:
            return
        sha = repository.revisions.get(revision, revision)
        if sha not in repository.commits:
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif kind == "revision":
            self.answer(200, json.dumps({"id": name, "sha": sha}).encode())
        else:
            self._tree(repository.commits[sha], folder, int(query.get("cursor", ["0"])[0]))

    def _tree(self, files: Mapping[str, bytes], folder: str, start: int) -> None:
        entries = _entries(files, f"{folder}/" if folder else "")
        if not entries:
            self.answer(404, X_Error_Code="EntryNotFound")
            return
        headers = {}
        if start + _PAGE < len(entries):
            there = f"{self.server.hub.endpoint}{urlsplit(self.path).path}?cursor={start + _PAGE}"
            headers["Link"] = f'<{there}>; rel="next"'
        self.answer(200, json.dumps(entries[start : start + _PAGE]).encode(), **headers)

    def _file(self, name: str, commit: str, path: str) -> None:
        repository = self._admitted(name)
        if repository is None:
            return
        content = repository.commits.get(commit, {}).get(path)
        if content is None:
            self.answer(404, X_Error_Code="EntryNotFound")
        elif repository.is_gated and self._token() not in self.server.hub.granted:
            self.answer(403, X_Error_Code="GatedRepo")
        elif len(content) >= LARGE_BYTES:
            there = self.server.hub.redirect or self.server.hub.storage
            self.answer(302, Location=f"{there}/{name}/{commit}/{path}?signature=x")
        else:
            self.send_content(content)

    def _admitted(self, name: str) -> Repository | None:
        """Return a repository, or answer as a hub does that shows nobody what is private."""
        repository = self.server.hub.repositories.get(name)
        token = self._token()
        if token is not None and token not in self.server.hub.tokens:
            self.answer(401)
            return None
        if repository is None or (repository.is_private and token is None):
            self.answer(401 if token is None else 404, X_Error_Code="RepoNotFound")
            return None
        return repository

    def _token(self) -> str | None:
        header = self.headers["Authorization"]
        return header.removeprefix("Bearer ") if header else None


class _StorageHandler(_Handler):
    def do_GET(self) -> None:
        hub = self.server.hub
        hub.storage_authorizations.append(self.headers["Authorization"])
        owner, name, commit, path = unquote(urlsplit(self.path).path)[1:].split("/", 3)
        cut, hub.cut_after_bytes = hub.cut_after_bytes, None
        self.send_content(hub.repositories[f"{owner}/{name}"].commits[commit][path], cut)


def _entries(files: Mapping[str, bytes], prefix: str) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path, content in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        head, slash, _ = path.removeprefix(prefix).partition("/")
        oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        if slash:
            found[head] = {"type": "directory", "oid": oid, "size": 0, "path": prefix + head}
            continue
        entry = {"type": "file", "oid": oid, "size": len(content), "path": path}
        if len(content) >= LARGE_BYTES:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
        found[head] = entry
    return list(found.values())
