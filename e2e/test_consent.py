"""A service takes its consent back while a tenant's adapter serves, and gives it again later."""

from __future__ import annotations

from http import HTTPStatus

from e2e.client import Load
from e2e.cluster.processes import wait_until
from e2e.cluster.tools import Kubectl
from e2e.conftest import MakeNamespace
from e2e.stage import Stage, condition
from e2e.tenants import add_tenants, apply_adapter, consent
from e2e.voices import pirate, sounds_like

LONG_TOKENS = 400


def test_consent_that_is_withdrawn_ends_one_tenants_adapter_and_nobody_elses(
    stage: Stage, make_namespace: MakeNamespace
) -> None:
    client = stage.serve()
    leaving, staying = add_tenants(stage, make_namespace, "leaving", "staying")
    _allow(stage, leaving, staying)
    stage.add("cheerful", "cheerful")
    for tenant in (leaving, staying):
        consent(stage, tenant)
    theirs = apply_adapter(stage, leaving, "pirate-v1")
    others = apply_adapter(stage, staying, "shout")
    for tenant in (leaving, staying):
        tenant.run("wait", "lora", "--all", "--for=condition=Ready", "--timeout=60s")
    served = leaving.get("lora/pirate-v1")["status"]["currentRevision"]["id"]
    before = stage.starts()
    long = client.stream(theirs, max_tokens=LONG_TOKENS, ignore_eos=True)
    running = [next(long)]

    with (
        Load(client, theirs, num_users=1) as users,
        Load(client, others, num_users=1) as neighbours,
        Load(client, "cheerful", num_users=1) as own,
    ):
        users.next_answers(2)
        _allow(stage, staying)
        _wait_for(leaving, "Accepted", "False", "RefNotPermitted")
        wait_until(lambda: users.answers[-1].status == HTTPStatus.NOT_FOUND, "the end", seconds=30)
        closed = users.next_answers(5)
        _check_what_is_told(stage, leaving, served)
        # What had begun comes to its end with the weights it began with.
        running += long
        _allow(stage, leaving, staying)
        leaving.run("wait", "lora", "--all", "--for=condition=Ready", "--timeout=60s")
        reopened = users.next_answers(3)

    assert {answer.status for answer in closed} == {HTTPStatus.NOT_FOUND}
    assert pirate("".join(running)) == "pirate-v1"
    assert {pirate(answer.text) for answer in reopened} == {"pirate-v1"}
    # Nothing was cut off; who asks while it is being loaded again is told to come back.
    others_failed = [answer for answer in users.failed if answer.status != HTTPStatus.NOT_FOUND]
    assert all("is being loaded" in answer.text for answer in others_failed), others_failed
    assert neighbours.failed == own.failed == []
    assert all(sounds_like("shout", answer.text) for answer in neighbours.answers)
    assert stage.starts() == before


def _check_what_is_told(stage: Stage, tenant: Kubectl, served: str) -> None:
    """The tenant learns why, and neither it nor the service is in trouble for it."""
    thing = tenant.get("lora/pirate-v1")
    accepted, ready = (condition(thing, kind) for kind in ("Accepted", "Ready"))
    assert (ready["status"], ready["reason"]) == ("False", "RefNotPermitted")
    assert f"takes no adapters from namespace {tenant.namespace}" in accepted["message"]
    assert "spec.adapters.allowedNamespaces" in accepted["message"]
    # What it served is remembered, for the day on which it may again.
    assert thing["status"]["currentRevision"]["id"] == served
    assert condition(stage.kubectl.get("gis/base"), "Ready")["status"] == "True"
    # The tenant's keys are no business of the pods any more.
    held = stage.kubectl.run("get", "secrets", "--output", "jsonpath={.items[*].data}")
    assert tenant.namespace not in held


def _allow(stage: Stage, *tenants: Kubectl) -> None:
    names = [tenant.namespace for tenant in tenants]
    allowed = {"from": "Listed", "names": names}
    stage.change("gis/base", adapters={"allowedNamespaces": allowed})


def _wait_for(tenant: Kubectl, kind: str, status: str, reason: str) -> None:
    def says_so() -> bool:
        (adapter,) = tenant.get("loraadapters")["items"]
        found = condition(adapter, kind)
        return (found.get("status"), found.get("reason")) == (status, reason)

    wait_until(says_so, f"{kind}={status} {reason}", seconds=60)
