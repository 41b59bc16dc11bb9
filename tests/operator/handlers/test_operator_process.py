"""`graft operator` as a process against a fake API, with pods that report for themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fake_runtime import digest_of
from tests.support.kube_api import KubeApi
from tests.support.kube_manifests import adapter, is_ready, revisions, secret, service, serving
from tests.support.kube_manifests import status as status_of
from tests.support.kube_node import KubeNode
from tests.support.kube_operator import run_operator_process, until


async def test_manifests_become_children_pods_and_a_true_status(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(replicas=2), adapter("shout"), secret()):
        api.create(manifest)
    async with run_operator_process(api, tmp_path) as operator:
        await serving(api, operator, "shout")

        names = {stored["metadata"]["name"] for stored in api.store.select("configmaps")}
        assert {f"tiny-adapters-{index:02d}" for index in range(16)} < names
        assert api.store.find("services", "tiny")
        assert api.store.find("secrets", "tiny-internal")
        assert len(node.pods) == 2
        assert status_of(api, "inferenceservices", "tiny")["url"] == "http://tiny.default.svc:8000"
        shout = status_of(api, "loraadapters", "shout")
        assert shout["currentRevision"]["digest"] == digest_of("s3://adapters/ok")
        assert (shout["readyReplicas"], shout["desiredReplicas"]) == (2, 2)
        assert shout["observedGeneration"] == 1
        for pod in node.pods.values():
            assert pod.runtime is not None
            assert pod.runtime.which("shout") == shout["currentRevision"]["id"]
        events = api.store.select("events")
        told = {(event["involvedObject"]["name"], event["reason"]) for event in events}
        assert ("shout", "Available") in told

        operator.process.terminate()
        assert await operator.ended() == 0
    assert revisions(api, "shout")


async def test_a_watch_that_lives_but_tells_nothing_ends_the_process(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), secret()):
        api.create(manifest)
    paces = ("--audit-seconds", "0.2", "--dead-watch-seconds", "2")
    async with run_operator_process(api, tmp_path, *paces) as operator:
        await serving(api, operator, "shout")
        api.muted.add("loraadapters")
        api.create(adapter("pirate"))
        # A list repairs what the watch owes while the operator makes up its mind.
        await until(operator, lambda: revisions(api, "pirate"))
        assert await operator.ended() == 1
        last = operator.text().splitlines()[-1]
        assert last.startswith("Error: the watch of loraadapters in all namespaces is dead")


@pytest.mark.slow
async def test_a_watch_that_breaks_is_resumed_or_ends_the_process(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), secret()):
        api.create(manifest)
    async with run_operator_process(api, tmp_path) as operator:
        await serving(api, operator, "shout")
        api.stream_errors["loraadapters"] = 410
        await until(operator, lambda: not api.stream_errors)
        api.create(adapter("pirate"))
        await until(operator, lambda: is_ready(api, "pirate"))

        api.stream_errors["loraadapters"] = 500
        assert await operator.ended() == 1
        assert "the watches ended" in operator.text().splitlines()[-1]


async def test_without_access_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    nothing = str(tmp_path / "nothing")
    async with run_operator_process(KubeApi(), tmp_path, "--kubeconfig", nothing) as operator:
        assert await operator.ended() == 1
        assert (
            operator.text() == f"Error: no access to a Kubernetes API: {nothing} does not exist\n"
        )
