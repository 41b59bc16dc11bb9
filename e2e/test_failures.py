"""What runs is killed, deleted or away for a while, and what is served goes on being served."""

from __future__ import annotations

from http import HTTPStatus

from e2e.client import Load
from e2e.cluster.processes import wait_until
from e2e.containers import kill_container
from e2e.stage import Stage
from e2e.voices import sounds_like


def test_a_killed_container_comes_back_with_its_adapters(stage: Stage) -> None:
    client = stage.serve()
    stage.add("shout", "shout")
    (uid,) = stage.starts()

    kill_container(stage.release.cluster, *stage.pods().values())

    wait_until(lambda: stage.starts() == {uid: 1}, "the restart", seconds=60)
    stage.wait_ready(*(f"pod/{name}" for name in stage.pods()))
    wait_until(lambda: client.ask("base").is_ok, "an answer", seconds=30)
    assert sounds_like("shout", client.ask("shout").text)
    stage.wait_ready("inferenceservice/base", "loraadapter/shout")


def test_a_pod_that_is_deleted_under_load_costs_no_answer(stage: Stage) -> None:
    client = stage.serve(replicas=2)
    stage.add("shout", "shout")
    first, second = stage.pods()

    with Load(client, "shout") as load:
        wait_until(lambda: len(load.answers) > 10, "answers", seconds=60)
        stage.kubectl.run("delete", "pod", first, "--timeout=60s")
        wait_until(lambda: len(stage.pods()) == 2, "another pod", seconds=60)
        stage.wait_ready(*(f"pod/{name}" for name in stage.pods()))
        count = len(load.answers)
        wait_until(lambda: len(load.answers) > count + 20, "more answers", seconds=60)

    assert load.failed == []
    assert all(sounds_like("shout", answer.text) for answer in load.answers)
    assert second in stage.pods()
    stage.wait_ready("inferenceservice/base", "loraadapter/shout")


def test_serving_goes_on_without_the_operator_which_catches_up_later(stage: Stage) -> None:
    client, kubectl = stage.serve(), stage.kubectl
    stage.add("pirate-v1", "pirate")
    stage.add("shout", "shout")
    (old,) = stage.pods()

    stage.release.scale(0)
    with Load(client, "pirate", num_users=1) as load:
        kubectl.apply(stage.bucket.publish("poet", "poet"))
        kubectl.apply(stage.bucket.publish("pirate-v2", "pirate"))
        kubectl.run("delete", "lora", "shout", "--timeout=30s")
        wait_until(lambda: len(load.answers) > 5, "answers", seconds=60)
    assert load.failed == []

    # A new pod needs no operator either: it comes with what was to be served last.
    kubectl.run("delete", "pod", old, "--timeout=60s")
    wait_until(lambda: len(stage.pods()) == 1, "a pod", seconds=60)
    (new,) = stage.pods()
    stage.wait_ready(f"pod/{new}")
    assert new != old
    wait_until(lambda: client.ask("base").is_ok, "an answer", seconds=30)
    assert sounds_like("pirate-v1", client.ask("pirate").text)
    assert sounds_like("shout", client.ask("shout").text)
    assert client.ask("poet").status == HTTPStatus.NOT_FOUND
    before = stage.starts()

    stage.release.scale(1)

    stage.wait_ready("loraadapter/poet")
    wait_until(lambda: sounds_like("pirate-v2", client.ask("pirate").text), "version 2", seconds=60)
    assert client.ask("shout").status == HTTPStatus.NOT_FOUND
    assert client.ask("poet").is_ok
    stage.wait_ready("inferenceservice/base", "loraadapter/pirate")
    assert stage.starts() == before
