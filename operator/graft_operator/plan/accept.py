"""Which adapters a service takes, and under which names.

Decided for all adapters of a service together: a name has one holder. Called by the service's
reconcile; the verdicts are what conditions and the desired set are made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graft_operator.constants import RESERVED_NAMES
from graft_operator.plan.quota import Ceiling, Facts, QuotaBook
from graft_operator.plan.rollout import measured_revision
from graft_operator.plan.room import RoomBook
from graft_operator.plan.signature import serves_on, unsigned, untrusted_revision, without_revision
from graft_operator.plan.views import PodView
from graft_operator.resources.meta import ObjectKey
from graft_operator.resources.v1alpha1 import InferenceService, LoraAdapter
from graft_protocol.desired import SERVED_NAME_MAX
from graft_protocol.reasons import Reason
from graft_protocol.source_rules import claim_of, https_endpoint, is_uri_allowed


@dataclass(frozen=True)
class Names:
    """How requests may ask for an adapter."""

    served: str
    aliases: tuple[str, ...] = ()

    @property
    def every(self) -> tuple[str, ...]:
        """All names, the main one first."""
        return (self.served, *self.aliases)


@dataclass(frozen=True)
class Verdict:
    """Whether an adapter is taken; `names` is set exactly when it is."""

    reason: Reason
    message: str
    names: Names | None = None
    held_back: tuple[Reason, str] | None = None
    """Why the version that the spec asks for may not come in, while the one before it serves."""
    ceiling: Ceiling | None = None
    """What that version may have; more may be known of it by now than when this was decided."""
    untrusted: str | None = None
    """The version that served before it, if no trusted key signed that: it is to be forgotten."""

    @property
    def is_unmeasured(self) -> bool:
        """Whether that version may be found too large as soon as it is loaded."""
        return self.ceiling is not None and self.ceiling.is_open

    @property
    def is_accepted(self) -> bool:
        """Whether the adapter is part of the desired set."""
        return self.names is not None


@dataclass(frozen=True)
class SecretFacts:
    """What is known of a referenced Secret; `problem` says why it cannot be used."""

    endpoint: str | None = None
    problem: str = ""
    size: int = 0
    """Bytes of the credential file it becomes."""


@dataclass(frozen=True)
class NamespaceFacts:
    """What is known of a namespace; `problem` says why its labels are not."""

    labels: Mapping[str, str] | None = None
    problem: str = ""


@dataclass(frozen=True)
class AcceptContext:
    """Everything acceptance depends on besides the objects themselves."""

    secrets: Mapping[tuple[str, str], SecretFacts] = field(default_factory=dict)
    """By namespace and name: every Secret that the service and its adapters refer to."""
    holders: Mapping[str, str] = field(default_factory=dict)
    """Who is served under a name now: served name -> ``<namespace>/<name>`` of the adapter."""
    key_problems: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """By namespace and name: why a Secret with API keys cannot be used."""
    key_counts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By namespace and name: how many keys such a Secret holds."""
    now: str = ""
    """The time, as Kubernetes writes it."""
    namespaces: Mapping[str, NamespaceFacts] = field(default_factory=dict)
    """The adapters' namespaces, if the service chooses by their labels."""


def accept_model(service: InferenceService, context: AcceptContext) -> Verdict:
    """Decide whether the service itself can work."""
    refusal = _check_host(service, service.spec.model.uri)
    ref = service.spec.model.credentials_secret_ref
    if refusal is None and ref is not None:
        refusal = _check_secret(service, service.metadata.namespace, ref.name, context)
    if refusal is not None:
        return refusal
    return Verdict(Reason.ACCEPTED, "", Names(service.served_name))


def accept_adapters(
    service: InferenceService, adapters: Iterable[LoraAdapter], context: AcceptContext
) -> dict[ObjectKey, Verdict]:
    """Decide on every adapter that refers to a service.

    Who holds a name keeps it; among those who do not, the oldest comes first, then the smallest
    uid. The loser takes over by itself as soon as the name is free.
    """
    verdicts: dict[ObjectKey, Verdict] = {}
    taken = {service.served_name: f"the base model of {service.metadata.name}"}
    taken |= dict.fromkeys(RESERVED_NAMES, "clients as a word for the base model")
    quota = QuotaBook(service)
    sizes = {name: facts.size for name, facts in context.secrets.items()}
    room = RoomBook(service, sizes, context.key_counts)
    accepted: list[LoraAdapter] = []
    for adapter in sorted(adapters, key=lambda item: _precedence(item, context)):
        verdict = _refused(service, adapter, context) or _named(service, adapter, taken)
        trusted = without_revision(adapter, verdict.untrusted)
        if verdict.names is not None:
            no_room = quota.refusal(trusted) or room.refusal(trusted, verdict.names.every)
            verdict = Verdict(*no_room) if no_room is not None else verdict
        verdicts[adapter.key] = verdict
        if verdict.names is not None:
            quota.count_in(trusted)
            room.count_in(trusted, verdict.names.every)
            owner = f"LoraAdapter {adapter.qualified_name}"
            taken |= dict.fromkeys(verdict.names.every, owner)
            accepted.append(trusted)
    for adapter in accepted:
        verdict = verdicts[adapter.key]
        if verdict.held_back is None:
            verdicts[adapter.key] = replace(verdict, held_back=quota.holding_back(adapter))
    for adapter in accepted:
        ceiling = quota.ceiling(adapter)
        if ceiling is not None:
            verdicts[adapter.key] = replace(verdicts[adapter.key], ceiling=ceiling)
    return verdicts


def measured(verdict: Verdict, adapter: LoraAdapter, pods: Sequence[PodView]) -> Verdict:
    """Return a verdict that takes into account what pods have found out since it was made."""
    if verdict.held_back is not None or verdict.ceiling is None:
        return verdict
    wanted = measured_revision(adapter, pods)
    refusal = verdict.ceiling.refusal(Facts(wanted.bytes, wanted.rank))
    return replace(verdict, held_back=refusal)


def _precedence(adapter: LoraAdapter, context: AcceptContext) -> tuple[bool, str, str, str]:
    name = adapter.spec.served_name or adapter.metadata.name
    served = (name, adapter.qualified_name)
    holds = any(context.holders.get(one) == adapter.qualified_name for one in served)
    return (
        not holds,
        adapter.metadata.creation_timestamp,
        adapter.metadata.uid,
        adapter.qualified_name,
    )


def _refused(
    service: InferenceService, adapter: LoraAdapter, context: AcceptContext
) -> Verdict | None:
    own, namespace = service.metadata.namespace, adapter.metadata.namespace
    foreign = namespace != own
    known = context.namespaces.get(namespace, NamespaceFacts())
    if not service.spec.adapters.allowed_namespaces.admits(namespace, own, known.labels):
        unread = f"; its labels are not known: {known.problem}" if known.problem else ""
        return Verdict(
            Reason.REF_NOT_PERMITTED,
            f"InferenceService {own}/{service.metadata.name} takes no adapters from namespace "
            f"{namespace} (spec.adapters.allowedNamespaces){unread}",
        )
    if foreign and (adapter.spec.served_name or adapter.spec.aliases):
        return Verdict(
            Reason.INVALID_SPEC,
            "servedName and aliases are for adapters in the service's namespace; this one is "
            f"served as {adapter.qualified_name}",
        )
    expires_at = adapter.spec.expires_at
    if expires_at is not None and expires_at <= context.now:
        return Verdict(Reason.EXPIRED, f"spec.expiresAt was {expires_at}")
    misplaced = _check_place(service, adapter.spec.source.uri)
    if misplaced is not None:
        return misplaced
    problem = unsigned(service, adapter)
    if problem and not serves_on(service, adapter):
        return Verdict(Reason.SIGNATURE_INVALID, problem)
    ref = adapter.spec.source.credentials_secret_ref
    refused = _check_secret(service, adapter.metadata.namespace, ref.name, context) if ref else None
    return refused or _check_keys(adapter, context)


def _check_keys(adapter: LoraAdapter, context: AcceptContext) -> Verdict | None:
    """Refuse an adapter whose keys are not all known: nobody could be told from anybody."""
    for namespace, name in key_secrets(adapter):
        problem = context.key_problems.get((namespace, name))
        if problem:
            return Verdict(Reason.SECRET_NOT_FOUND, f"Secret {namespace}/{name}: {problem}")
    return None


def key_secrets(adapter: LoraAdapter) -> tuple[tuple[str, str], ...]:
    """Return namespace and name of the Secrets with an adapter's API keys."""
    access = adapter.spec.access
    refs = access.api_key_secret_refs if access is not None else ()
    return tuple((adapter.metadata.namespace, ref.name) for ref in refs)


def _check_place(service: InferenceService, uri: str) -> Verdict | None:
    """Refuse a place that the service's owner did not open, before any pod is asked to read it."""
    if not is_uri_allowed(uri, service.spec.adapters.allowed_uris):
        return Verdict(
            Reason.SOURCE_FORBIDDEN,
            f"{uri} is not under one of spec.adapters.allowedUris of the InferenceService",
        )
    claim = claim_of(uri)
    if claim is not None and claim not in service.claims:
        return Verdict(
            Reason.SOURCE_FORBIDDEN,
            f"{uri}: the claim {claim!r} is not in spec.adapters.claims of the InferenceService",
        )
    return _check_host(service, uri)


def _check_host(service: InferenceService, uri: str) -> Verdict | None:
    endpoint = https_endpoint(uri)
    if endpoint is None or endpoint in service.spec.adapters.allowed_endpoints:
        return None
    return Verdict(
        Reason.SOURCE_FORBIDDEN,
        f"{uri}: {endpoint} is not in spec.adapters.allowedEndpoints of the InferenceService",
    )


def _check_secret(
    service: InferenceService, namespace: str, name: str, context: AcceptContext
) -> Verdict | None:
    facts = context.secrets.get((namespace, name), SecretFacts(problem="does not exist"))
    if facts.problem:
        return Verdict(Reason.SECRET_NOT_FOUND, f"Secret {namespace}/{name}: {facts.problem}")
    allowed = service.spec.adapters.allowed_endpoints
    if facts.endpoint is not None and facts.endpoint.rstrip("/") not in allowed:
        return Verdict(
            Reason.SOURCE_FORBIDDEN,
            f"Secret {namespace}/{name}: endpoint {facts.endpoint} is not in "
            "spec.adapters.allowedEndpoints of the InferenceService",
        )
    return None


def _named(service: InferenceService, adapter: LoraAdapter, taken: Mapping[str, str]) -> Verdict:
    names = _wanted_names(service, adapter)
    if len(names.served) > SERVED_NAME_MAX:
        return Verdict(
            Reason.INVALID_SPEC,
            f"the name {names.served!r} has more than {SERVED_NAME_MAX} characters",
        )
    for name in names.every:
        if name in taken:
            return Verdict(Reason.NAME_CONFLICT, f"the name {name!r} is held by {taken[name]}")
    problem = unsigned(service, adapter)
    return Verdict(
        Reason.ACCEPTED,
        f"served as {names.served}",
        names,
        held_back=(Reason.SIGNATURE_INVALID, problem) if problem else None,
        untrusted=untrusted_revision(service, adapter),
    )


def _wanted_names(service: InferenceService, adapter: LoraAdapter) -> Names:
    qualified = adapter.qualified_name
    if adapter.metadata.namespace != service.metadata.namespace:
        return Names(qualified)
    served = adapter.spec.served_name or adapter.metadata.name
    others = dict.fromkeys((qualified, *adapter.spec.aliases))
    others.pop(served, None)
    return Names(served, tuple(others))
