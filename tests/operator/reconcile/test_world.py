"""What a Pod object tells of its pod."""

from typing import Any

from graft_operator.reconcile.world import pod_view


def pod_that_waits(reason: str, message: str, **container: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {
        "metadata": {"name": "a-0"},
        "spec": {"containers": []},
        "status": {"containerStatuses": [{"state": state, **container}]},
    }


def test_a_pod_that_crashes_is_told_with_what_it_said_last() -> None:
    log = '{"message": "serving"}\nError: CacheFull: the disk cache /c cannot be written\n'
    ended = {"terminated": {"exitCode": 1, "message": log}}
    pod = pod_that_waits("CrashLoopBackOff", "back-off 10s restarting", lastState=ended)
    trouble = pod_view(pod, None).trouble
    assert trouble == "CrashLoopBackOff: Error: CacheFull: the disk cache /c cannot be written"


def test_without_last_words_the_cluster_says_why_a_pod_waits() -> None:
    killed = {"terminated": {"exitCode": 137}}
    states: list[dict[str, Any]] = [{}, {"lastState": {}}, {"lastState": killed}]
    for last_state in states:
        pod = pod_that_waits("CrashLoopBackOff", "back-off 10s restarting", **last_state)
        assert pod_view(pod, None).trouble == "CrashLoopBackOff: back-off 10s restarting"


def test_a_pod_that_is_only_being_made_is_in_no_trouble() -> None:
    assert pod_view(pod_that_waits("ContainerCreating", ""), None).trouble == ""
