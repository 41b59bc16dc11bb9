"""What is going is let go: nothing is made for it any more, and nobody insists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from graft_operator.resources.meta import uid_of
from tests.control_plane.conftest import GOING, until
from tests.control_plane.faults.conftest import Stand
from tests.control_plane.faults.scenarios import serve
from tests.control_plane.manifests import adapter, service
from tests.support.kube_manifests import API_VERSION
from tests.support.proof.history import Json, Seen, label, status_of
from tests.support.proof.script import Refuse, Rule, Skip

ROLE = "graft-operator"
HOLD = "example.com/hold"
AUDITS = 30
REFUSED = 8
"""Tries in so many audits: after 0.5 s, 1 s, 2 s and so on."""
IN_FLIGHT = 3
"""Writes that may be under way when the operator hears of an end."""


def serve_and_rest(stand: Stand) -> None:
    stand.start()
    serve(stand)
    stand.rest()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_down", [False, True], ids=["running", "starting"])
def test_nothing_is_made_for_a_service_that_waits_for_its_children_to_go(
    stand: Stand, is_down: bool
) -> None:
    serve_and_rest(stand)
    stand.admin.apply(held(stand))
    if is_down:
        stand.end()
    before = len(stand.proxy.writes)
    stand.admin.ask_to_delete("InferenceService", "tiny")
    until(lambda: not children(stand), "the children to go")
    if is_down:
        stand.start()
    stand.admin.apply(service(replicas=2), adapter("late"))
    names, said = ("shout", "pirate", "late"), {"TargetNotFound"}
    stand.until(lambda: {accepted(stand, name) for name in names} == said, "adapters to say so")
    stand.rest()
    assert made(stand, before) == []
    assert children(stand) == []

    stand.admin.merge("ConfigMap", "held", {"metadata": {"finalizers": None}})
    stand.until(lambda: stand.find("InferenceService", "tiny") is None, "the service to go")
    stand.rest()
    assert made(stand, before) == []
    assert stand.news() == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_told", [True, False], ids=["told", "not told"])
def test_nobody_insists_in_a_namespace_that_is_going(stand: Stand, is_told: bool) -> None:
    serve_and_rest(stand)
    if not is_told:
        # The operator goes on wanting what it sees going: it knows of the service, and only of it.
        blind = Rule(Skip(), ("event",), "inferenceservices")
        stand.proxy.play(blind, Rule(Refuse(500), ("list",), "inferenceservices"))
    with rights_that_stay(stand):
        before = len(stand.proxy.writes)
        stand.tenant.cluster.kubectl.run("delete", "namespace", stand.namespace, *GOING)
        stand.until(lambda: not (children(stand) or own(stand)), "everything to go")
        late = len(stand.proxy.writes)
        stand.audited(stand.proxy.counts["list pods"] + AUDITS)
        assert not [write for write in stand.proxy.writes[before:] if write.code == 201]
        assert len(made(stand, late)) <= (IN_FLIGHT if is_told else REFUSED)
    stand.until(lambda: stand.find("ConfigMap", "kube-root-ca.crt") is None, "the namespace")


def held(stand: Stand) -> Json:
    """Return something that the service owns, that is not ours, and that does not go."""
    found = stand.find("InferenceService", "tiny") or {}
    owner = {
        "apiVersion": API_VERSION,
        "kind": "InferenceService",
        "name": "tiny",
        "uid": uid_of(found),
        "blockOwnerDeletion": True,
    }
    metadata = {"name": "held", "finalizers": [HOLD], "ownerReferences": [owner]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


@contextmanager
def rights_that_stay(stand: Stand) -> Iterator[None]:
    """Keep the operator's rights in a namespace that is going, and with them the namespace."""
    kubectl = stand.tenant.kubectl

    def hold(finalizers: list[str] | None) -> None:
        patch = json.dumps({"metadata": {"finalizers": finalizers}})
        for kind in ("role", "rolebinding"):
            kubectl.run("patch", kind, ROLE, "--type=merge", "--patch", patch)

    hold([HOLD])
    try:
        yield
    finally:
        hold(None)


def children(stand: Stand) -> list[Seen]:
    managed = "app.kubernetes.io/managed-by"
    return [one for one in stand.objects() if label(one.object, managed) == "graft"]


def own(stand: Stand) -> list[Seen]:
    return [one for one in stand.objects() if one.key.kind in ("InferenceService", "LoraAdapter")]


def made(stand: Stand, since: int) -> list[str]:
    """Return what the operator tried to make or to change, but for statuses."""
    return [str(w.call) for w in stand.proxy.writes[since:] if w.call.verb == "apply"]


def accepted(stand: Stand, name: str) -> str:
    conditions = status_of(stand.find("LoraAdapter", name) or {}).get("conditions", ())
    return next((str(one["reason"]) for one in conditions if one["type"] == "Accepted"), "")
