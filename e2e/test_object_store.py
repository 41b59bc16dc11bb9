"""The object store goes away and comes back; keys expire and are renewed."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from e2e.cluster import addons
from e2e.cluster.clusters import Cluster
from e2e.cluster.processes import wait_until
from e2e.cluster.tools import Kubectl
from e2e.containers import kill_container
from e2e.stage import Stage, condition, edited, manifest
from e2e.voices import sounds_like


@pytest.fixture
def store(cluster: Cluster) -> Iterator[Kubectl]:
    """The object store's namespace; it runs again when the story ends, however it ends."""
    kubectl = cluster.kubectl.within(addons.STORE_NAMESPACE)
    yield kubectl
    _start(kubectl)


def test_what_was_loaded_is_served_while_the_store_is_down(stage: Stage, store: Kubectl) -> None:
    client = stage.serve()
    _pin_model(stage)
    stage.add("shout", "shout")
    poet = stage.bucket.publish("poet", "poet")
    (uid,) = stage.starts()

    store.run("scale", "deployment/minio", "--replicas=0")
    store.run("wait", "pod", "-l", "app=minio", "--for=delete", "--timeout=60s")
    assert client.ask("base").is_ok
    assert sounds_like("shout", client.ask("shout").text)
    stage.kubectl.apply(poet)
    _wait_for(stage, "poet", "SourceUnavailable")
    # The cache outlives the container and knows what digests name: a crash needs no store.
    kill_container(stage.release.cluster, *stage.pods().values())
    wait_until(lambda: stage.starts() == {uid: 1}, "the restart", seconds=60)
    wait_until(lambda: client.ask("base").is_ok, "an answer", seconds=60)
    assert sounds_like("shout", client.ask("shout").text)

    _start(store)

    stage.wait_ready("loraadapter/poet", "loraadapter/shout", "inferenceservice/base")
    assert client.ask("poet").is_ok


def test_renewed_keys_are_taken_without_a_restart(stage: Stage) -> None:
    client = stage.serve()
    before = stage.starts()
    expired = manifest("object-store", user=addons.STORE_USER, password="expired")
    stage.kubectl.apply(expired.replace("name: object-store", "name: tenant"))
    shout = stage.bucket.publish("shout", "shout")
    stage.kubectl.apply(edited(shout, credentialsSecretRef={"name": "tenant"}))
    _wait_for(stage, "shout", "SourceForbidden")
    assert client.ask("base").is_ok

    renewed = manifest("object-store", user=addons.STORE_USER, password=addons.STORE_PASSWORD)
    stage.kubectl.apply(renewed.replace("name: object-store", "name: tenant"))

    stage.wait_ready("loraadapter/shout")
    assert sounds_like("shout", client.ask("shout").text)
    assert stage.starts() == before


def _pin_model(stage: Stage) -> None:
    """Have the service name the model's bytes, as it found them, and wait for the new pod."""
    (old,) = stage.pods()
    digest = stage.kubectl.get("gis/base")["status"]["resolvedModel"]["digest"]
    patch = json.dumps({"spec": {"model": {"digest": digest}}})
    stage.kubectl.run("patch", "gis/base", "--type=merge", "--patch", patch)
    wait_until(
        lambda: len(stage.pods()) == 1 and old not in stage.pods(), "another pod", seconds=60
    )
    stage.wait_ready(*(f"pod/{name}" for name in stage.pods()), "inferenceservice/base")


def _start(store: Kubectl) -> None:
    store.run("scale", "deployment/minio", "--replicas=1")
    addons.rollout(store, addons.STORE_NAMESPACE, "minio")


def _wait_for(stage: Stage, name: str, reason: str) -> None:
    wait_until(
        lambda: condition(stage.kubectl.get(f"lora/{name}"), "Ready").get("reason") == reason,
        f"Ready=False {reason}",
        seconds=90,
    )
