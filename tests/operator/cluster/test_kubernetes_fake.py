"""The fake Kubernetes API itself: what tests of the operator lean on has to be so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest

from tests.support.kube_api import Fault, KubeApi, kube_api
from tests.support.kube_store import ApiError, Json, KubeStore, Place

PLACE = Place("configmaps", "default", "one")


def config(**data: str) -> Json:
    return {"metadata": {"name": "one", "labels": {"app": "x"}}, "data": data}


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    async with kube_api() as running:
        yield running


@pytest.fixture
async def http(api: KubeApi) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"Authorization": f"Bearer {api.token}"}
    async with aiohttp.ClientSession(api.url, headers=headers) as session:
        yield session


def test_apply_creates_what_does_not_exist() -> None:
    store = KubeStore()
    made = store.apply(PLACE, config(a="1"), "graft", force=True)
    assert made["metadata"]["uid"]
    assert made["metadata"]["generation"] == 1
    assert store.events[-1].type == "ADDED"


def test_apply_removes_what_its_manager_no_longer_names() -> None:
    store = KubeStore()
    store.apply(PLACE, config(a="1", b="2"), "graft", force=True)
    assert store.apply(PLACE, config(a="1"), "graft", force=True)["data"] == {"a": "1"}


def test_apply_keeps_the_fields_of_other_managers() -> None:
    store = KubeStore()
    store.apply(PLACE, config(a="1"), "graft", force=True)
    store.merge(PLACE, {"data": {"mine": "x"}}, "user")
    stored = store.apply(PLACE, config(b="2"), "graft", force=True)
    assert stored["data"] == {"mine": "x", "b": "2"}


def test_apply_without_force_refuses_the_field_of_another_manager() -> None:
    store = KubeStore()
    store.apply(PLACE, config(a="1"), "graft", force=True)
    with pytest.raises(ApiError) as refused:
        store.apply(PLACE, config(a="2"), "other", force=False)
    assert refused.value.code == 409
    assert store.apply(PLACE, config(a="2"), "other", force=True)["data"] == {"a": "2"}
    assert ("data", "a") not in store.owners(PLACE)["graft"]


def test_an_apply_that_changes_nothing_makes_no_version() -> None:
    store = KubeStore()
    first = store.apply(PLACE, config(a="1"), "graft", force=True)
    again = store.apply(PLACE, config(a="1"), "graft", force=True)
    assert again == first
    assert len(store.events) == 1


def test_status_and_the_rest_are_written_apart() -> None:
    store = KubeStore()
    place = Place("loraadapters", "default", "one")
    store.create(place, {"metadata": {}, "spec": {"a": 1}})
    both = {"spec": {"a": 2}, "status": {"b": 3}}
    after = store.apply(place, both, "graft", force=True, subresource="status")
    assert (after["spec"], after["status"]) == ({"a": 1}, {"b": 3})
    after = store.apply(place, {"spec": {"a": 2}, "status": {"b": 4}}, "graft", force=True)
    assert (after["spec"], after["status"]) == ({"a": 2}, {"b": 3})
    assert after["metadata"]["generation"] == 2


def test_a_patch_with_another_uid_is_refused() -> None:
    store = KubeStore()
    store.create(PLACE, config())
    with pytest.raises(ApiError) as refused:
        store.apply(PLACE, {"metadata": {"uid": "other"}}, "graft", force=True)
    assert refused.value.code == 422


def test_what_an_object_owns_goes_with_it() -> None:
    store = KubeStore()
    owner = store.create(PLACE, config())
    owned = Place("secrets", "default", "two")
    store.create(owned, {"metadata": {"ownerReferences": [{"uid": owner["metadata"]["uid"]}]}})
    store.delete(PLACE)
    assert store.find("secrets", "two") is None


async def test_lists_come_in_pages_and_by_label(api: KubeApi, http: aiohttp.ClientSession) -> None:
    for index in range(5):
        label = {"app": "x" if index else "y"}
        api.create({"kind": "ConfigMap", "metadata": {"name": f"c{index}", "labels": label}})
    url = "/api/v1/namespaces/default/configmaps"
    found: list[str] = []
    token: str | None = ""
    while token is not None:
        query = {"limit": "2", "labelSelector": "app=x"} | ({"continue": token} if token else {})
        async with http.get(url, params=query) as answer:
            page = await answer.json()
        found += [item["metadata"]["name"] for item in page["items"]]
        token = page["metadata"].get("continue")
    assert found == ["c1", "c2", "c3", "c4"]


async def test_a_watch_resumes_where_a_list_ended(
    api: KubeApi, http: aiohttp.ClientSession
) -> None:
    api.create({"kind": "ConfigMap", "metadata": {"name": "old"}})
    async with http.get("/api/v1/configmaps") as answer:
        version = (await answer.json())["metadata"]["resourceVersion"]
    query = {"watch": "true", "resourceVersion": version}
    async with http.get("/api/v1/configmaps", params=query) as stream:
        api.create({"kind": "ConfigMap", "metadata": {"name": "new"}})
        event = await _event(stream.content.readline)
    assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "new")


async def test_a_muted_watch_lives_and_tells_nothing(
    api: KubeApi, http: aiohttp.ClientSession
) -> None:
    api.muted.add("configmaps")
    async with http.get("/api/v1/configmaps", params={"watch": "true"}) as stream:
        api.create({"kind": "ConfigMap", "metadata": {"name": "new"}})
        for _ in range(3):
            assert json.loads(await stream.content.readline())["type"] == "BOOKMARK"


async def test_faults_and_wrong_tokens_are_answered_as_the_api_does(
    api: KubeApi, http: aiohttp.ClientSession
) -> None:
    api.faults.append(Fault("list", "configmaps", 503, times=1))
    async with http.get("/api/v1/configmaps") as answer:
        assert (answer.status, (await answer.json())["kind"]) == (503, "Status")
    async with http.get("/api/v1/configmaps") as answer:
        assert answer.status == 200
    async with http.get("/api/v1/pods", headers={"Authorization": "Bearer wrong"}) as answer:
        assert answer.status == 401


async def _event(readline: Callable[[], Awaitable[bytes]]) -> Json:
    async with asyncio.timeout(5):
        while True:
            line: Json = json.loads(await readline())
            if line["type"] != "BOOKMARK":
                return line
