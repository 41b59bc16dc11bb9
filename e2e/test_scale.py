"""More pods, and fewer again, while requests run."""

from __future__ import annotations

from e2e.buckets import EXAMPLES
from e2e.client import Load
from e2e.cluster.processes import wait_until
from e2e.stage import Stage, condition, edited
from e2e.voices import sounds_like

STARTED = "--for=jsonpath={.status.containerStatuses[0].started}=true"
REQUIRED = {"requiredForReadiness": True}


def test_scaling_under_load_costs_no_answer(stage: Stage) -> None:
    client = stage.serve()
    stage.add("shout", "shout")

    with Load(client, "shout", num_users=2) as load:
        _scale(stage, 3)
        _wait_until_ready(stage, 3)
        count = len(load.answers)
        wait_until(lambda: len(load.answers) > count + 20, "answers of all", seconds=60)
        _scale(stage, 1)
        wait_until(lambda: len(stage.pods()) == 1, "two pods to end", seconds=90)
        count = len(load.answers)
        wait_until(lambda: len(load.answers) > count + 10, "answers of the last", seconds=60)

    assert load.failed == []
    assert all(sounds_like("shout", answer.text) for answer in load.answers)
    assert set(stage.starts().values()) == {0}
    stage.wait_ready("inferenceservice/base", "loraadapter/shout")
    status = stage.kubectl.get("lora/shout")["status"]
    assert status["readyReplicas"] == status["desiredReplicas"] == 1


def test_no_pod_is_ready_before_the_adapters_that_it_requires(stage: Stage) -> None:
    client = stage.serve()
    required = edited(stage.bucket.publish("shout", "shout"), spec=REQUIRED)
    stage.kubectl.apply(required)
    stage.wait_ready("loraadapter/shout")
    (first,) = stage.pods()
    stage.bucket.remove("adapters/shout")

    _scale(stage, 2)
    wait_until(lambda: len(stage.pods()) == 2, "another pod", seconds=30)
    (second,) = stage.pods().keys() - {first}
    stage.kubectl.run("wait", f"pod/{second}", STARTED, "--timeout=90s")
    for _ in range(20):
        assert sounds_like("shout", client.ask("shout").text)
        assert second not in _ready_pods(stage)
    stage.bucket.upload(EXAMPLES / "adapters" / "shout", "adapters/shout")

    stage.wait_ready(f"pod/{second}")
    _wait_until_ready(stage, 2)
    assert sounds_like("shout", client.ask("shout").text)


def _scale(stage: Stage, replicas: int) -> None:
    stage.kubectl.run("scale", "inferenceservice/base", f"--replicas={replicas}")


def _wait_until_ready(stage: Stage, replicas: int) -> None:
    ready = f"--for=jsonpath={{.status.readyReplicas}}={replicas}"
    stage.kubectl.run("wait", "inferenceservice/base", ready, "--timeout=120s", seconds=130)


def _ready_pods(stage: Stage) -> set[str]:
    pods = stage.pods().items()
    return {name for name, pod in pods if condition(pod, "Ready").get("status") == "True"}
