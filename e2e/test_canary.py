"""A new version gets requests step by step, waits for a person, and goes by itself if it fails."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from e2e.buckets import EXAMPLES
from e2e.client import Load
from e2e.cluster.processes import wait_until
from e2e.history import History
from e2e.stage import Stage, condition, edited
from e2e.voices import pirate

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
STEPS = {"rollout": {"steps": [{"weight": 10, "pauseSeconds": 2}, {"weight": 60}]}}
HALF = {"rollout": {"steps": [{"weight": 50}], "minRequests": 5, "maxErrorRatio": 0.1}}
SHARE = ".status.candidateRevision.weight"


def test_a_new_version_grows_step_by_step_until_somebody_promotes_it(stage: Stage) -> None:
    client, kubectl = stage.serve(replicas=2), stage.kubectl
    stage.add("pirate-v1", "pirate")
    before = stage.starts()

    with Load(client, "pirate") as users, History(kubectl, "lora/pirate", SHARE) as shares:
        kubectl.apply(edited(stage.bucket.publish("pirate-v2", "pirate"), spec=STEPS))
        # The first step ends by itself; the second is the last and has no end.
        _wait_for(stage, "Paused")
        wait_until(lambda: "60" in shares.values, "the second step", seconds=30)
        voices = [pirate(answer.text) for answer in users.next_answers(80)]
        assert set(voices) == {"pirate-v1", "pirate-v2"}
        assert 0.3 < voices.count("pirate-v2") / len(voices) < 0.9
        # Whoever says who is asking meets one version, on every pod.
        assert len({client.ask("pirate", user="one").text for _ in range(6)}) == 1
        message = condition(kubectl.get("lora/pirate"), "RolloutProgressing")["message"]
        assert "gets 60 %, step 2 of 2; spec.rollout.promote" in message

        candidate = kubectl.get("lora/pirate")["status"]["candidateRevision"]["id"]
        stage.change("lora/pirate", rollout={"promote": candidate})
        _wait_for(stage, "Available")
        later = {pirate(answer.text) for answer in users.next_answers(20)}

    assert later == {"pirate-v2"}
    assert users.failed == []
    assert [share for share in shares.values if share] == ["10", "60"]
    status = kubectl.get("lora/pirate")["status"]
    assert status["currentRevision"]["id"] == candidate
    assert "candidateRevision" not in status
    assert stage.starts() == before


def test_a_version_that_fails_its_requests_is_taken_out_by_itself(stage: Stage) -> None:
    client, kubectl = stage.serve(), stage.kubectl
    stage.add("pirate-v1", "pirate")
    first = kubectl.get("lora/pirate")["status"]["currentRevision"]
    published = stage.bucket.publish("pirate-v2", "pirate")
    stage.bucket.put("adapters/overflowing", _overflowing("pirate-v2"))
    before = stage.starts()

    with Load(client, "pirate") as users, Load(client, "base", num_users=1) as others:
        uri = stage.bucket.uri("adapters/overflowing")
        kubectl.apply(edited(published, spec=HALF, uri=uri, digest=None))
        _wait_for(stage, "RolledBack")
        later = users.next_answers(20)
        kubectl.apply(edited(published, spec=HALF))
        # Another source is another try, from the first step.
        _wait_for(stage, "Paused")
        assert {answer.is_ok for answer in users.next_answers(20)} == {True}

    # Some requests had to fail for this; they said so, and no others failed.
    assert users.failed
    assert all(answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR for answer in users.failed)
    assert all("not a number" in answer.text for answer in users.failed)
    assert {pirate(answer.text) for answer in later} == {"pirate-v1"}
    assert others.failed == []
    status = kubectl.get("lora/pirate")["status"]
    assert status["currentRevision"]["id"] == first["id"]
    assert condition(kubectl.get("lora/pirate"), "Ready")["status"] == "True"
    assert stage.starts() == before


def test_a_version_that_cannot_be_loaded_never_gets_a_request(stage: Stage) -> None:
    client, kubectl = stage.serve(), stage.kubectl
    stage.add("pirate-v1", "pirate")
    published = stage.bucket.publish("pirate-v2", "pirate")
    wrong = {"digest": "sha256:" + "0" * 64}

    with Load(client, "pirate", num_users=2) as users:
        kubectl.apply(edited(published, spec=HALF, **wrong))
        wait_until(
            lambda: condition(kubectl.get("lora/pirate"), "Loaded")["reason"] == "ChecksumMismatch",
            "the reason",
            seconds=60,
        )
        voices = {pirate(answer.text) for answer in users.next_answers(20)}
        # A request under the adapter's name succeeds, and Ready says just that.
        assert condition(kubectl.get("lora/pirate"), "Ready")["status"] == "True"
        kubectl.apply(edited(published, spec=HALF))
        _wait_for(stage, "Paused")

    assert voices == {"pirate-v1"}
    assert users.failed == []


def _wait_for(stage: Stage, reason: str) -> None:
    """Wait until the rollout of `pirate` says so of the spec that was applied last."""

    def says_so() -> bool:
        thing = stage.kubectl.get("lora/pirate")
        found = condition(thing, "RolloutProgressing")
        generation = thing["metadata"]["generation"]
        return (found.get("reason"), found.get("observedGeneration")) == (reason, generation)

    wait_until(says_so, f"RolloutProgressing {reason}", seconds=60)


def _overflowing(adapter: str) -> dict[str, bytes]:
    """Return an adapter of finite weights with which the model cannot count."""
    folder = EXAMPLES / "adapters" / adapter
    weights: dict[str, Any] = load((folder / WEIGHTS).read_bytes())
    huge = {name: np.full_like(tensor, 1e18) for name, tensor in weights.items()}
    return {CONFIG: (folder / CONFIG).read_bytes(), WEIGHTS: save(huge)}
