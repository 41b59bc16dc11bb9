"""Has kubelets refresh what a service's pods mount at once, instead of in their own time.

A lost nudge costs that time and nothing else. Called by the service's reconcile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from graft_operator.constants import ANNOTATION_APPLIED
from graft_operator.plan.views import PodView
from graft_operator.reconcile.world import World
from graft_operator.render.secrets import credential_secret_names
from graft_operator.resources.meta import Manifest, ObjectKey
from graft_operator.resources.v1alpha1 import InferenceService
from graft_protocol.digest import content_hash


async def renew_credentials(
    world: World,
    service: InferenceService,
    pods: Sequence[PodView],
    written: Sequence[Manifest],
    set_hash: str,
) -> None:
    """Have changed keys mounted.

    Args:
        world: The surroundings.
        service: Whose pods.
        pods: They.
        written: The children that were just written.
        set_hash: The set that the pods are to have. Those that have not will be nudged for it.
    """
    names = credential_secret_names(service)
    changed = [child for child in written if child["metadata"]["name"] in names]
    if not changed:
        return
    marks = "".join(child["metadata"]["annotations"][ANNOTATION_APPLIED] for child in changed)
    value = f"{set_hash}/{content_hash(marks.encode())}"
    for pod in pods:
        if pod.report is None or pod.report.set_hash == set_hash:
            await world.cluster.nudge(_key(service, pod), value)


async def nudge_behind(
    world: World, service: InferenceService, pods: Sequence[PodView], set_hash: str
) -> float | None:
    """Nudge the pods that have not read the set yet; return when to look at them again."""
    now = asyncio.get_running_loop().time()
    behind = [pod for pod in pods if pod.report is not None and pod.report.set_hash != set_hash]
    pause = world.settings.nudge_seconds
    for pod in behind:
        key = _key(service, pod)
        known_hash, attempt, last = world.nudges.get(key, ("", 0, now - 3600))
        rest = world.settings.nudge_seconds - (now - last)
        if rest > 0:
            pause = min(pause, rest)
            continue
        attempt = attempt + 1 if known_hash == set_hash else 1
        world.nudges[key] = (set_hash, attempt, now)
        await world.cluster.nudge(key, f"{set_hash}/{attempt}")
        world.poller.ask_soon(key)
    return pause if behind else None


def _key(service: InferenceService, pod: PodView) -> ObjectKey:
    return ObjectKey("Pod", service.metadata.namespace, pod.name)
