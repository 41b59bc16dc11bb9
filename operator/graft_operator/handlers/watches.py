"""The kopf part: one event handler for every watched kind, and how kopf is to behave.

kopf brings changes here; it stores nothing on objects, adds no finalizer and writes no Event.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import kopf

from graft_operator.cluster.base import Change
from graft_operator.cluster.kubernetes import cleaned
from graft_operator.cluster.kubernetes_access import Connection
from graft_operator.cluster.kubernetes_kinds import WATCHED, Kind
from graft_operator.settings import OperatorSettings
from graft_protocol.naming import API_GROUP

BACKOFFS_SECONDS = (1, 1, 2, 3, 5, 8)
BACKOFF_MAX_SECONDS = 13
CLIENT_MARGIN_SECONDS = 30
IDLE_SECONDS = 0.05
"""How long kopf keeps a worker after an object's event. Workers are few and wait with a slot taken,
so with kopf's own 5 s the first list of 1000 objects would hold up news for a minute."""


class EndlessBackoffs:
    """Pauses between tries that never run out: a watch that gives up would be a dead one."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain(BACKOFFS_SECONDS, itertools.repeat(BACKOFF_MAX_SECONDS))


def create_registry(
    kinds: Iterable[Kind],
    deliver: Callable[[Change], None],
    connect: Callable[[], Awaitable[Connection]],
) -> kopf.OperatorRegistry:
    """Return the handlers.

    Args:
        kinds: What to watch.
        deliver: Takes in a change and returns at once.
        connect: Finds credentials; called at the start and whenever they have expired.
    """
    registry = kopf.OperatorRegistry()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return _connection_info(await connect())

    kopf.on.login(registry=registry)(login)
    for kind in kinds:
        _watch(registry, kind, deliver)
    return registry


def _watch(registry: kopf.OperatorRegistry, kind: Kind, deliver: Callable[[Change], None]) -> None:
    async def on_event(event: kopf.RawEvent, **_: Any) -> None:
        if event["type"] != "BOOKMARK":
            # kopf marks an object of its first list with no type.
            deliver(Change(event["type"] or "ADDED", cleaned(event["object"], kind)))

    handler_id = f"on_{kind.plural}"
    kopf.on.event(kind.group, kind.version, kind.plural, id=handler_id, registry=registry)(on_event)


def _connection_info(connection: Connection) -> kopf.ConnectionInfo:
    return kopf.ConnectionInfo(
        server=connection.server,
        scheme=connection.scheme or None,
        token=connection.token or None,
        ca_path=connection.ca_file,
        certificate_path=connection.certificate_file,
        private_key_path=connection.key_file,
        insecure=not connection.is_verified,
        proxy_url=connection.proxy_url,
        trust_env=True,
    )


def kopf_settings(settings: OperatorSettings) -> kopf.OperatorSettings:
    """Return kopf's settings.

    Sources for the watch timeouts: kopf issues 585, 980, 1120; both sides need one.
    """
    result = kopf.OperatorSettings()
    result.peering.standalone = True
    result.posting.enabled = False
    # The kinds are known, and the audit notices when they are not served.
    result.scanning.disabled = True
    result.queueing.worker_limit = settings.watch_workers
    result.queueing.idle_timeout = IDLE_SECONDS
    result.networking.request_timeout = settings.request_timeout_seconds
    result.networking.error_backoffs = EndlessBackoffs()
    result.networking.trust_env = True
    result.watching.server_timeout = settings.watch_seconds
    result.watching.client_timeout = settings.watch_seconds + CLIENT_MARGIN_SECONDS
    result.watching.inactivity_timeout = settings.watch_quiet_seconds
    # No pages: kopf gives up for good when the state behind one is gone. Our own lists, which are
    # read in pages again and again, begin anew.
    result.watching.chunk_size = None
    for kind in WATCHED:
        if kind.selector:
            key = (kind.group, kind.version, kind.plural)
            result.watching.label_selectors[key] = kind.selector
    # Nothing uses these; if anything ever did, it would be under our own name.
    result.persistence.finalizer = f"{API_GROUP}/kopf"
    result.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=API_GROUP)
    result.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=API_GROUP)
    return result
