"""The release changes and changes back; what is served does not notice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.client import Load
from e2e.cluster.clusters import Cluster, Origin
from e2e.cluster.images import Images
from e2e.cluster.paths import Lab
from e2e.cluster.processes import wait_until
from e2e.stage import Stage, condition

HERE = Path(__file__).parent
NEXT_OPERATOR = "localhost/graft-operator:next"
NEXT_RUNTIME = "localhost/graft-runtime:next"


def test_an_upgrade_and_a_rollback_touch_no_model_pod(stage: Stage) -> None:
    client = stage.serve()
    stage.add("shout", "shout")
    before = stage.starts()
    operators = [_operator(stage)]

    with Load(client, "shout", num_users=1) as load:
        stage.release.upgrade("--set", "verbose=true")
        operators.append(_operator(stage))
        _wait_for_answers(load)
        stage.release.rollback()
        operators.append(_operator(stage))
        _wait_for_answers(load)

    assert load.failed == []
    assert len(set(operators)) == 3
    assert stage.starts() == before
    stage.add("poet", "poet")
    assert client.ask("poet").is_ok
    assert stage.starts() == before


def test_a_new_operator_offers_its_template_and_image_and_replaces_nothing(stage: Stage) -> None:
    next_operator, next_runtime = _next_release(stage.release.cluster)
    client = stage.serve(replicas=2)
    stage.add("shout", "shout")
    before, generation = stage.starts(), _generation(stage)
    assert not _offer(stage)

    with Load(client, "shout", num_users=1) as load:
        stage.release.upgrade(*_images(next_operator, next_runtime))
        wait_until(lambda: _offer(stage), "the offer", seconds=60)
        stage.add("poet", "poet")
        _wait_for_answers(load)
    assert load.failed == []
    assert stage.starts() == before
    assert _generation(stage) == generation
    assert condition(stage.kubectl.get("gis/base"), "UpToDate")["status"] == "False"

    approval = {"spec": {"rollout": {"runtimeUpgrade": {"approve": _offer(stage)}}}}
    with Load(client, "shout", num_users=1) as load:
        stage.kubectl.run("patch", "gis/base", "--type=merge", "--patch", json.dumps(approval))
        wait_until(lambda: _are_next(stage, next_runtime), "the new pods", seconds=180)
        _wait_for_answers(load)
    assert load.failed == []
    assert not _offer(stage)
    stage.wait_ready("gis/base", "lora/shout", "lora/poet")
    assert condition(stage.kubectl.get("gis/base"), "UpToDate")["status"] == "True"
    assert not stage.starts().keys() & before.keys()


def _next_release(cluster: Cluster) -> tuple[str, str]:
    """Make the images of a release to come; return the names of operator and runtime."""
    if cluster.origin is not Origin.LAB:
        pytest.skip("makes images of its own, and knows how in the lab only")
    images = Images(Lab())
    images.build(NEXT_OPERATOR, "Dockerfile", {}, HERE / "next_operator")
    images.tag(cluster.runtime_image, NEXT_RUNTIME)
    return NEXT_OPERATOR, NEXT_RUNTIME


def _images(operator: str, runtime: str) -> list[str]:
    flags = []
    for field, image in (("image", operator), ("runtime.image", runtime)):
        repository, _, tag = image.rpartition(":")
        flags += ["--set", f"{field}.repository={repository}", "--set", f"{field}.tag={tag}"]
    return flags


def _offer(stage: Stage) -> str:
    return str(stage.kubectl.get("gis/base")["status"].get("updateAvailable", ""))


def _generation(stage: Stage) -> int:
    return int(stage.kubectl.get("deployment/base")["metadata"]["generation"])


def _are_next(stage: Stage, image: str) -> bool:
    """Whether both pods, and no others, come from the new template and are ready."""
    pods = stage.pods().values()
    return len(pods) == 2 and all(
        pod["metadata"]["annotations"].get("example.com/release") == "next"
        and pod["spec"]["containers"][0]["image"] == image
        and condition(pod, "Ready").get("status") == "True"
        for pod in pods
    )


def _operator(stage: Stage) -> str:
    return str(stage.release.operator_pod()["metadata"]["uid"])


def _wait_for_answers(load: Load) -> None:
    count = len(load.answers)
    wait_until(lambda: len(load.answers) > count + 5, "more answers", seconds=60)
