"""A copy of one kind's objects on a real API, kept up to date by list and watch."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from graft_operator.cluster.kubernetes_access import Access, Connection
from graft_operator.resources.meta import Manifest, ObjectKey, key_of
from tests.support.kube_store import Json

WATCH_SECONDS = 300
PAUSE_SECONDS = 0.2


@dataclass
class RealApi:
    """A session with a real API server, with the rights of a kubeconfig."""

    connection: Connection
    session: aiohttp.ClientSession

    @classmethod
    async def open(cls, kubeconfig: Path) -> RealApi:
        """Open a session; close it with `close`."""
        connection = await Access(kubeconfig, None).connection()
        context = ssl.create_default_context(cafile=connection.ca_file)
        if connection.certificate_file is not None:
            context.load_cert_chain(connection.certificate_file, connection.key_file)
        headers = {"Authorization": f"Bearer {connection.token}"} if connection.token else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        session = aiohttp.ClientSession(
            connection.server, connector=connector, headers=headers, timeout=timeout
        )
        return cls(connection, session)

    async def close(self) -> None:
        """Close it."""
        await self.session.close()

    async def merge_status(self, path: str, status: Json) -> None:
        """Merge into an object's status; one that is gone is fine."""
        headers = {"Content-Type": "application/merge-patch+json"}
        body = json.dumps({"status": status})
        async with self.session.patch(f"{path}/status", data=body, headers=headers) as answer:
            if answer.status != 404:
                answer.raise_for_status()


@dataclass
class Informer:
    """Follows one kind in one namespace, or in all."""

    api: RealApi
    kind: str
    path: str
    """Of the collection."""
    selector: str
    on_change: Callable[[ObjectKey], None] = lambda _: None
    objects: dict[ObjectKey, Manifest] = field(default_factory=dict)

    async def run(self) -> None:
        """Follow until cancelled; start again from a list whenever the watch ends."""
        while True:
            try:
                version = await self._list()
                await self._watch(version)
            except (aiohttp.ClientError, OSError, TimeoutError):
                await asyncio.sleep(PAUSE_SECONDS)

    async def _list(self) -> str:
        async with self.api.session.get(
            self.path, params={"labelSelector": self.selector}
        ) as answer:
            answer.raise_for_status()
            listed = await answer.json()
        found = {}
        for item in listed["items"]:
            item["kind"] = self.kind
            found[key_of(item)] = item
        gone = self.objects.keys() - found.keys()
        self.objects.clear()
        self.objects.update(found)
        for key in (*found, *gone):
            self.on_change(key)
        return str(listed["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> None:
        query = {
            "labelSelector": self.selector,
            "watch": "1",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        async with self.api.session.get(self.path, params=query) as answer:
            answer.raise_for_status()
            buffer = b""
            async for chunk in answer.content.iter_any():
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        return
                    self._take_in(event["type"], event["object"])

    def _take_in(self, type_: str, item: Manifest) -> None:
        key = key_of(item)
        if type_ == "DELETED":
            self.objects.pop(key, None)
        else:
            self.objects[key] = item
        self.on_change(key)
