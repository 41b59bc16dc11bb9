"""What users do to a real API server, without a process for each deed.

A deed is done when the oracle has heard of it.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from graft_operator.cluster.kubernetes import version_of
from graft_operator.cluster.kubernetes_access import Access
from graft_operator.cluster.kubernetes_kinds import kind_named
from graft_operator.resources.meta import ObjectKey, uid_of
from tests.support.proof.history import Json
from tests.support.proof.recorder import Recorder

MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"
HEARING_SECONDS = 60.0
POLL_SECONDS = 0.005


class Admin:
    """Somebody with all rights in one namespace."""

    def __init__(self, client: httpx.Client, namespace: str, recorder: Recorder) -> None:
        self._client = client
        self._namespace = namespace
        self._recorder = recorder

    def apply(self, *manifests: Json) -> None:
        """Apply manifests, as `kubectl apply --server-side` does."""
        for manifest in manifests:
            path = self._path(manifest["kind"], manifest["metadata"]["name"])
            query = {"fieldManager": "user", "force": "true"}
            stored = self._send("PATCH", path, manifest, APPLY, query)
            self._heard(
                ObjectKey(manifest["kind"], self._namespace, stored["metadata"]["name"]), stored
            )

    def merge(self, kind: str, name: str, patch: Json) -> None:
        """Merge into an object."""
        query = {"fieldManager": "someone"}
        stored = self._send("PATCH", self._path(kind, name), patch, MERGE, query)
        self._heard(ObjectKey(kind, self._namespace, name), stored)

    def delete(self, kind: str, name: str) -> None:
        """Delete an object."""
        body = {"propagationPolicy": "Background", "gracePeriodSeconds": 0}
        answer = self._send("DELETE", self._path(kind, name), body, "application/json", {})
        # The answer is the object, or names it.
        uid = uid_of(answer) if "uid" in answer["metadata"] else answer["details"]["uid"]
        self._wait(lambda: any(one.is_gone and one.uid == uid for one in self._recorder.seen))

    def ask_to_delete(self, kind: str, name: str) -> None:
        """Ask for an object to go after what it owns, and do not wait for that."""
        body = {"propagationPolicy": "Foreground"}
        stored = self._send("DELETE", self._path(kind, name), body, "application/json", {})
        self._heard(ObjectKey(kind, self._namespace, name), stored)

    def _path(self, kind: str, name: str) -> str:
        return kind_named(kind).path(self._namespace, name)

    def _heard(self, key: ObjectKey, stored: Json) -> None:
        version = version_of(stored)
        self._wait(
            lambda: any(
                one.key == key and one.version >= version for one in reversed(self._recorder.seen)
            )
        )

    def _wait(self, ask: Callable[[], bool]) -> None:
        end = time.monotonic() + HEARING_SECONDS
        while not ask():
            failure = self._recorder.failure
            assert failure is None, f"the oracle's watch ended: {failure!r}"
            assert time.monotonic() < end, "the oracle does not hear of it"
            time.sleep(POLL_SECONDS)

    def _send(self, method: str, path: str, body: Json, type_: str, query: dict[str, str]) -> Json:
        answer = self._client.request(
            method, path, content=json.dumps(body), headers={"Content-Type": type_}, params=query
        )
        assert answer.is_success, answer.text
        return dict(answer.json())


@contextmanager
def administering(kubeconfig: Path, namespace: str, recorder: Recorder) -> Iterator[Admin]:
    """Act in a namespace, with the rights of a kubeconfig."""
    connection = asyncio.run(Access(kubeconfig, None).connection())
    context = ssl.create_default_context(cafile=connection.ca_file)
    if connection.certificate_file is not None:
        context.load_cert_chain(connection.certificate_file, connection.key_file)
    headers = {"Authorization": f"Bearer {connection.token}"} if connection.token else {}
    with httpx.Client(
        base_url=connection.server, verify=context, headers=headers, timeout=60, trust_env=False
    ) as client:
        yield Admin(client, namespace, recorder)
