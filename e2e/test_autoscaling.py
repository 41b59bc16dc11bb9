"""The number of pods follows the requests, through Prometheus, its adapter and an autoscaler."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from e2e.client import Load
from e2e.cluster.clusters import Cluster
from e2e.cluster.processes import wait_until
from e2e.conftest import MakeNamespace
from e2e.custom_metrics import custom_metrics, per_pod
from e2e.history import History
from e2e.stage import Stage, condition, edited
from e2e.voices import sounds_like

METRICS = ("graft_requests", "graft_kv_cache_usage_percent")
SCALING = {
    "minReplicas": 1,
    "maxReplicas": 3,
    "targetRequests": 1,
    "targetKvUsagePercent": 90,
    # A rush that has ended has ended: nobody wants to wait for five minutes here.
    "scaleDownSeconds": 20,
}
REQUIRED = {"requiredForReadiness": True}
RUSH = 6
"""Users who ask at the same time, beside the one who always does."""
LONG_TOKENS = 400
"""So long a request is, that most of the rush is under way whenever somebody looks."""


@pytest.fixture
def metrics(images: Cluster, make_namespace: MakeNamespace) -> Iterator[None]:
    """The custom metrics API, which this story alone needs."""
    with custom_metrics(images, make_namespace("metrics")):
        yield


@pytest.mark.usefixtures("metrics")
def test_pods_follow_the_requests_and_never_dip_when_their_owner_changes(stage: Stage) -> None:
    client, kubectl = stage.serve(), stage.kubectl
    kubectl.apply(edited(stage.bucket.publish("shout", "shout"), spec=REQUIRED))
    stage.wait_ready("lora/shout")
    (first,) = stage.pods()
    for metric in METRICS:
        wait_until(lambda metric=metric: first in per_pod(kubectl, metric), metric, seconds=30)  # type: ignore[misc]  # bound now

    with (
        History(kubectl, "deployment/base", ".spec.replicas") as replicas,
        Load(client, "shout", num_users=1) as steady,
    ):
        with Load(client, "shout", RUSH, max_tokens=LONG_TOKENS, ignore_eos=True) as rush:
            stage.change("gis/base", autoscaling=SCALING)
            _wait_until_ready(stage, 3)
            rush.next_answers(RUSH)
            for each in ("AbleToScale", "ScalingActive"):
                assert condition(kubectl.get("hpa/base"), each)["status"] == "True"
            crowd = set(stage.pods())

            # From the autoscaler back to the spec and to the autoscaler again.
            stage.change("gis/base", autoscaling=None, replicas=3)
            kubectl.run("wait", "hpa/base", "--for=delete", "--timeout=30s")
            stage.change("gis/base", autoscaling=SCALING)
            kubectl.run("wait", "hpa/base", "--for=create", "--timeout=30s")
            rush.next_answers(RUSH)
            assert set(stage.pods()) == crowd
            assert first in crowd

        wait_until(lambda: len(stage.pods()) == 1, "the others to end", seconds=90)
        steady.next_answers(10)

    # Up, and down again; nothing in between, whoever owned the number.
    numbers = [int(value) for value in replicas.values]
    peak = numbers.index(3)
    assert numbers[0] == numbers[-1] == 1
    assert all(less < more for less, more in pairwise(numbers[: peak + 1]))
    assert all(more > less for more, less in pairwise(numbers[peak:]))
    assert steady.failed == rush.failed == []
    # No pod took a request before it had the adapter.
    assert all(sounds_like("shout", answer.text) for answer in steady.answers)
    assert set(stage.starts().values()) == {0}
    stage.wait_ready("gis/base", "lora/shout")


def _wait_until_ready(stage: Stage, replicas: int) -> None:
    ready = f"--for=jsonpath={{.status.readyReplicas}}={replicas}"
    stage.kubectl.run("wait", "gis/base", ready, "--timeout=90s")
