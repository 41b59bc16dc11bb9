"""`KubernetesCluster` against a fake API: the port's promises, and errors in our own words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from graft_operator.cluster.kubernetes import KubernetesCluster
from graft_operator.cluster.kubernetes_access import Access
from graft_operator.cluster.kubernetes_client import Call, KubernetesClient
from graft_operator.cluster.kubernetes_kinds import kind_named
from graft_operator.errors import (
    ClusterError,
    ClusterUnreachableError,
    ConflictError,
    ForbiddenError,
    InvalidObjectError,
    NameTakenError,
    NotFoundError,
    RefusedError,
)
from graft_operator.resources.meta import ObjectKey, uid_of
from graft_operator.settings import OperatorSettings
from graft_protocol.naming import ANNOTATION_DESIRED, LABEL_MANAGED_BY
from tests.support.kube_api import Fault, KubeApi, kube_api
from tests.support.kube_store import Json, Place

SHOUT = ObjectKey("LoraAdapter", "default", "shout")


def config(name: str, **data: str) -> Json:
    labels = {LABEL_MANAGED_BY: "graft"}
    metadata = {"name": name, "namespace": "default", "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def lora(name: str) -> Json:
    kind = {"apiVersion": "serving.graft.dev/v1alpha1", "kind": "LoraAdapter"}
    return {**kind, "metadata": {"name": name, "namespace": "default"}, "spec": {"a": 1}}


class Known:
    """A cluster under test, and the calls it made."""

    def __init__(self, api: KubeApi, folder: Path, settings: OperatorSettings) -> None:
        self.api = api
        self.calls: list[Call] = []
        access = Access(api.kubeconfig(folder), None)
        client = KubernetesClient(
            access, settings.request_timeout_seconds, settings.throttled_tries, self.calls.append
        )
        self.cluster = KubernetesCluster(client, settings)


@pytest.fixture
async def known(tmp_path: Path) -> AsyncIterator[Known]:
    settings = OperatorSettings(page_size=2, request_timeout_seconds=5, throttled_tries=3)
    async with kube_api() as api:
        known = Known(api, tmp_path, settings)
        async with known.cluster:
            yield known


async def test_apply_creates_changes_and_removes(known: Known) -> None:
    made = await known.cluster.apply(config("one", a="1", b="2"))
    changed = await known.cluster.apply(config("one", a="3"))
    assert uid_of(made) == uid_of(changed)
    assert changed["data"] == {"a": "3"}
    assert "graft" in known.api.store.owners(Place("configmaps", "default", "one"))


async def test_what_others_wrote_into_ours_is_taken_back(known: Known) -> None:
    await known.cluster.apply(config("one", a="1"))
    known.api.change("configmaps", "one", {"data": {"a": "2", "b": "kept"}})
    stored = await known.cluster.apply(config("one", a="1"))
    assert stored["data"] == {"a": "1", "b": "kept"}


async def test_ours_are_known_again_after_a_restart(known: Known) -> None:
    known.api.create(config("one", a="2"))
    await known.cluster.list_objects("ConfigMap")
    assert (await known.cluster.apply(config("one", a="1")))["data"] == {"a": "1"}


async def test_one_of_ours_that_is_never_listed_is_known_by_reading_it(known: Known) -> None:
    """Kinds that a cluster may lack are read by name alone."""
    known.api.create(config("one", a="2"))
    await known.cluster.get(ObjectKey("ConfigMap", "default", "one"))
    assert (await known.cluster.apply(config("one", a="1")))["data"] == {"a": "1"}


@pytest.mark.parametrize("name", ["../other/secrets/keys", "keys/status"])
async def test_a_name_that_would_lead_elsewhere_is_asked_of_nobody(known: Known, name: str) -> None:
    with pytest.raises(ClusterError, match="no object"):
        await known.cluster.get(ObjectKey("Secret", "default", name))
    assert known.calls == []


async def test_what_was_there_before_us_is_not_taken_over(known: Known) -> None:
    known.api.create({"kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"a": "theirs"}})
    await known.cluster.list_objects("ConfigMap")
    for _ in range(2):
        with pytest.raises(NameTakenError):
            await known.cluster.apply(config("one", a="1"))
    assert (known.api.store.find("configmaps", "one") or {})["data"] == {"a": "theirs"}


async def test_a_list_is_whole_though_it_comes_in_pages(known: Known) -> None:
    for index in range(5):
        known.api.create(config(f"c{index}"))
    known.api.create({"kind": "ConfigMap", "metadata": {"name": "not-ours"}})
    found = await known.cluster.list_objects("ConfigMap")
    assert [item["metadata"]["name"] for item in found] == ["c0", "c1", "c2", "c3", "c4"]
    assert {(item["kind"], item["apiVersion"]) for item in found} == {("ConfigMap", "v1")}
    assert sum(call.verb == "list" for call in known.calls) == 3


async def test_a_list_of_which_a_page_fails_is_an_error(known: Known) -> None:
    for index in range(5):
        known.api.create(config(f"c{index}"))
    known.api.faults.append(Fault("list", "configmaps", 500, only_later_pages=True))
    with pytest.raises(ClusterUnreachableError):
        await known.cluster.list_objects("ConfigMap")


async def test_a_list_whose_pages_expired_is_read_in_one_piece(known: Known) -> None:
    for index in range(5):
        known.api.create(config(f"c{index}"))
    known.api.faults.append(Fault("list", "configmaps", 410, times=1, only_later_pages=True))
    listing = await known.cluster.listing(kind_named("ConfigMap"), "default")
    assert len(listing.manifests) == 5
    assert listing.version == known.api.store.version


async def test_a_status_is_replaced_whole_and_only_on_the_same_object(known: Known) -> None:
    made = known.api.create(lora("shout"))
    first = await known.cluster.patch_status(made, {"servedName": "shout", "readyReplicas": 1})
    stored = await known.cluster.patch_status(first, {"readyReplicas": 0})
    assert stored["status"] == {"readyReplicas": 0}
    assert stored["spec"] == {"a": 1}

    known.api.delete("loraadapters", "shout")
    with pytest.raises(NotFoundError):
        await known.cluster.patch_status(stored, {"readyReplicas": 1})
    known.api.create(lora("shout"))
    with pytest.raises(ConflictError):
        await known.cluster.patch_status(stored, {"readyReplicas": 1})
    assert "status" not in (known.api.store.find("loraadapters", "shout") or {})


async def test_a_status_is_written_though_others_have_changed_the_object(known: Known) -> None:
    made = known.api.create(lora("shout"))
    known.api.change("loraadapters", "shout", {"metadata": {"labels": {"a": "b"}}})
    stored = await known.cluster.patch_status(made, {"readyReplicas": 1})
    assert stored["status"] == {"readyReplicas": 1}
    assert stored["metadata"]["labels"] == {"a": "b"}


async def test_what_was_read_long_ago_is_not_written_over(known: Known) -> None:
    made = await known.cluster.apply(config("one"))
    known.api.change("configmaps", "one", {"data": {"a": "newer"}})
    stale = {**config("one"), "metadata": {**config("one")["metadata"]}}
    stale["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
    with pytest.raises(ConflictError):
        await known.cluster.apply(stale)


async def test_only_the_object_that_was_read_is_deleted(known: Known) -> None:
    uid = uid_of(known.api.create(config("one")))
    key = ObjectKey("ConfigMap", "default", "one")
    with pytest.raises(ConflictError):
        await known.cluster.delete(key, "another-uid")
    assert await known.cluster.get(key)
    await known.cluster.delete(key, uid)
    assert await known.cluster.get(key) is None
    await known.cluster.delete(key, uid)


async def test_a_nudge_annotates_the_pod_and_a_gone_pod_is_fine(known: Known) -> None:
    known.api.create({"kind": "Pod", "metadata": {"name": "p", "annotations": {"a": "b"}}})
    await known.cluster.nudge(ObjectKey("Pod", "default", "p"), "abc/1")
    pod = known.api.store.find("pods", "p")
    assert pod is not None
    assert pod["metadata"]["annotations"] == {"a": "b", ANNOTATION_DESIRED: "abc/1"}
    await known.cluster.nudge(ObjectKey("Pod", "default", "gone"), "abc/1")


async def test_equal_events_are_told_once_and_a_lost_one_harms_nothing(known: Known) -> None:
    stored = {**known.api.create(lora("shout")), "kind": "LoraAdapter"}
    for _ in range(3):
        await known.cluster.record_event(stored, "Normal", "Available", "Ready=True")
    await known.cluster.record_event(stored, "Warning", "ChecksumMismatch", "Ready=False")
    told = [event["reason"] for event in known.api.store.select("events")]
    assert sorted(told) == ["Available", "ChecksumMismatch"]
    known.api.faults.append(Fault("create", "events", 403))
    await known.cluster.record_event(stored, "Normal", "Draining", "Ready=False")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (400, RefusedError),
        (403, ForbiddenError),
        (404, NotFoundError),
        (409, NameTakenError),
        (413, RefusedError),
        (422, InvalidObjectError),
        (500, ClusterUnreachableError),
        (503, ClusterUnreachableError),
    ],
)
async def test_each_refusal_has_its_own_error(
    known: Known, code: int, error: type[ClusterError]
) -> None:
    known.api.faults.append(Fault("patch", "configmaps", code))
    with pytest.raises(error) as refused:
        await known.cluster.apply(config("one"))
    assert type(refused.value) is error
    assert known.calls[-1] == Call("apply", "ConfigMap", code)


async def test_throttling_is_obeyed_by_every_request(known: Known) -> None:
    known.api.create(lora("shout"))
    known.api.faults.append(Fault("list", "configmaps", 429, times=1, headers={"Retry-After": "1"}))
    began = asyncio.get_running_loop().time()
    listing = asyncio.create_task(known.cluster.list_objects("ConfigMap"))
    while not known.calls:
        await asyncio.sleep(0)
    assert await known.cluster.get(SHOUT)
    await listing
    assert asyncio.get_running_loop().time() - began >= 0.9
    assert [call.code for call in known.calls] == [429, 200, 200]


async def test_throttling_without_end_is_an_error(known: Known) -> None:
    known.api.faults.append(Fault("get", "*", 429, headers={"Retry-After": "0"}))
    with pytest.raises(ClusterUnreachableError):
        await known.cluster.get(SHOUT)
    assert len(known.calls) == 3


async def test_expired_credentials_are_renewed_once(known: Known, tmp_path: Path) -> None:
    assert await known.cluster.get(SHOUT) is None
    known.api.token = "second"
    known.api.kubeconfig(tmp_path)
    assert await known.cluster.get(SHOUT) is None
    known.api.token = "third"
    with pytest.raises(ForbiddenError):
        await known.cluster.get(SHOUT)


async def test_no_answer_is_an_error_of_its_own(tmp_path: Path) -> None:
    async with kube_api() as api:
        known = Known(api, tmp_path, OperatorSettings())
    async with known.cluster:
        with pytest.raises(ClusterUnreachableError, match="does not answer"):
            await known.cluster.get(SHOUT)
    assert known.calls == [Call("get", "LoraAdapter", 0)]


def test_a_service_is_reached_by_its_name_in_the_cluster(tmp_path: Path) -> None:
    api = KubeApi()
    api.url = "http://127.0.0.1:9"
    cluster = Known(api, tmp_path, OperatorSettings()).cluster
    metadata = {"name": "tiny", "namespace": "team"}
    manifest = {"kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 8000}]}}
    assert cluster.url_of(manifest) == "http://tiny.team.svc:8000"
