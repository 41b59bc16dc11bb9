"""The control loop: changes in, keys through the queue, reconciles out.

Handlers (in a cluster) and local mode feed it the same changes; the rest is the same code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from graft_operator.cluster.base import Change, Cluster
from graft_operator.cluster.store import timestamp
from graft_operator.constants import KIND_ADAPTER, KIND_SERVICE, LABEL_CONTENT
from graft_operator.reconcile.adapter import reconcile_adapter
from graft_operator.reconcile.cache import ObjectCache, service_of
from graft_operator.reconcile.namespaces import namespace_reader
from graft_operator.reconcile.news import (
    changed_revisions,
    changed_shards,
    is_same_pod,
    is_told_of_pod,
)
from graft_operator.reconcile.pods import Endpoint, PodPoller, ReportChange
from graft_operator.reconcile.queue import Backoff, WorkQueue
from graft_operator.reconcile.secrets import as_api_keys, as_credential, secret_reader
from graft_operator.reconcile.service import reconcile_service
from graft_operator.reconcile.world import Decision, World, incarnation_of, is_ready, pod_url
from graft_operator.render.common import label_value
from graft_operator.render.secrets import CONTENT_TOKEN, read_token
from graft_operator.resources.meta import Manifest, ObjectKey, key_of
from graft_operator.runtime_client import RuntimeClient
from graft_operator.settings import ControlSettings
from graft_protocol.desired import shard_index
from graft_protocol.naming import LABEL_SERVICE
from graft_protocol.revisions import parse_revision
from graft_protocol.status import RuntimeStatus


class Controller:
    """Everything between a change and its consequences. Use it as an async context manager."""

    def __init__(
        self,
        cluster: Cluster,
        settings: ControlSettings,
        *,
        secret_ttl_seconds: float,
        on_reconciled: Callable[[ObjectKey, str, float], None] | None = None,
    ) -> None:
        self.cache = ObjectCache()
        self._client = RuntimeClient(settings.report_timeout_seconds)
        backoff = Backoff(settings.backoff_first_seconds, settings.backoff_max_seconds)
        self.queue: WorkQueue[ObjectKey] = WorkQueue(
            self._reconcile, workers=settings.workers, backoff=backoff, on_done=on_reconciled
        )
        self.poller = PodPoller(
            self._client,
            settings,
            locate=self._locate,
            expected_hash=self._expected_hash,
            on_change=self._on_report,
        )
        self.world = World(
            cluster=cluster,
            cache=self.cache,
            poller=self.poller,
            secrets=secret_reader(cluster, secret_ttl_seconds, as_credential),
            api_keys=secret_reader(cluster, secret_ttl_seconds, as_api_keys),
            namespaces=namespace_reader(cluster, secret_ttl_seconds),
            settings=settings,
            now=timestamp,
            enqueue=self.queue.add,
        )
        self._services: dict[tuple[str, str], ObjectKey] = {}
        self._report_listeners: list[Callable[[ReportChange], None]] = []
        self._resync_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.queue.start()
        self._resync_task = asyncio.create_task(self._resync_forever(), name="resync")
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._resync_task is not None:
            self._resync_task.cancel()
            await asyncio.gather(self._resync_task, return_exceptions=True)
        await self.queue.stop()
        await self.poller.stop()
        await self._client.close()

    def on_change(self, change: Change) -> None:
        """Take in one change of any object."""
        key = key_of(change.manifest)
        before = self.cache.get(key)
        if not self.cache.observe(change):
            return
        if key.kind == KIND_SERVICE:
            self._services[key.namespace, label_value(key.name)] = key
            self.queue.add(key)
        elif key.kind == KIND_ADAPTER:
            self._on_adapter(key, change)
        elif key.kind == "Pod":
            self._on_pod(key, change, before)
        else:
            self._on_other(key, change)

    async def pods_settled(self) -> None:
        """Wait until every pod that clients reach has reported, or counts as unreachable.

        Before that, a pod that was not heard yet would be taken for one that is silent, and what
        serves would be called broken for a moment.
        """
        pods = [key for key in self.cache.keys("Pod") if is_ready(self.cache.get(key) or {})]
        await self.poller.settled(pods)

    def subscribe_reports(self, listener: Callable[[ReportChange], None]) -> None:
        """Have a listener called whenever a pod's report changed."""
        self._report_listeners.append(listener)

    def resync(self) -> None:
        """Have everything looked at again."""
        for kind in (KIND_SERVICE, KIND_ADAPTER):
            for key in self.cache.keys(kind):
                self.queue.add(key)

    def own_objects(self) -> list[Manifest]:
        """Return all InferenceServices and LoraAdapters as they are known."""
        keys = (key for kind in (KIND_SERVICE, KIND_ADAPTER) for key in self.cache.keys(kind))
        return [manifest for key in keys if (manifest := self.cache.get(key)) is not None]

    def count_pods_out_of_sync(self) -> int:
        """Return how many pods have not reported the set that they should have."""
        count = 0
        for key in self.cache.keys("Pod"):
            report = self.poller.report(key)
            count += report is None or report.set_hash != self._expected_hash(key)
        return count

    async def _resync_forever(self) -> None:
        while True:
            await asyncio.sleep(self.world.settings.resync_seconds)
            self.resync()

    async def _reconcile(self, key: ObjectKey) -> float | None:
        if key.kind == KIND_SERVICE:
            return await reconcile_service(self.world, key)
        return await reconcile_adapter(self.world, key)

    def _on_adapter(self, key: ObjectKey, change: Change) -> None:
        self.queue.add(key)
        service = service_of(change.manifest)
        if self.cache.get(service) is not None:
            self.queue.add(service)

    def _on_pod(self, key: ObjectKey, change: Change, before: Manifest | None) -> None:
        if change.type == "DELETED":
            self.poller.forget(key)
            self.world.forget_pod(key)
        else:
            self.poller.follow(key, incarnation_of(change.manifest))
            if is_same_pod(before, change.manifest):
                return
        self._enqueue_all(self._service_labelled(change.manifest))

    def _on_other(self, key: ObjectKey, change: Change) -> None:
        service = self._service_labelled(change.manifest)
        if service is not None:
            self.queue.add(service)
        elif key.kind == "Secret":
            for reader in (self.world.secrets, self.world.api_keys):
                reader.invalidate((key.namespace, key.name))
            for each in self.cache.keys(KIND_SERVICE):
                self.queue.add(each)

    def _on_report(self, change: ReportChange) -> None:
        for listener in self._report_listeners:
            listener(change)
        pod = self.cache.get(change.pod)
        service = self._service_labelled(pod) if pod is not None else None
        if service is None:
            return
        before, now = change.before, change.now
        if before is None or now is None:
            self._enqueue_all(service)
            return
        concerned = self._readers(service, changed_shards(before, now))
        concerned |= self._reported(before, now)
        if concerned or is_told_of_pod(before, now):
            self.queue.add(service)
        for adapter in concerned:
            self.queue.add(adapter)

    def _readers(self, service: ObjectKey, shards: set[int]) -> set[ObjectKey]:
        """Return the adapters whose names are in these shards."""
        decision = self.world.decisions.get(service)
        verdicts = decision.verdicts.items() if decision is not None and shards else ()
        return {
            key
            for key, verdict in verdicts
            if verdict.names is not None and shard_index(verdict.names.served) in shards
        }

    def _reported(self, before: RuntimeStatus, now: RuntimeStatus) -> set[ObjectKey]:
        """Return the adapters of which a pod reports something that their status is made from."""
        concerned = set()
        for report, is_count in changed_revisions(before, now):
            name = parse_revision(report.revision)
            key = ObjectKey(KIND_ADAPTER, name.namespace, name.name)
            # Requests are counted for the sake of a version that is on probation.
            if not is_count or self._candidate_of(key) == report.revision:
                concerned.add(key)
        return concerned

    def _candidate_of(self, key: ObjectKey) -> str | None:
        status = (self.cache.get(key) or {}).get("status") or {}
        return (status.get("candidateRevision") or {}).get("id")

    def _enqueue_all(self, service: ObjectKey | None) -> None:
        """Enqueue a service and all its adapters."""
        if service is None:
            return
        self.queue.add(service)
        for adapter in self.cache.adapters_of(service.namespace, service.name):
            self.queue.add(key_of(adapter))

    def _service_labelled(self, manifest: Manifest) -> ObjectKey | None:
        label = (manifest["metadata"].get("labels") or {}).get(LABEL_SERVICE)
        return self._services.get((key_of(manifest).namespace, label)) if label else None

    def _locate(self, pod_key: ObjectKey) -> Endpoint | None:
        pod = self.cache.get(pod_key)
        url = pod_url(pod, "internal") if pod is not None else None
        if pod is None or url is None:
            return None
        label = pod["metadata"]["labels"].get(LABEL_SERVICE, "")
        for secret in self.cache.children("Secret", pod_key.namespace, label):
            if secret["metadata"]["labels"].get(LABEL_CONTENT) == CONTENT_TOKEN:
                token = read_token(secret)
                return Endpoint(url, token, self._needs_counts(pod)) if token else None
        return None

    def _needs_counts(self, pod: Manifest) -> bool:
        decision = self._decision_on(pod)
        return decision is None or decision.has_probation

    def _expected_hash(self, pod_key: ObjectKey) -> str:
        pod = self.cache.get(pod_key)
        decision = self._decision_on(pod) if pod is not None else None
        return decision.set_hash if decision is not None else ""

    def _decision_on(self, pod: Manifest) -> Decision | None:
        service = self._service_labelled(pod)
        return self.world.decisions.get(service) if service is not None else None
