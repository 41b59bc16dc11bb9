"""More GPUs are asked for than there are: the status says so, and clears when more come."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from e2e.cluster import addons
from e2e.cluster.processes import wait_until
from e2e.stage import Stage, condition, manifest

GPU = "nvidia.com/gpu"


@pytest.fixture
def more_gpus(stage: Stage) -> Iterator[None]:
    """The nodes have as many GPUs as before when the story is over."""
    yield
    addons.pretend_gpus(stage.kubectl)


@pytest.mark.usefixtures("more_gpus")
def test_a_pod_without_a_gpu_waits_and_says_why_while_the_other_serves(stage: Stage) -> None:
    each = addons.num_gpus() // 2 + 1
    client = stage.serve()
    (first,) = stage.pods()

    stage.kubectl.apply(_asking(stage, each, replicas=2))

    wait_until(lambda: _scheduled(stage)[:2] == ("False", "Unschedulable"), "the news", seconds=120)
    assert f"Insufficient {GPU}" in _scheduled(stage)[2]
    assert client.ask("base").is_ok
    assert condition(stage.kubectl.get("gis/base"), "Ready")["status"] == "True"

    addons.pretend_gpus(stage.kubectl, 2 * each)

    ready = "--for=jsonpath={.status.readyReplicas}=2"
    stage.kubectl.run("wait", "gis/base", ready, "--timeout=120s", seconds=130)
    wait_until(lambda: _scheduled(stage)[0] == "True", "the condition to clear", seconds=30)
    wait_until(lambda: first not in stage.pods(), "the pod without GPUs to end", seconds=60)
    assert client.ask("base").is_ok


def _asking(stage: Stage, gpus: int, *, replicas: int) -> str:
    values = {"model": stage.bucket.uri("models/tiny"), "allowed": "Same"}
    document = yaml.safe_load(manifest("base", **values, replicas=str(replicas)))
    document["spec"]["resources"] = {"limits": {GPU: gpus}}
    return str(yaml.safe_dump(document))


def _scheduled(stage: Stage) -> tuple[str, str, str]:
    found = condition(stage.kubectl.get("gis/base"), "PodsScheduled")
    return found.get("status", ""), found.get("reason", ""), found.get("message", "")
