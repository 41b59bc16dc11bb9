"""Writes a service's children, each only when what is stored differs from what is wanted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from graft_operator.constants import ANNOTATION_APPLIED, LABEL_CONTENT
from graft_operator.plan.views import PodView
from graft_operator.reconcile.world import World
from graft_operator.render.common import label_value
from graft_operator.render.configmaps import CONTENT_CONFIG, HASH_LENGTH
from graft_operator.resources.meta import Manifest, key_of, uid_of
from graft_operator.resources.v1alpha1 import InferenceService
from graft_protocol.digest import content_hash

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
            world.cache.put(await world.cluster.apply(marked))
            written.append(marked)
    return written


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
