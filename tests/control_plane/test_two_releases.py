"""Two releases of one name side by side: neither touches, sees or waits for what is the other's."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from tests.control_plane.conftest import Json, Tenant, until
from tests.control_plane.manifests import adapter, keys, service
from tests.support.loopback_node import LoopbackNode

LOOKS = 5
OURS = ("inferenceservice", "loraadapter", "deployment", "configmap", "secret", "service")


def installed_objects(tenant: Tenant) -> Iterator[tuple[str, str, str]]:
    """Yield kind, namespace and name of what a release consists of, its CRDs aside."""
    where = ("--namespace", tenant.operator_namespace)
    for document in yaml.safe_load_all(tenant.cluster.helm.run("get", "manifest", "graft", *where)):
        if document and document["kind"] != "CustomResourceDefinition":
            metadata = document["metadata"]
            yield document["kind"], metadata.get("namespace", ""), metadata["name"]


def versions(tenant: Tenant) -> dict[str, str]:
    """Return the resource version of every object in a namespace that a release looks after."""
    listed: Json = tenant.kubectl.get(",".join(OURS))
    return {
        f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for item in listed["items"]
    }


def at_rest(tenant: Tenant) -> dict[str, str]:
    """Return the versions once several looks in a row have found the same."""
    seen: list[dict[str, str]] = []

    def is_still() -> bool:
        seen.append(versions(tenant))
        return len(seen) > LOOKS and all(each == seen[-1] for each in seen[-LOOKS:])

    until(is_still, "nothing changing any more")
    return seen[-1]


def serve(tenant: Tenant) -> None:
    tenant.apply(keys(), service(), adapter("shout"))
    until(lambda: tenant.is_ready("loraadapter/shout"), "the adapter Ready")
    until(lambda: tenant.is_ready("inferenceservice/tiny"), "the service Ready")


def test_two_releases_share_no_object_but_the_definitions(
    tenant: Tenant, neighbour: Tenant
) -> None:
    one, other = set(installed_objects(tenant)), set(installed_objects(neighbour))
    assert one
    assert one & other == set()


def test_an_account_may_do_nothing_where_the_other_release_serves(
    tenant: Tenant, neighbour: Tenant
) -> None:
    for verb, resource in (("list", "loraadapters"), ("patch", "deployments"), ("get", "secrets")):
        asked = ("auth", "can-i", verb, resource, f"--as={tenant.account}")
        assert not neighbour.kubectl.succeeds(*asked)


def test_what_one_release_does_leaves_every_object_of_the_other_as_it_was(
    tenant: Tenant, neighbour: Tenant, node: LoopbackNode
) -> None:
    with tenant.operator(), neighbour.operator():
        serve(tenant)
        serve(neighbour)
        before = at_rest(neighbour)

        tenant.apply(adapter("shout", "s3://adapters/ok-2"), adapter("pirate"))
        until(lambda: tenant.is_ready("loraadapter/pirate"), "another adapter Ready")
        tenant.kubectl.run("delete", "loraadapter/shout", "inferenceservice/tiny")
        until(lambda: tenant.find("deployment/tiny") is None, "the children gone")

        assert versions(neighbour) == before
        assert neighbour.is_ready("loraadapter/shout")
    assert {key.namespace for key in node.pods} >= {neighbour.namespace}
