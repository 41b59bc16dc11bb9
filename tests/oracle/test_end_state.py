"""Two runs that went the same way end in the same state; what is missing or left over is told."""

from __future__ import annotations

from graft_operator.resources.meta import ObjectKey
from tests.support.proof.end_state import differences, end_state, is_settled
from tests.support.proof.history import Json, Seen


def of_run(namespace: str, uid: str, kind: str = "Service", **fields: Json) -> Seen:
    metadata = {
        "name": "tiny",
        "namespace": namespace,
        "uid": uid,
        "ownerReferences": [{"name": "tiny", "uid": uid}],
        "generation": 1,
    }
    document = {"kind": kind, "metadata": metadata, **fields}
    return Seen(1, ObjectKey(kind, namespace, "tiny"), uid, document, 0.0)


def service(**status: object) -> Seen:
    counts: Json = dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas"), 1)
    told: Json = {
        "observedGeneration": 1,
        "conditions": [{"type": "Ready", "status": "True"}],
        "adapters": {"podsInSync": 1, "ready": 1, "registered": 1},
        **counts,
        **status,
    }
    return of_run("ns", "u", "InferenceService", spec={"replicas": 1}, status=told)


def test_two_runs_differ_in_names_of_their_own_alone() -> None:
    one, two = of_run("one", "uid-1"), of_run("two", "uid-2")
    assert differences(end_state([one]), end_state([two])) == []


def test_a_difference_is_told_by_its_place() -> None:
    one = of_run("ns", "u", spec={"ports": {"port": 80}})
    two = of_run("ns", "u", spec={"ports": {"port": 81}})
    (line,) = differences(end_state([one]), end_state([two]))
    assert line == "Service/tiny.spec.ports.port: wanted 80, found 81"
    assert differences(end_state([one]), {}) == ["missing: Service/tiny"]
    assert differences({}, end_state([one])) == ["left over: Service/tiny"]


def test_all_is_done_when_the_newest_spec_is_served_everywhere() -> None:
    assert is_settled([service()])
    assert not is_settled([service(observedGeneration=0)])
    assert not is_settled([service(readyReplicas=0)])
    assert not is_settled([service(conditions=[])])
