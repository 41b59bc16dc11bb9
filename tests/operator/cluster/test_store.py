"""Objects in memory live as they would in an API server."""

import pytest

from graft_operator.cluster.base import Change
from graft_operator.cluster.store import ObjectStore
from graft_operator.errors import ConflictError, NotFoundError
from graft_operator.resources.meta import Manifest, ObjectKey, uid_of


def configmap(name: str = "a", **data: str) -> Manifest:
    return {"kind": "ConfigMap", "metadata": {"name": name}, "data": data}


KEY = ObjectKey("ConfigMap", "default", "a")


def test_an_object_gets_an_identity_that_a_change_keeps() -> None:
    store = ObjectStore()
    first = store.apply(configmap(x="1"))
    second = store.apply(configmap(x="2"))
    assert first["metadata"]["namespace"] == "default"
    assert uid_of(first) == uid_of(second) != ""
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])


def test_applying_the_same_again_changes_nothing_and_tells_nobody() -> None:
    store, told = ObjectStore(), list[Change]()
    first = store.apply(configmap(x="1"))
    store.subscribe(told.append)
    assert store.apply(configmap(x="1")) == first
    assert told == []


def test_what_is_no_longer_applied_is_gone() -> None:
    store = ObjectStore()
    store.apply(configmap(x="1", y="2"))
    assert store.apply(configmap(x="1"))["data"] == {"x": "1"}


def test_a_generation_counts_changes_of_the_spec_and_not_of_the_status() -> None:
    store = ObjectStore()
    manifest: Manifest = {"kind": "K", "metadata": {"name": "a"}, "spec": {"n": 1}}
    stored = store.apply(manifest)
    key = ObjectKey("K", "default", "a")
    stored = store.set_status(key, uid_of(stored), {"ok": True})
    assert stored["metadata"]["generation"] == 1
    stored = store.apply(manifest | {"spec": {"n": 2}})
    assert stored["metadata"]["generation"] == 2
    assert stored["status"] == {"ok": True}


def test_a_status_for_an_object_that_was_replaced_is_refused() -> None:
    store = ObjectStore()
    uid = uid_of(store.apply(configmap()))
    store.delete(KEY)
    with pytest.raises(NotFoundError):
        store.set_status(KEY, uid, {})
    store.apply(configmap())
    with pytest.raises(ConflictError):
        store.set_status(KEY, uid, {})
    with pytest.raises(ConflictError):
        store.delete(KEY, uid)


def test_what_an_object_owns_goes_with_it() -> None:
    store = ObjectStore()
    owner = store.apply(configmap("owner"))
    child = configmap("child")
    child["metadata"]["ownerReferences"] = [{"uid": uid_of(owner)}]
    grandchild = configmap("grandchild")
    grandchild["metadata"]["ownerReferences"] = [{"uid": uid_of(store.apply(child))}]
    store.apply(grandchild)
    told: list[Change] = []
    store.subscribe(told.append)
    store.delete(ObjectKey("ConfigMap", "default", "owner"))
    assert store.list_objects("ConfigMap") == []
    assert [change.type for change in told] == ["DELETED"] * 3


def test_nobody_outside_can_change_what_is_stored() -> None:
    store = ObjectStore()
    manifest = configmap(x="1")
    first = store.apply(manifest)
    manifest["data"]["x"] = "changed"
    store.apply(configmap(x="2"))
    assert first["data"] == {"x": "1"}
    store.apply(configmap(x="1"))
    found = store.get(KEY)
    assert found is not None
    assert found["data"] == {"x": "1"}
