"""Something is deleted while nobody can hear of it: the operator finds out all the same."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from e2e.client import Load
from e2e.cluster import clusters
from e2e.cluster.clusters import Cluster, Origin
from e2e.cluster.paths import Lab
from e2e.cluster.processes import Processes, wait_until
from e2e.containers import paused_container
from e2e.stage import Stage
from e2e.voices import pirate


def test_an_adapter_that_is_deleted_in_a_watch_gap_stops_being_served(stage: Stage) -> None:
    client, release = stage.serve(), stage.release
    stage.add("shout", "shout")
    stage.add("pirate-v1", "pirate")
    before = stage.starts()

    with Load(client, "pirate", num_users=1) as load:
        with paused_container(release.cluster, release.operator_pod()):
            stage.kubectl.run("delete", "lora", "shout", "--timeout=30s")
            # The new API server knows no history: no watch will ever tell of the deletion.
            restart_api_server(release.cluster)
        wait_until(
            lambda: client.ask("shout").status == HTTPStatus.NOT_FOUND, "the end", seconds=120
        )

    assert load.failed == []
    assert {pirate(answer.text) for answer in load.answers} == {"pirate-v1"}
    assert client.models() >= {"base", "pirate"}
    assert "shout" not in client.models()
    stage.add("cheerful", "cheerful")
    assert client.ask("cheerful").is_ok
    assert stage.starts() == before


def restart_api_server(cluster: Cluster) -> None:
    """End the API server and start another over the same data."""
    if cluster.origin is not Origin.LAB:
        pytest.skip("restarts the API server, and only the lab's is ours to restart")
    Processes(Lab()).stop("apiserver")
    clusters.up()
