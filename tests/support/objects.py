"""Small makers of objects, pods and reports for tests of the control plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graft_operator.constants import API_VERSION
from graft_operator.plan.views import PodView
from graft_operator.resources.admission import parse
from graft_operator.resources.meta import Manifest
from graft_operator.resources.v1alpha1 import InferenceService, LoraAdapter
from graft_protocol.desired import Shard
from graft_protocol.reasons import AdapterState, EngineState, Reason
from graft_protocol.status import ModelReport, RevisionReport, RuntimeStatus, ShardReport

NOW = "2026-01-01T00:00:00Z"
DIGEST_1 = "sha256:" + "1" * 64
DIGEST_2 = "sha256:" + "2" * 64


def service_manifest(name: str = "tiny", namespace: str = "default", **spec: Any) -> Manifest:
    """Return a stored InferenceService."""
    return {
        "apiVersion": API_VERSION,
        "kind": "InferenceService",
        "metadata": _metadata(name, namespace),
        "spec": {"model": {"uri": "s3://models/tiny"}, **spec},
    }


def adapter_manifest(
    name: str = "shout",
    namespace: str = "default",
    *,
    uri: str = "s3://adapters/shout",
    digest: str | None = DIGEST_1,
    signature: str | None = None,
    service: str = "tiny",
    created: str = NOW,
    status: Manifest | None = None,
    secret: str | None = None,
    **spec: Any,
) -> Manifest:
    """Return a stored LoraAdapter."""
    source: Manifest = {"uri": uri}
    if digest is not None:
        source["digest"] = digest
    if signature is not None:
        source["signature"] = signature
    if secret is not None:
        source["credentialsSecretRef"] = {"name": secret}
    return {
        "apiVersion": API_VERSION,
        "kind": "LoraAdapter",
        "metadata": _metadata(name, namespace, created),
        "spec": {
            "inferenceServiceRef": {"name": service, "namespace": "default"},
            "source": source,
            **spec,
        },
        "status": status or {},
    }


def make_service(name: str = "tiny", namespace: str = "default", **spec: Any) -> InferenceService:
    """Return a parsed InferenceService."""
    return parse(InferenceService, service_manifest(name, namespace, **spec))


def make_adapter(name: str = "shout", namespace: str = "default", **facts: Any) -> LoraAdapter:
    """Return a parsed LoraAdapter."""
    return parse(LoraAdapter, adapter_manifest(name, namespace, **facts))


def _metadata(name: str, namespace: str, created: str = NOW) -> Manifest:
    return {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{namespace}-{name}",
        "generation": 1,
        "resourceVersion": "1",
        "creationTimestamp": created,
    }


def revision_report(
    revision: str,
    state: AdapterState = AdapterState.AVAILABLE,
    reason: Reason | None = None,
    **facts: Any,
) -> RevisionReport:
    """Return a pod's report on one revision."""
    return RevisionReport(
        revision=revision, state=state, reason=reason or Reason(state.value), **facts
    )


def status_report(
    pod: str = "tiny-0",
    revisions: Sequence[RevisionReport] = (),
    shards: Sequence[Shard] = (),
    **facts: Any,
) -> RuntimeStatus:
    """Return a pod's whole report."""
    return RuntimeStatus(
        version="0",
        pod=pod,
        ready=True,
        model=ModelReport(served_name="tiny", uri="s3://models/tiny"),
        revisions=tuple(revisions),
        shards=tuple(ShardReport(hash=shard.hash) for shard in shards),
        **{"state": EngineState.READY, **facts},
    )


def make_pod(
    *revisions: RevisionReport, name: str = "tiny-0", ready: bool = True, **facts: Any
) -> PodView:
    """Return a pod that reports on these revisions."""
    return PodView(name=name, ready=ready, report=status_report(name, revisions), **facts)
