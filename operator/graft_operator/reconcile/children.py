"""Writes a service's children, each only when what is stored differs from what is wanted."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from graft_operator.constants import ANNOTATION_APPLIED, LABEL_CONTENT
from graft_operator.errors import ForbiddenError, NotFoundError
from graft_operator.plan.views import PodView
from graft_operator.reconcile.world import World
from graft_operator.render.common import child_name, label_value
from graft_operator.render.configmaps import CONTENT_CONFIG, CONTENT_SHARD, HASH_LENGTH
from graft_operator.resources.meta import Manifest, ObjectKey, key_of, owner_uids, uid_of
from graft_operator.resources.v1alpha1 import InferenceService
from graft_protocol.digest import content_hash

log = logging.getLogger(__name__)

_ON_REQUEST = (
    "ServiceAccount",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "HorizontalPodAutoscaler",
)
"""Kinds of children that a spec may stop to ask for."""
KEPT_CONFIGS = 3
"""Unused configurations that stay for a rollback, as many as old ReplicaSets."""


async def apply_children(world: World, children: Iterable[Manifest]) -> list[Manifest]:
    """Apply children in order, stop at the first that fails, and return what was written.

    Raises:
        ClusterError: One could not be written. Those after it are not touched, so that a
            Deployment never exists before what its pods mount.
    """
    written = []
    for child in children:
        marked = _marked(child)
        stored = world.cache.get(key_of(child))
        if stored is None or not _is_in_place(marked, stored):
            world.cache.put(await world.cluster.apply(_over(stored, marked)))
            written.append(marked)
    return written


async def remove_unwanted(
    world: World, service: InferenceService, wanted: Iterable[Manifest]
) -> None:
    """Delete children of this very service that its spec asked for once and does no more."""
    namespace, label = service.metadata.namespace, label_value(service.metadata.name)
    keys = {key_of(child) for child in wanted}
    for kind in _ON_REQUEST:
        for stored in world.cache.children(kind, namespace, label):
            key, uid = key_of(stored), uid_of(stored)
            if key not in keys and service.metadata.uid in owner_uids(stored):
                await world.cluster.delete(key, uid)
                world.cache.remove(key, uid)


async def sync_optional(
    world: World, service: InferenceService, wanted: Mapping[str, Manifest | None]
) -> float | None:
    """Bring about the children of kinds that the cluster may lack; tell when to look again.

    They are not watched: what is wanted is applied when it changed, and after a while again.
    """
    now, pause = asyncio.get_running_loop().time(), world.settings.optional_seconds
    for kind, child in wanted.items():
        key = ObjectKey(kind, service.metadata.namespace, child_name(service))
        text = json.dumps(child, sort_keys=True)
        known, since = world.optional.get(key, (None, now))
        if known == text and now - since < pause:
            continue
        if child is not None:
            # A cluster without the kind is told of once, not at every look.
            level = logging.DEBUG if known == text else logging.WARNING
            await _apply_if_served(world, child, level)
        elif known is None or known != text:
            await _delete_if_ours(world, service, key)
        world.optional[key] = (text, now)
    return pause if any(child is not None for child in wanted.values()) else None


async def _apply_if_served(world: World, child: Manifest, level: int) -> None:
    try:
        stored = await world.cluster.get(key_of(child))
        marked = _marked(child)
        if stored is None or not _is_in_place(marked, stored):
            await world.cluster.apply(marked)
    except (NotFoundError, ForbiddenError) as error:
        text = "%s is asked for, but the cluster offers no such kind: %s"
        log.log(level, text, key_of(child), error)


async def _delete_if_ours(world: World, service: InferenceService, key: ObjectKey) -> None:
    try:
        stored = await world.cluster.get(key)
    except ForbiddenError:
        return  # where nothing may be looked at, nothing was made
    if stored is not None and service.metadata.uid in owner_uids(stored):
        await world.cluster.delete(key, uid_of(stored))


async def remove_unused_configs(
    world: World, service: InferenceService, pods: Sequence[PodView], current: str
) -> None:
    """Delete configurations that no pod was started with, but for the newest few.

    Args:
        world: The surroundings.
        service: Whose configurations.
        pods: Its pods.
        current: Hash of the configuration that the next pod would be started with.
    """
    namespace, label = service.metadata.namespace, label_value(service.metadata.name)
    in_use = {current, *(pod.config_hash for pod in pods)}
    unused = [
        config
        for config in world.cache.children("ConfigMap", namespace, label)
        if config["metadata"]["labels"].get(LABEL_CONTENT) == CONTENT_CONFIG
        and config["metadata"]["name"][-HASH_LENGTH:] not in in_use
    ]
    unused.sort(key=lambda config: str(config["metadata"].get("creationTimestamp", "")))
    for config in unused[:-KEPT_CONFIGS]:
        await world.cluster.delete(key_of(config), uid_of(config))
        world.cache.remove(key_of(config), uid_of(config))


def _over(stored: Manifest | None, wanted: Manifest) -> Manifest:
    """Have a shard written over the version that was read, or not at all.

    What an operator writes that has slept, or has been shown the past, would take adapters out of
    the pods that another put in meanwhile. Nobody else writes shards, so this costs no conflicts.
    """
    labels = wanted["metadata"].get("labels") or {}
    if stored is None or labels.get(LABEL_CONTENT) != CONTENT_SHARD:
        return wanted
    version = stored["metadata"].get("resourceVersion")
    return {**wanted, "metadata": {**wanted["metadata"], "resourceVersion": version}}


def _marked(child: Manifest) -> Manifest:
    """Note on a manifest what it says, so that a dropped field is seen as a change as well."""
    text = json.dumps(child, sort_keys=True)
    metadata = child["metadata"]
    annotations = {
        **metadata.get("annotations", {}),
        ANNOTATION_APPLIED: content_hash(text.encode()),
    }
    return {**child, "metadata": {**metadata, "annotations": annotations}}


def _is_in_place(wanted: Manifest, stored: Manifest) -> bool:
    """Whether everything wanted is stored; the cluster may have added to it."""
    return not stored["metadata"].get("deletionTimestamp") and _contains(stored, wanted)


def _contains(stored: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(stored, Mapping) and all(
            # What is wanted empty is left out by the API server.
            (key not in stored and value in (None, "", [], {}))
            or (key in stored and _contains(stored[key], value))
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(stored, list)
            and len(stored) == len(wanted)
            and all(_contains(have, want) for have, want in zip(stored, wanted, strict=True))
        )
    return bool(stored == wanted)
