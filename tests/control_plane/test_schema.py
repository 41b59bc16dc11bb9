"""The API server itself refuses what cannot work, and says why in words that help."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.cluster.errors import LabError
from tests.control_plane.conftest import Tenant
from tests.control_plane.manifests import adapter, service

Json = dict[str, Any]
DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (service(replicas=-1), "spec.replicas"),
        (service(model={"uri": "ftp://somewhere/model"}), "spec.model.uri"),
        (service(unknown=1), 'unknown field "unknown"'),
        (adapter("shout", "not a uri"), "spec.source.uri"),
        (adapter("shout", digest="sha256:0"), 'unknown field "digest"'),
        (adapter("shout", drainTimeoutSeconds=-1), "spec.drainTimeoutSeconds"),
        (adapter("shout", expiresAt="2030-02-31T00:00:00Z"), "spec.expiresAt"),
        (service(runtime={"env": [{"name": "A"}, {"name": "A"}]}), "spec.runtime.env[1]"),
        (
            service(scheduling={"topologySpreadConstraints": [{"topologyKey": "zone"}] * 2}),
            "spec.scheduling.topologySpreadConstraints[1]",
        ),
        (adapter("Shout"), "metadata.name"),
    ],
)
def test_a_spec_that_cannot_work_is_refused_by_the_field(
    tenant: Tenant, manifest: Json, says: str
) -> None:
    with pytest.raises(LabError) as refusal:
        tenant.apply(manifest)
    assert says in str(refusal.value)


def test_the_service_of_an_adapter_cannot_change(tenant: Tenant) -> None:
    tenant.apply(adapter("shout"))
    moved = adapter("shout")
    moved["spec"]["inferenceServiceRef"]["name"] = "other"
    with pytest.raises(LabError) as refusal:
        tenant.apply(moved)
    assert "inferenceServiceRef" in str(refusal.value)


def test_a_digest_must_be_whole(tenant: Tenant) -> None:
    manifest = adapter("shout")
    manifest["spec"]["source"]["digest"] = DIGEST
    tenant.apply(manifest)
    manifest["spec"]["source"]["digest"] = DIGEST[:-1]
    with pytest.raises(LabError) as refusal:
        tenant.apply(manifest)
    assert "spec.source.digest" in str(refusal.value)


def test_a_status_is_no_part_of_what_users_apply(tenant: Tenant) -> None:
    manifest = adapter("shout") | {"status": {"servedName": "claimed"}}
    tenant.apply(manifest)
    assert "servedName" not in tenant.kubectl.get("loraadapter/shout").get("status", {})


@pytest.mark.parametrize("part", ["spec", "status"])
@pytest.mark.parametrize("kind", ["inferenceservice", "loraadapter"])
def test_every_field_is_explained(tenant: Tenant, kind: str, part: str) -> None:
    text = tenant.kubectl.run("explain", f"{kind}.{part}", "--recursive=false")
    fields = text.partition("FIELDS:")[2]
    assert fields.strip()
    assert "<no description>" not in fields


def test_the_scale_subresource_is_the_replicas(tenant: Tenant) -> None:
    tenant.apply(service())
    tenant.kubectl.run("scale", "inferenceservice/tiny", "--replicas=3")
    assert tenant.kubectl.get("inferenceservice/tiny")["spec"]["replicas"] == 3
