"""The story of one LoraAdapter: what its service's pods make of it becomes its status.

The desired set itself is the service's business (`reconcile.service`).
"""

from __future__ import annotations

from graft_operator.errors import InvalidManifestError
from graft_operator.plan.accept import Verdict, measured
from graft_operator.plan.canary import seconds_to_next_step
from graft_operator.plan.conditions import adapter_status, refusal
from graft_operator.plan.rollout import Versions, advance
from graft_operator.plan.signature import without_revision
from graft_operator.reconcile.conclude import write_status
from graft_operator.reconcile.world import World
from graft_operator.render.common import label_value
from graft_operator.resources.meta import Manifest, ObjectKey, key_of
from graft_operator.resources.status import AdapterStatus, stored_status
from graft_operator.resources.v1alpha1 import LoraAdapter
from graft_protocol.desired import shard_index
from graft_protocol.reasons import Reason


async def reconcile_adapter(world: World, key: ObjectKey) -> float | None:
    """Make the adapter's status tell the truth.

    Reads:  the adapter; its service's verdict on it; the reports of the service's pods.
    Writes: the adapter's status, and events about it.
    Never:  its spec, or anything of its service.

    Runs when the adapter, the verdict or a pod's report on it changed. Idempotent.

    Raises:
        ClusterError: The status could not be written; tried again with backoff.
    """
    manifest = world.cache.get(key)
    if manifest is None or manifest["metadata"].get("deletionTimestamp"):
        world.parsed.forget(key)
        return None
    try:
        adapter = world.parsed.parse(LoraAdapter, manifest)
    except InvalidManifestError as error:
        before = stored_status(AdapterStatus, manifest)
        await write_status(world, manifest, before, _invalid(manifest, before, error))
        return None
    verdict = _verdict(world, adapter)
    if verdict is None:
        # The service's reconcile has not seen this version yet; it brings us back.
        return None
    now = world.now()
    status = _observed_status(world, adapter, verdict, now)
    if await write_status(world, manifest, adapter.status, status):
        world.enqueue(adapter.service_key)
    return seconds_to_next_step(adapter.spec.rollout, status.candidate_revision, now)


def _verdict(world: World, adapter: LoraAdapter) -> Verdict | None:
    service = adapter.service_key
    stored = world.cache.get(service)
    if stored is None or stored["metadata"].get("deletionTimestamp"):
        if not world.settings.serves(service.namespace) and adapter.status.conditions:
            # Another operator's service: it has the last word, and two would never come to an end.
            return None
        name = f"InferenceService {service.namespace}/{service.name}"
        what = "does not exist" if stored is None else "is being deleted"
        return Verdict(Reason.TARGET_NOT_FOUND, f"{name} {what}")
    decision = world.decisions.get(service)
    if decision is None:
        return None
    version = (adapter.metadata.uid, adapter.metadata.generation)
    if decision.versions.get(adapter.key) != version:
        return None
    return decision.verdicts.get(adapter.key)


def _observed_status(
    world: World, adapter: LoraAdapter, verdict: Verdict, now: str
) -> AdapterStatus:
    adapter = without_revision(adapter, verdict.untrusted)
    recorded = Versions(adapter.status.current_revision, adapter.status.candidate_revision)
    if verdict.names is None or adapter.spec.suspend:
        return adapter_status(adapter, verdict, recorded, (), "")
    service = adapter.service_key
    pods = world.pods_of(service.namespace, label_value(service.name))
    hashes = world.decisions[service].shard_hashes
    wanted_hash = hashes[shard_index(verdict.names.served)] if hashes else ""
    verdict = measured(verdict, adapter, pods)
    versions = advance(adapter, pods, now, held_back=verdict.held_back is not None)
    return adapter_status(adapter, verdict, versions, pods, wanted_hash)


def _invalid(
    manifest: Manifest, before: AdapterStatus, error: InvalidManifestError
) -> AdapterStatus:
    """Return the status of an adapter whose spec cannot be read; its versions stay known."""
    verdict = Verdict(Reason.INVALID_SPEC, f"{key_of(manifest)}: {error}")
    return AdapterStatus(
        observed_generation=int(manifest["metadata"].get("generation", 0)),
        conditions=refusal(verdict),
        current_revision=before.current_revision,
        candidate_revision=before.candidate_revision,
        rejected_revision=before.rejected_revision,
    )
