"""Which call suffers what, by the rules of a script."""

from __future__ import annotations

import pytest

from tests.support.proof.script import (
    WRITES,
    Break,
    Breakage,
    Call,
    Kill,
    Refuse,
    Rule,
    Script,
    call_of,
)

APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
GROUP = "/apis/serving.graft.dev/v1alpha1/namespaces/ns"


@pytest.mark.parametrize(
    ("method", "target", "type_", "call"),
    [
        ("GET", "/api/v1/namespaces/ns/pods?limit=5", "", Call("list", "pods", "ns")),
        ("GET", "/api/v1/pods?limit=5&continue=x", "", Call("list", "pods", page=1)),
        ("GET", "/api/v1/namespaces/ns/pods?watch=true", "", Call("watch", "pods", "ns")),
        ("GET", "/api/v1/namespaces/ns/secrets/keys", "", Call("get", "secrets", "ns", "keys")),
        ("GET", "/apis/apps/v1/deployments", "", Call("list", "deployments")),
        ("POST", "/api/v1/namespaces/ns/events?x=y", "", Call("create", "events", "ns")),
        (
            "PATCH",
            f"{GROUP}/loraadapters/a/status",
            APPLY,
            Call("status", "loraadapters", "ns", "a"),
        ),
        ("PATCH", "/api/v1/namespaces/ns/services/a", APPLY, Call("apply", "services", "ns", "a")),
        ("PATCH", "/api/v1/namespaces/ns/pods/a", MERGE, Call("merge", "pods", "ns", "a")),
        ("DELETE", "/api/v1/namespaces/ns/pods/a", "", Call("delete", "pods", "ns", "a")),
        ("GET", "/api", "", Call("list", "")),
    ],
)
def test_a_requests_line_says_what_it_asks(
    method: str, target: str, type_: str, call: Call
) -> None:
    assert call_of(method, target, type_) == call


def test_a_rule_hits_from_its_nth_call_on_as_often_as_it_says() -> None:
    rule = Rule(Kill("before"), WRITES, nth=2, times=2)
    script = Script([rule])
    calls = ["apply", "get", "status", "apply", "apply"]
    faults = [script.fault(Call(verb, "services")) for verb in calls]
    assert [fault is not None for fault in faults] == [False, False, True, True, False]
    assert rule.hits == 2


def test_the_first_rule_that_hits_decides_and_all_count() -> None:
    first = Rule(Refuse(429), plural="pods", times=1)
    second = Rule(Refuse(500), plural="pods", nth=2)
    script = Script([first, second])
    assert script.fault(Call("list", "pods")) == Refuse(429)
    assert script.fault(Call("list", "pods")) == Refuse(500)
    assert script.fault(Call("list", "services")) is None


def test_a_rule_may_be_about_an_event_or_a_later_page_alone() -> None:
    gone = Rule(Break(Breakage.GONE), ("event",), "pods", "a", "DELETED")
    assert gone.matches(Call("event", "pods", name="a", type="DELETED"))
    assert not gone.matches(Call("event", "pods", name="a", type="ADDED"))
    paged = Rule(Refuse(500), ("list",), later_pages=True)
    assert not paged.matches(Call("list", "pods"))
    assert paged.matches(Call("list", "pods", page=1))
