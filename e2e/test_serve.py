"""A base model from object storage: apply a manifest, wait, ask."""

from __future__ import annotations

from e2e.buckets import EXAMPLES
from e2e.cluster.processes import wait_until
from e2e.stage import Stage, condition


def test_a_model_in_a_bucket_becomes_a_service_that_answers(stage: Stage) -> None:
    client = stage.serve()

    answer = client.ask("base", max_tokens=40)
    streamed = "".join(client.stream("base", max_tokens=40))

    assert answer.is_ok
    assert len(answer.text.split()) > 10
    assert streamed == answer.text
    assert client.models() == {"base"}


def test_the_status_tells_where_it_is_and_what_it_serves(stage: Stage) -> None:
    stage.serve()
    kubectl = stage.kubectl

    status = kubectl.get("inferenceservice/base")["status"]

    assert status["url"] == f"http://base.{kubectl.namespace}.svc:8000"
    assert status["readyReplicas"] == status["replicas"] == 1
    assert status["resolvedModel"]["digest"].startswith("sha256:")
    head, row = kubectl.run("get", "gis", "base").splitlines()
    columns = dict(zip(head.split(), row.split(), strict=True))
    assert columns["READY"] == "True"
    assert columns["REPLICAS"] == columns["DESIRED"] == "1"


def test_a_model_that_is_not_there_is_told_and_served_as_soon_as_it_is(stage: Stage) -> None:
    kubectl = stage.kubectl
    stage.apply(model="models/later")

    wait_until(
        lambda: condition(kubectl.get("gis/base"), "Ready").get("reason") == "SourceNotFound",
        "a condition that says what is missing",
        seconds=60,
    )
    stage.bucket.upload(EXAMPLES / "models" / "tiny", "models/later")

    stage.wait_ready("inferenceservice/base")
    assert stage.client().ask("base").is_ok
