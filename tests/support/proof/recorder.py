"""The oracle's own eyes: a plain watch of every kind, past the proxy, and what the pods served.

Runs in a thread, so that tests may block. What it has heard so far is a `History`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from graft_operator.cluster.kubernetes import version_of
from graft_operator.cluster.kubernetes_kinds import EVENT, WATCHED, Kind
from graft_operator.resources.meta import ObjectKey, key_of, uid_of
from graft_protocol.reasons import AdapterState
from tests.support.informer import RealApi
from tests.support.kube_operator import TLS_GOODBYE_SECONDS
from tests.support.proof.history import History, Json, Seen, Served, Shelf, Write

KINDS = (*WATCHED, Kind("ReplicaSet", "apps", "v1", "replicasets"), EVENT)
WATCH_SECONDS = 3600
PAUSE_SECONDS = 0.05
START_SECONDS = 60.0


class ForgottenError(Exception):
    """The server no longer knows what came after the version that was asked for."""


@dataclass
class Recorder:
    """What was heard of the namespaces whose names begin with a prefix."""

    prefix: str
    seen: list[Seen] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    shelves: defaultdict[str, Shelf] = field(default_factory=lambda: defaultdict(Shelf))
    """By namespace: what is there now."""
    failure: BaseException | None = None
    _serving: dict[tuple[ObjectKey, str], float] = field(default_factory=dict)
    _watching: set[str] = field(default_factory=set)

    def on_report(self, pod: ObjectKey, revision: str, state: AdapterState | None) -> None:
        """Hear from a pod that it has come to another state with a revision; None is the end."""
        now = time.monotonic()
        if state is AdapterState.AVAILABLE:
            self._serving.setdefault((pod, revision), now)
        elif (began := self._serving.pop((pod, revision), None)) is not None:
            self.served.append(Served(pod, revision, began, now))

    def history(self, namespace: str, writes: tuple[Write, ...] = ()) -> History:
        """Return all that is known of one namespace.

        Raises:
            AssertionError: A watch has ended, so something may be missing.
        """
        assert self.failure is None, f"the oracle's watch ended: {self.failure!r}"
        seen = (one for one in list(self.seen) if one.key.namespace == namespace)
        open_ = [Served(*key, began) for key, began in list(self._serving.items())]
        served = [s for s in (*self.served, *open_) if s.pod.namespace == namespace]
        ordered = tuple(sorted(seen, key=lambda one: one.version))
        return History(ordered, writes, tuple(served), time.monotonic())

    @property
    def is_watching(self) -> bool:
        """Whether every watch has been opened."""
        return len(self._watching) == len(KINDS)

    async def run(self, kubeconfig: Path) -> None:
        """Record until cancelled."""
        api = await RealApi.open(kubeconfig)
        try:
            async with asyncio.TaskGroup() as tasks:
                for kind in KINDS:
                    tasks.create_task(self._watch(api, kind))
        except* Exception as failures:  # noqa: BLE001 - the history says that it is not whole
            self.failure = failures
        finally:
            await api.close()

    async def _watch(self, api: RealApi, kind: Kind) -> None:
        while True:
            try:
                await self._watch_on(api, kind)
            except ForgottenError:
                # A changed CRD ends its kind's watches, and the server begins its history anew.
                if any(one.key.kind == kind.name for one in self.seen):
                    raise
                await asyncio.sleep(PAUSE_SECONDS)

    async def _watch_on(self, api: RealApi, kind: Kind) -> None:
        async with api.session.get(kind.path(None), params={"limit": "1"}) as answer:
            if not answer.ok:
                raise ForgottenError(f"{kind.plural}: {answer.status}")
            version = str((await answer.json())["metadata"]["resourceVersion"])
        while True:
            query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
            query["timeoutSeconds"] = str(WATCH_SECONDS)
            async with api.session.get(kind.path(None), params=query) as answer:
                if not answer.ok:
                    raise ForgottenError(f"{kind.plural}: {answer.status}")
                self._watching.add(kind.name)
                buffer = b""
                async for chunk in answer.content.iter_any():
                    *lines, buffer = (buffer + chunk).split(b"\n")
                    for line in lines:
                        version = self._take_in(kind, json.loads(line))

    def _take_in(self, kind: Kind, event: Json) -> str:
        item = event["object"]
        if event["type"] == "ERROR" and item.get("code") == HTTPStatus.GONE:
            raise ForgottenError(kind.plural)
        if event["type"] == "ERROR":
            raise RuntimeError(f"{kind.plural}: {item.get('message')}")
        if event["type"] != "BOOKMARK":
            item["kind"] = kind.name
            key, is_gone = key_of(item), event["type"] == "DELETED"
            if key.namespace.startswith(self.prefix):
                now = time.monotonic()
                one = Seen(version_of(item), key, uid_of(item), item, now, is_gone)
                self.seen.append(one)
                self.shelves[key.namespace].take_in(one)
        return str(item["metadata"]["resourceVersion"])


@contextmanager
def recording(kubeconfig: Path, prefix: str) -> Iterator[Recorder]:
    """Record in a thread for as long as the context lasts."""
    recorder = Recorder(prefix)
    box: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def main() -> None:
        task = asyncio.create_task(recorder.run(kubeconfig))
        box.append((asyncio.get_running_loop(), task))
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.sleep(TLS_GOODBYE_SECONDS)

    thread = threading.Thread(target=asyncio.run, args=(main(),), name="oracle", daemon=True)
    thread.start()
    end = time.monotonic() + START_SECONDS
    while not recorder.is_watching:
        assert recorder.failure is None, repr(recorder.failure)
        assert time.monotonic() < end, "the oracle cannot watch"
        time.sleep(0.02)
    try:
        yield recorder
    finally:
        with contextlib.suppress(RuntimeError):  # it has ended by itself, and told why
            loop, task = box[0]
            loop.call_soon_threadsafe(task.cancel)
        thread.join(START_SECONDS)
