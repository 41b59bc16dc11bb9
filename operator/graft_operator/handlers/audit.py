"""Complete lists beside the watches: what a watch missed is repaired, a dead watch is found out.

A list that fails or is cut short changes nothing. No kopf here: it is what must not be trusted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from graft_operator.cluster.base import Change
from graft_operator.cluster.kubernetes import KubernetesCluster, Listing, version_of
from graft_operator.cluster.kubernetes_kinds import WATCHED, Kind
from graft_operator.errors import ClusterError, DeadWatchError, ForbiddenError
from graft_operator.metrics import OperatorMetrics
from graft_operator.reconcile.cache import ObjectCache
from graft_operator.resources.meta import Manifest, ObjectKey, key_of, uid_of
from graft_operator.settings import OperatorSettings

log = logging.getLogger(__name__)

RETRY_FIRST_SECONDS = 0.5
RETRY_MAX_SECONDS = 15.0


@dataclass
class Stream:
    """What one watch has delivered, and what a list says it should have."""

    kind: Kind
    scope: str | None
    seen: int = 0
    """Highest version delivered. Versions grow over all objects of a cluster."""
    owed: dict[ObjectKey, tuple[int, float]] = field(default_factory=dict)
    """By object: the version at which the watch is past it, and since when it is awaited."""

    def __str__(self) -> str:
        return f"{self.kind.plural} in {self.scope or 'all namespaces'}"

    def deliver(self, change: Change) -> None:
        """Note an event of the watch."""
        self.seen = max(self.seen, version_of(change.manifest))
        if change.type == "DELETED":
            self.owed.pop(key_of(change.manifest), None)
        if self.owed:
            self.owed = {key: owed for key, owed in self.owed.items() if owed[0] > self.seen}

    def owe(self, key: ObjectKey, version: int, now: float) -> None:
        """Note that the watch should be past a version by now."""
        if version > self.seen:
            self.owed.setdefault(key, (version, now))

    def excuse(self, now: float) -> None:
        """Let everything that is awaited have its time again: the API itself was in trouble."""
        self.owed = {key: (version, now) for key, (version, _) in self.owed.items()}

    def oldest(self, now: float) -> tuple[ObjectKey, float] | None:
        """Return what is awaited longest, and for how many seconds."""
        if not self.owed:
            return None
        key = min(self.owed, key=lambda each: self.owed[each][1])
        return key, now - self.owed[key][1]


class WatchAudit:
    """Lists every watched kind now and then."""

    def __init__(
        self,
        cluster: KubernetesCluster,
        cache: ObjectCache,
        deliver: Callable[[Change], None],
        metrics: OperatorMetrics,
        settings: OperatorSettings,
    ) -> None:
        """Make an audit.

        Args:
            cluster: Is listed.
            cache: Is compared with the lists.
            deliver: Takes in changes; the same that gets those of the watches.
            metrics: Counts repairs and failures.
            settings: Paces.
        """
        self._cluster = cluster
        self._cache = cache
        self._deliver = deliver
        self._metrics = metrics
        self._settings = settings
        self._streams = {
            (kind.name, scope): Stream(kind, scope)
            for kind in WATCHED
            for scope in cluster.scopes(kind)
        }
        self._gone: set[str] = set()
        self._beat = 0.0

    def watched(self, change: Change) -> None:
        """Take in an event of a watch."""
        key = key_of(change.manifest)
        scope = key.namespace if (key.kind, None) not in self._streams else None
        stream = self._streams.get((key.kind, scope))
        if stream is None:
            return
        if change.type == "DELETED":
            self._gone.add(uid_of(change.manifest))
        stream.deliver(change)
        self._metrics.count_watch_event(key.kind)
        self._deliver(change)

    def age(self) -> float:
        """Return for how many seconds the audit has not moved."""
        return asyncio.get_running_loop().time() - self._beat if self._beat else 0.0

    async def prime(self) -> None:
        """List everything once; return when all of it is known, however long that takes.

        A namespace that has to be waited for keeps no other from being listed. One that does not
        exist is known to be empty.
        """
        scopes = dict.fromkeys(stream.scope for stream in self._streams.values())
        waiting = [[s for s in self._streams.values() if s.scope == scope] for scope in scopes]
        pause = RETRY_FIRST_SECONDS
        while True:
            tried = [await self._prime(streams) for streams in waiting]
            left = [streams for streams in tried if streams]
            if not left:
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_MAX_SECONDS) if left == waiting else RETRY_FIRST_SECONDS
            waiting = left

    async def _prime(self, streams: list[Stream]) -> list[Stream]:
        """List kinds of one scope up to the first that fails; return those that are left."""
        for done, stream in enumerate(streams):
            error = await self._compare(stream)
            # Rights go with their namespace. Where it is still there, so may be what we cannot see.
            if isinstance(error, ForbiddenError) and await self._is_missing(stream.scope):
                self._forget(stream.scope)
                return []
            if error is not None:
                return streams[done:]
        return []

    async def _is_missing(self, scope: str | None) -> bool:
        """Whether the cluster says for certain that there is no such namespace."""
        if scope is None:
            return False
        try:
            found = await self._cluster.get(ObjectKey("Namespace", "", scope))
        except ClusterError as error:
            log.warning("cannot tell whether namespace %s exists: %s", scope, error)
            return False
        return found is None

    def _forget(self, scope: str | None) -> None:
        """Take everything in a namespace for gone, as the namespace is."""
        log.warning(
            "namespace %s does not exist and is passed over: take it out of serviceNamespaces and "
            "tenantNamespaces, or make it again and upgrade the release, which gives the rights",
            scope,
        )
        for kind in WATCHED:
            for key in self._cache.keys(kind.name):
                known = self._cache.get(key)
                if known is not None and key.namespace == scope:
                    self._deliver(Change("DELETED", known))

    async def run(self) -> None:
        """List everything again and again.

        Raises:
            DeadWatchError: A watch owes a change for too long.
        """
        while True:
            await asyncio.sleep(self._settings.audit_seconds)
            for stream in self._streams.values():
                error = await self._compare(stream, is_debt=True)
                self._check(stream, is_complete=error is None)

    def _check(self, stream: Stream, *, is_complete: bool) -> None:
        now = asyncio.get_running_loop().time()
        if not is_complete:
            stream.excuse(now)
        oldest = stream.oldest(now)
        if oldest is not None and oldest[1] >= self._settings.dead_watch_seconds:
            key, seconds = oldest
            raise DeadWatchError(
                f"the watch of {stream} is dead: {key} changed at least {seconds:.0f} s ago "
                "and was not delivered"
            )

    async def _compare(self, stream: Stream, *, is_debt: bool = False) -> ClusterError | None:
        """List a kind and deliver what is news; return why the list was not complete."""
        self._gone.clear()
        self._beat = asyncio.get_running_loop().time()
        try:
            listing = await self._cluster.listing(stream.kind, stream.scope)
        except ClusterError as error:
            log.warning("cannot list %s: %s", stream, error)
            self._metrics.count_failed_list(stream.kind.name)
            return error
        for change in self._news(stream, listing):
            if is_debt:
                self._metrics.count_repair(stream.kind.name)
            self._deliver(change)
        if is_debt:
            now = asyncio.get_running_loop().time()
            for manifest in listing.manifests:
                stream.owe(key_of(manifest), version_of(manifest), now)
        return None

    def _news(self, stream: Stream, listing: Listing) -> Iterator[Change]:
        listed = {key_of(manifest): manifest for manifest in listing.manifests}
        for key, manifest in listed.items():
            # What a watch has reported gone since the list was made is not to come back.
            if uid_of(manifest) not in self._gone and _is_newer(manifest, self._cache.get(key)):
                yield Change("MODIFIED", manifest)
        now = asyncio.get_running_loop().time()
        for key in self._cache.keys(stream.kind.name):
            known = self._cache.get(key)
            if known is None or key in listed or stream.scope not in (None, key.namespace):
                continue
            # What is newer than the list was made, or written, after it.
            if version_of(known) <= listing.version:
                stream.owe(key, listing.version, now)
                yield Change("DELETED", known)


def _is_newer(manifest: Manifest, known: Manifest | None) -> bool:
    return known is None or version_of(manifest) > version_of(known)
