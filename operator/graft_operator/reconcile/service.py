"""The story of one InferenceService: its children, and the desired set of its pods."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graft_operator.errors import InvalidManifestError, InvalidObjectError, RefusedError
from graft_operator.plan.accept import (
    AcceptContext,
    NamespaceFacts,
    SecretFacts,
    Verdict,
    accept_adapters,
    accept_model,
    key_secrets,
)
from graft_operator.plan.canary import seconds_between
from graft_operator.plan.desired import Grant, desired_shards, hash_of_set
from graft_operator.plan.quota import tenant_limits
from graft_operator.plan.replicas import replicas_expected, replicas_to_apply
from graft_operator.plan.service_status import (
    ServiceFacts,
    service_status,
    unreadable_service_status,
)
from graft_operator.plan.template import TemplateChoice, choose_template
from graft_operator.plan.views import DeploymentView, PodView
from graft_operator.reconcile.children import (
    apply_children,
    remove_unused_configs,
    remove_unwanted,
    sync_optional,
)
from graft_operator.reconcile.conclude import write_status
from graft_operator.reconcile.nudges import nudge_behind, renew_credentials
from graft_operator.reconcile.secrets import SecretName, SecretView
from graft_operator.reconcile.world import Decision, World, deployment_view
from graft_operator.render.common import child_name, label_value, selector_labels
from graft_operator.render.configmaps import config_hash
from graft_operator.render.family import Ingredients, children, optional_children
from graft_operator.render.secrets import read_token, token_secret_name
from graft_operator.resources.credentials import credential_key, credential_text
from graft_operator.resources.meta import Manifest, ObjectKey, key_of
from graft_operator.resources.pin import TemplatePin, read_pin
from graft_operator.resources.status import ServiceStatus, stored_status
from graft_operator.resources.v1alpha1 import InferenceService, LoraAdapter
from graft_protocol.credentials import Credential
from graft_protocol.desired import Shard
from graft_protocol.reasons import Reason

TOKEN_BYTES = 32


@dataclass(frozen=True)
class Observed:
    """Everything the plan is made from."""

    manifest: Manifest
    service: InferenceService
    adapters: tuple[LoraAdapter, ...]
    pods: tuple[PodView, ...]
    secrets: Mapping[SecretName, SecretView]
    keys: Mapping[SecretName, SecretView]
    namespaces: Mapping[str, NamespaceFacts]
    token: str
    now: str
    pinned: TemplatePin | None
    """What the Deployment was rendered with, if there is one."""
    deployment: DeploymentView | None


@dataclass(frozen=True)
class Plan:
    """What should be."""

    model_verdict: Verdict
    decision: Decision
    shards: tuple[Shard, ...]
    template: TemplateChoice
    config_hash: str
    """The configuration that pods are started with; empty if it cannot be rendered."""
    children: tuple[Manifest, ...]
    """In the order in which they must exist."""
    optional: Mapping[str, Manifest | None]
    """By kind, of those that the cluster may lack."""


async def reconcile_service(world: World, key: ObjectKey) -> float | None:
    """Make the service's children, and with them its pods, what the specs ask for.

    Reads:  the service; the adapters that refer to it; the Secrets they name; its pods' reports.
    Writes: its children (`render.family`); nudges to pods; the service's status.
    Never:  a spec, an adapter's status, anything of another service.

    Runs when any of these changed. Idempotent: the plan is made from what is, not from what was
    done before, so a crash between two writes is repaired by the next run.

    Raises:
        ClusterError: Something could not be read or written; tried again with backoff. Where the
            cluster refused it, the status says so.
    """
    manifest = world.cache.get(key)
    if manifest is None or manifest["metadata"].get("deletionTimestamp"):
        _forget(world, key)
        return None
    try:
        service = world.parsed.parse(InferenceService, manifest)
    except InvalidManifestError as error:
        await _conclude_invalid(world, manifest, error)
        return None
    observed = await _observe(world, manifest, service)
    plan = _plan(world, observed)
    try:
        pauses = [await _act(world, observed, plan)]
    except RefusedError as error:
        # Whoever can mend it looks at the object, not at our log.
        await _conclude(world, observed, plan, _refusal(error))
        raise
    await _conclude(world, observed, plan)
    pauses.append(_seconds_to_expiry(observed))
    if observed.secrets or observed.keys or observed.namespaces:
        # No watch tells that one has changed, or may be read from now on.
        pauses.append(world.secrets.ttl_seconds)
    return min((pause for pause in pauses if pause is not None), default=None)


def _forget(world: World, key: ObjectKey) -> None:
    world.decisions.pop(key, None)
    for child in [child for child in world.optional if child[1:] == _place(key)]:
        del world.optional[child]
    world.parsed.forget(key)
    for adapter in world.cache.adapters_of(key.namespace, key.name):
        world.enqueue(key_of(adapter))


async def _observe(world: World, manifest: Manifest, service: InferenceService) -> Observed:
    namespace, name = service.metadata.namespace, service.metadata.name
    adapters = _parsed_adapters(world, namespace, name)
    named = [_secret_of(adapter) for adapter in adapters]
    model_ref = service.spec.model.credentials_secret_ref
    named.append((namespace, model_ref.name) if model_ref else None)
    views = await world.secrets.read_all(name for name in named if name is not None)
    keys = await world.api_keys.read_all(name for item in adapters for name in key_secrets(item))
    labelled = await world.namespaces.read_all(_chosen_by_label(service, adapters))
    token_key = ObjectKey("Secret", namespace, token_secret_name(service))
    secret = world.cache.get(token_key) or await world.cluster.get(token_key)
    token = (read_token(secret) if secret else None) or secrets.token_urlsafe(TOKEN_BYTES)
    pods = tuple(world.pods_of(namespace, label_value(name)))
    stored = world.cache.get(ObjectKey("Deployment", *_child_place(service)))
    pinned = read_pin(stored, world.settings.runtime_image)
    deployed = deployment_view(stored)
    return Observed(
        manifest,
        service,
        adapters,
        pods,
        views,
        keys,
        labelled,
        token,
        world.now(),
        pinned,
        deployed,
    )


def _chosen_by_label(service: InferenceService, adapters: Sequence[LoraAdapter]) -> set[str]:
    """Return the namespaces whose labels decide."""
    if service.spec.adapters.allowed_namespaces.selector is None:
        return set()
    return {adapter.metadata.namespace for adapter in adapters} - {service.metadata.namespace}


def _parsed_adapters(world: World, namespace: str, name: str) -> tuple[LoraAdapter, ...]:
    adapters = []
    for manifest in world.cache.adapters_of(namespace, name):
        if manifest["metadata"].get("deletionTimestamp"):
            continue
        try:
            adapters.append(world.parsed.parse(LoraAdapter, manifest))
        except InvalidManifestError:
            # Its own reconcile tells its owner; the others must not wait for that.
            continue
    return tuple(adapters)


def _secret_of(adapter: LoraAdapter) -> SecretName | None:
    ref = adapter.spec.source.credentials_secret_ref
    return (adapter.metadata.namespace, ref.name) if ref else None


def _plan(world: World, observed: Observed) -> Plan:
    service = observed.service
    context = AcceptContext(
        secrets={name: _facts(view) for name, view in observed.secrets.items()},
        holders={
            adapter.status.served_name: adapter.qualified_name
            for adapter in observed.adapters
            if adapter.status.served_name
        },
        key_problems={name: view.problem for name, view in observed.keys.items()},
        key_counts={name: len(view.key_hashes) for name, view in observed.keys.items()},
        now=observed.now,
        namespaces=observed.namespaces,
    )
    verdicts = accept_adapters(service, observed.adapters, context)
    shards = desired_shards(observed.adapters, verdicts, observed.pods, _grants(observed))
    decision = Decision(
        verdicts=verdicts,
        versions={
            item.key: (item.metadata.uid, item.metadata.generation) for item in observed.adapters
        },
        shard_hashes=tuple(shard.hash for shard in shards),
        set_hash=hash_of_set(shards),
        has_probation=any(
            item.status.candidate_revision and item.spec.rollout.steps for item in observed.adapters
        ),
    )
    newest = TemplatePin(world.settings.template_revision, world.settings.runtime_image)
    template = choose_template(service, observed.pinned, newest, has_pods=bool(observed.pods))
    pin = template.pin if template.is_renderable else None
    ingredients = Ingredients(
        credentials=_credentials(observed, verdicts),
        token=observed.token,
        shards=shards,
        pin=pin,
        replicas=replicas_to_apply(service, observed.deployment),
        operator_namespace=world.settings.operator_namespace,
    )
    return Plan(
        model_verdict=accept_model(service, context),
        decision=decision,
        shards=shards,
        template=template,
        config_hash=config_hash(service, pin.revision) if pin else "",
        children=children(service, ingredients),
        optional=optional_children(service),
    )


def _grants(observed: Observed) -> dict[ObjectKey, Grant]:
    """Return what goes with each adapter besides its versions."""
    return {
        adapter.key: Grant(
            access=_key_hashes(observed, adapter),
            tenant=tenant_limits(observed.service, adapter.metadata.namespace),
        )
        for adapter in observed.adapters
    }


def _key_hashes(observed: Observed, adapter: LoraAdapter) -> tuple[str, ...] | None:
    if adapter.spec.access is None:
        return None
    views = (observed.keys[name] for name in key_secrets(adapter))
    return tuple(sorted({hash_ for view in views for hash_ in view.key_hashes}))


def _seconds_to_expiry(observed: Observed) -> float | None:
    """Return when the next adapter expires."""
    times = (adapter.spec.expires_at for adapter in observed.adapters)
    ahead = [time for time in times if time is not None and time > observed.now]
    return min((seconds_between(observed.now, time) for time in ahead), default=None)


def _facts(view: SecretView) -> SecretFacts:
    if view.credential is None:
        return SecretFacts(problem=view.problem)
    size = len(credential_text(view.credential).encode())
    return SecretFacts(view.credential.endpoint, view.problem, size)


def _credentials(
    observed: Observed, verdicts: Mapping[ObjectKey, Verdict]
) -> dict[str, Credential]:
    names = {
        _secret_of(adapter) for adapter in observed.adapters if verdicts[adapter.key].is_accepted
    }
    ref = observed.service.spec.model.credentials_secret_ref
    if ref is not None:
        names.add((observed.service.metadata.namespace, ref.name))
    views = {name: observed.secrets[name] for name in names if name is not None}
    return {
        credential_key(*name): view.credential
        for name, view in views.items()
        if view.credential is not None
    }


async def _act(world: World, observed: Observed, plan: Plan) -> float | None:
    """Write what differs; return after how many seconds to look again."""
    if not plan.model_verdict.is_accepted:
        # What runs goes on running; nothing new is started from a spec that cannot work.
        return world.settings.backoff_max_seconds
    await remove_unwanted(world, observed.service, plan.children)
    written = await apply_children(world, plan.children)
    set_hash = plan.decision.set_hash
    await renew_credentials(world, observed.service, observed.pods, written, set_hash)
    if plan.config_hash:
        await remove_unused_configs(world, observed.service, observed.pods, plan.config_hash)
    pauses = [
        await nudge_behind(world, observed.service, observed.pods, set_hash),
        await sync_optional(world, observed.service, plan.optional),
    ]
    return min((pause for pause in pauses if pause is not None), default=None)


def _refusal(error: RefusedError) -> Verdict:
    is_invalid = isinstance(error, InvalidObjectError)
    return Verdict(Reason.INVALID_SPEC if is_invalid else Reason.CHILD_REFUSED, str(error))


async def _conclude(
    world: World, observed: Observed, plan: Plan, refusal: Verdict | None = None
) -> None:
    service = observed.service
    old = world.decisions.get(service.key)
    world.decisions[service.key] = plan.decision
    for adapter in _concerned(observed.adapters, old, plan.decision):
        world.enqueue(adapter.key)
    stored = world.cache.get(ObjectKey("Service", *_child_place(service)))
    accepted = [a for a in observed.adapters if plan.decision.verdicts[a.key].is_accepted]
    status = service_status(
        ServiceFacts(
            service=service,
            verdict=plan.model_verdict,
            refusal=refusal,
            pods=observed.pods,
            adapters=accepted,
            set_hash=plan.decision.set_hash,
            template=plan.template,
            deployment=observed.deployment,
            replicas=replicas_expected(service, observed.deployment),
            config_hash=plan.config_hash,
            url=world.cluster.url_of(stored) if stored else "",
            selector=",".join(f"{k}={v}" for k, v in sorted(selector_labels(service).items())),
        )
    )
    await write_status(world, observed.manifest, service.status, status)


def _place(key: ObjectKey) -> tuple[str, str]:
    return key.namespace, label_value(key.name)


def _child_place(service: InferenceService) -> tuple[str, str]:
    return service.metadata.namespace, child_name(service)


def _concerned(
    adapters: Sequence[LoraAdapter], old: Decision | None, new: Decision
) -> list[LoraAdapter]:
    """Return the adapters about which something else was decided than before."""
    if old is None:
        return list(adapters)
    return [
        adapter
        for adapter in adapters
        if old.verdicts.get(adapter.key) != new.verdicts[adapter.key]
        or old.versions.get(adapter.key) != new.versions[adapter.key]
    ]


async def _conclude_invalid(world: World, manifest: Manifest, error: InvalidManifestError) -> None:
    old = stored_status(ServiceStatus, manifest)
    generation = int(manifest["metadata"].get("generation", 0))
    verdict = Verdict(Reason.INVALID_SPEC, str(error))
    new = unreadable_service_status(old, generation, verdict)
    await write_status(world, manifest, old, new)
