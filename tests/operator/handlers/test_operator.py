"""The operator in a thread against a fake API: what changes, what stays, what failures do."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from graft_operator.settings import OperatorSettings
from graft_protocol.naming import ANNOTATION_DESIRED
from tests.support.fake_runtime import digest_of
from tests.support.kube_api import Fault, KubeApi
from tests.support.kube_manifests import (
    adapter,
    is_ready,
    revisions,
    secret,
    service,
    serving,
    shard_name,
)
from tests.support.kube_manifests import status as status_of
from tests.support.kube_node import KubeNode
from tests.support.kube_operator import condition, run_operator_thread, until

AUDITED = OperatorSettings(audit_seconds=0.1)
NUM_WATCHES = 7


def lists(api: KubeApi, code: int = 200) -> int:
    return sum(call.verb == "list" and call.code == code for call in api.calls)


def writes(api: KubeApi) -> list[str]:
    return [f"{call.verb} {call.plural}/{call.name}" for call in api.calls if call.is_write]


async def test_a_changed_adapter_reaches_pods_without_touching_the_deployment(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path) as operator:
        await serving(api, operator, "shout")
        before = api.store.find("deployments", "tiny")
        [pod] = node.pods.values()
        nudged = pod.annotations[ANNOTATION_DESIRED]

        api.change("loraadapters", "shout", {"spec": {"source": {"uri": "s3://adapters/ok2"}}})
        digest = digest_of("s3://adapters/ok2")
        wanted = f"default/shout@{digest.removeprefix('sha256:')[:12]}"
        await until(operator, lambda: revisions(api, "shout") == [wanted])

        assert pod.runtime is not None
        assert pod.runtime.which("shout") == wanted
        assert status_of(api, "loraadapters", "shout")["currentRevision"]["digest"] == digest
        assert api.store.find("deployments", "tiny") == before
        assert pod.annotations[ANNOTATION_DESIRED] != nudged


async def test_a_spec_that_changes_while_its_status_is_written_is_not_missed(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), secret()):
        api.create(manifest)

    def change(size: int) -> None:
        api.change("inferenceservices", "tiny", {"spec": {"engine": {"maxRunning": size}}})

    def configs() -> int:
        names = [stored["metadata"]["name"] for stored in api.store.select("configmaps")]
        return sum(name.startswith("tiny-runtime-") for name in names)

    async with run_operator_thread(api, tmp_path) as operator:
        await serving(api, operator, "shout")
        # The answer to the status write shows the second change before the watch does.
        api.meanwhile["patch", "inferenceservices", "status"] = lambda: change(2)
        change(1)
        await until(operator, lambda: configs() == 3, deadline=20.0)


async def test_a_deleted_adapter_leaves_every_pod(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), adapter("pirate"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path) as operator:
        await serving(api, operator, "shout", "pirate")
        [pod] = node.pods.values()
        runtime = pod.runtime
        assert runtime is not None

        api.delete("loraadapters", "shout")

        await until(operator, lambda: not runtime.which("shout"))
        assert revisions(api, "shout") == []
        assert runtime.which("pirate")


async def test_an_idle_operator_writes_nothing(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path, AUDITED) as operator:
        await serving(api, operator, "shout")
        api.calls.clear()
        await until(operator, lambda: lists(api) > 3 * NUM_WATCHES)
        assert writes(api) == []


async def test_an_operator_that_comes_back_changes_nothing(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path) as operator:
        await serving(api, operator, "shout")
    api.calls.clear()
    async with run_operator_thread(api, tmp_path, AUDITED) as operator:
        await until(operator, lambda: lists(api) > 5 * NUM_WATCHES)
    assert writes(api) == []
    assert len(node.pods) == 1


async def test_what_others_change_or_remove_is_put_right(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path) as operator:
        await serving(api, operator, "shout")
        found = api.store.find("services", "tiny")
        assert found is not None

        api.change("services", "tiny", {"spec": {"ports": [{"port": 1}]}})
        api.delete("configmaps", shard_name("shout"))

        await until(operator, lambda: len(revisions(api, "shout")) == 1)
        await until(
            operator,
            lambda: (api.store.find("services", "tiny") or {})["spec"] == found["spec"],
        )


async def test_lists_that_fail_remove_nothing(api: KubeApi, node: KubeNode, tmp_path: Path) -> None:
    for manifest in (service(), adapter("shout"), adapter("pirate"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path, AUDITED) as operator:
        await serving(api, operator, "shout", "pirate")
        api.faults.append(Fault("list", "*", 500))
        await until(operator, lambda: lists(api, 500) > 2 * NUM_WATCHES)

        api.create(adapter("plain"))

        await until(operator, lambda: is_ready(api, "plain"))
        for name in ("shout", "pirate", "plain"):
            assert len(revisions(api, name)) == 1


async def test_a_watch_begins_though_the_state_behind_every_second_page_is_gone(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), adapter("pirate"), secret()):
        api.create(manifest)
    api.faults.append(Fault("list", "*", 410, only_later_pages=True))
    async with run_operator_thread(api, tmp_path, OperatorSettings(page_size=1)) as operator:
        await serving(api, operator, "shout", "pirate")
        # Long before the next audit: it is the watch that has to tell.
        api.create(adapter("plain"))
        await until(operator, lambda: is_ready(api, "plain"))


async def test_a_start_while_lists_fail_reconciles_nothing_until_they_work(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path) as operator:
        await serving(api, operator, "shout")
    fault = Fault("list", "loraadapters", 503)
    api.faults.append(fault)
    api.calls.clear()
    async with (
        run_operator_thread(api, tmp_path) as operator,
        httpx.AsyncClient(trust_env=False, base_url=operator.health_url) as http,
    ):
        await until(operator, lambda: lists(api, 503) > 1)
        assert (await http.get("/livez")).status_code == 200
        assert (await http.get("/readyz")).status_code == 503
        fault.times = 0
        await until(operator, lambda: lists(api) > NUM_WATCHES)
        api.create(adapter("pirate"))
        await until(operator, lambda: is_ready(api, "pirate"))
        assert (await http.get("/readyz")).status_code == 200
    assert len(revisions(api, "shout")) == 1


async def test_metrics_tell_what_the_operator_does(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path) as operator:
        await serving(api, operator, "shout")
        async with httpx.AsyncClient(trust_env=False) as http:
            page = (await http.get(f"{operator.health_url}/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    calls = 'graft_operator_api_calls_total{code="200",kind="ConfigMap",verb="apply"}'
    assert float(values[calls]) >= 17
    done = 'graft_operator_reconcile_seconds_count{kind="LoraAdapter",outcome="ok"}'
    assert float(values[done]) >= 1
    assert float(values["graft_operator_adapter_ready_seconds_count"]) == 1
    assert float(values["graft_operator_pods"]) == 1
    assert float(values["graft_operator_pods_out_of_sync"]) == 0
    assert "graft_operator_queue_oldest_seconds" in values


async def test_new_credentials_are_found_when_the_old_ones_expire(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path) as operator:
        await serving(api, operator, "shout")
        api.token = "second-token"
        api.kubeconfig(tmp_path)
        api.create(adapter("pirate"))
        await until(operator, lambda: is_ready(api, "pirate"))


async def test_only_the_given_namespaces_are_served(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), secret(), service(namespace="other")):
        api.create(manifest)
    one = OperatorSettings(namespaces=("default",))
    async with run_operator_thread(api, tmp_path, one) as operator:
        await serving(api, operator, "shout")
    assert api.store.select("configmaps", "other") == []


@pytest.mark.slow
async def test_a_thousand_adapters_do_not_hold_up_news(api: KubeApi, tmp_path: Path) -> None:
    for index in range(1000):
        api.create(adapter(f"a{index:03d}"))

    def is_told(name: str) -> bool:
        accepted = condition(api.store.find("loraadapters", name), "Accepted")
        return accepted == ("False", "TargetNotFound")

    async with (
        run_operator_thread(api, tmp_path) as operator,
        httpx.AsyncClient(trust_env=False, base_url=operator.health_url) as http,
    ):
        await until(operator, lambda: is_told("a000"))
        api.create(adapter("late"))
        # Shorter than the audit's pause: it is the watch that has to tell.
        await until(operator, lambda: is_told("late"), deadline=25.0)
        page = (await http.get("/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert float(values['graft_operator_watch_events_total{kind="LoraAdapter"}']) > 1000
    assert 'graft_operator_audit_repairs_total{kind="LoraAdapter"}' not in values
