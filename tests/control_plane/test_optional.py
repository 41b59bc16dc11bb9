"""Kinds that a cluster may lack: serving does not wait for them; they are used when they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from e2e.cluster.clusters import Cluster
from e2e.cluster.errors import LabError
from graft_operator.settings import ControlSettings
from graft_protocol.naming import LABEL_SERVICE
from tests.control_plane.conftest import Tenant, until
from tests.control_plane.manifests import keys, service
from tests.support.loopback_node import LoopbackNode

Json = dict[str, Any]
OFTEN = ControlSettings(optional_seconds=0.5)
"""Half a minute outside of tests."""


@dataclass(frozen=True)
class Optional:
    """A kind of somebody else's, and what has a service ask for an object of it."""

    group: str
    kind: str
    asked_for: Json

    @property
    def plural(self) -> str:
        return f"{self.kind.lower()}s"

    @property
    def name(self) -> str:
        return f"{self.plural}.{self.group}"

    def definition(self) -> Json:
        """Return a CRD of the kind that takes everything."""
        approval = {"api-approved.kubernetes.io": "unapproved, for a test"}
        schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        version = {"name": "v1", "served": True, "storage": True}
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.name, "annotations": approval},
            "spec": {
                "group": self.group,
                "scope": "Namespaced",
                "names": {
                    "kind": self.kind,
                    "plural": self.plural,
                    "singular": self.kind.lower(),
                    "listKind": f"{self.kind}List",
                },
                "versions": [{**version, "schema": {"openAPIV3Schema": schema}}],
            },
        }


KINDS = (
    Optional("monitoring.coreos.com", "PodMonitor", {"monitoring": {"enabled": True}}),
    Optional(
        "inference.networking.k8s.io",
        "InferencePool",
        {"inferencePool": {"endpointPicker": "picker"}},
    ),
)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.kind)
def kind(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Optional]:
    """A kind that the cluster lacks at first."""
    wanted: Optional = request.param
    if cluster.kubectl.succeeds("get", "crd", wanted.name):
        pytest.skip("the cluster has the kind of its own")
    yield wanted
    cluster.kubectl.run("delete", "crd", wanted.name, "--ignore-not-found")


def selected(tenant: Tenant, kind: Optional) -> str:
    """Return which service's pods the object selects; nothing where there is none."""
    try:
        stored = tenant.find(kind.name, "tiny")
    except LabError:  # the kind is not served
        return ""
    labels = ((stored or {}).get("spec") or {}).get("selector", {}).get("matchLabels", {})
    return str(labels.get(LABEL_SERVICE, ""))


def spoil(tenant: Tenant, kind: Optional) -> None:
    """Edit what is ours, and add what is not."""
    labels = {"matchLabels": {LABEL_SERVICE: "another"}}
    annotations = {"example.com/owner": "team-a"}
    patch = json.dumps({"metadata": {"annotations": annotations}, "spec": {"selector": labels}})
    tenant.kubectl.run("patch", kind.name, "tiny", "--type=merge", "--patch", patch)


def is_put_right(tenant: Tenant, kind: Optional) -> bool:
    return selected(tenant, kind) == "tiny"


@pytest.mark.timeout(300)
def test_a_kind_that_comes_later_is_used_and_what_others_edit_is_put_right(
    tenant: Tenant, node: LoopbackNode, cluster: Cluster, kind: Optional
) -> None:
    del node
    with tenant.operator(control=OFTEN):
        tenant.apply(keys(), service(**kind.asked_for))
        until(lambda: tenant.is_ready("inferenceservice/tiny"), "the service without the kind")
        assert selected(tenant, kind) == ""

        cluster.kubectl.apply(json.dumps(kind.definition()))
        until(lambda: is_put_right(tenant, kind), "the object once there is the kind")
        spoil(tenant, kind)
        until(lambda: is_put_right(tenant, kind), "the edit to be taken back")
    # The next operator has never written the object, and knows it for ours all the same.
    spoil(tenant, kind)
    with tenant.operator(control=OFTEN):
        until(lambda: is_put_right(tenant, kind), "the edit to be taken back by another operator")
        stored = tenant.find(kind.name, "tiny") or {}
        assert stored["metadata"]["annotations"]["example.com/owner"] == "team-a"
        until(lambda: tenant.is_ready("inferenceservice/tiny"), "the service")

        tenant.apply(service())
        until(lambda: tenant.find(kind.name, "tiny") is None, "what nobody asks for to go")
