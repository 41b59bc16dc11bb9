"""The cache of objects: never older than it was, never with what is gone."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from graft_operator.cluster.base import Change
from graft_operator.reconcile.cache import ObjectCache
from graft_operator.resources.meta import Manifest, key_of
from graft_protocol.naming import LABEL_SERVICE
from tests.support.objects import adapter_manifest


def configmap(name: str, version: int, *, uid: str = "u1", service: str = "tiny") -> Manifest:
    labels = {LABEL_SERVICE: service}
    return {
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": labels,
        },
        "data": {"version": str(version)},
    }


def test_an_older_version_never_replaces_a_newer_one() -> None:
    cache = ObjectCache()
    assert cache.put(configmap("a", 5))
    assert not cache.put(configmap("a", 4))
    assert not cache.put(configmap("a", 5))
    assert cache.children("ConfigMap", "default", "tiny")[0]["data"] == {"version": "5"}


def test_a_late_deletion_does_not_take_the_object_that_has_the_name_now() -> None:
    cache = ObjectCache()
    cache.put(configmap("a", 5, uid="new"))
    assert not cache.observe(Change("DELETED", configmap("a", 4, uid="old")))
    assert cache.get(key_of(configmap("a", 5))) is not None
    assert cache.observe(Change("DELETED", configmap("a", 6, uid="new")))
    assert cache.children("ConfigMap", "default", "tiny") == []


def test_a_complete_list_tells_what_is_new_and_what_has_vanished() -> None:
    cache = ObjectCache()
    for name in ("same", "gone", "old"):
        cache.put(configmap(name, 1))
    other = configmap("elsewhere", 1)
    other["metadata"]["namespace"] = "other"
    cache.put(other)
    listed = [configmap("same", 1), configmap("old", 2), configmap("new", 3)]
    news = cache.replace_all("ConfigMap", "default", listed)
    assert {key.name for key in news} == {"gone", "old", "new"}
    assert cache.get(key_of(other)) is not None


def test_a_relabelled_object_moves_to_its_new_service() -> None:
    cache = ObjectCache()
    cache.put(configmap("a", 1))
    cache.put(configmap("a", 2, service="other"))
    assert cache.children("ConfigMap", "default", "tiny") == []
    assert len(cache.children("ConfigMap", "default", "other")) == 1


def test_adapters_are_found_by_the_service_they_name_even_if_their_spec_is_nonsense() -> None:
    cache = ObjectCache()
    good = adapter_manifest("good", "tenant")
    broken = adapter_manifest("broken")
    broken["spec"] = {"inferenceServiceRef": {"name": "tiny"}, "source": 7}
    hollow = adapter_manifest("hollow")
    hollow["spec"] = {}
    for manifest in (good, broken, hollow):
        cache.put(manifest)
    names = [item["metadata"]["name"] for item in cache.adapters_of("default", "tiny")]
    assert names == ["broken", "good"]


EVENTS = st.lists(
    st.tuples(st.sampled_from("ab"), st.booleans(), st.sampled_from(["tiny", "other"])), max_size=12
)


@given(EVENTS, st.randoms())
def test_duplicated_and_reordered_events_end_in_the_latest_state(
    events: list[tuple[str, bool, str]], random: Any
) -> None:
    """Puts may come twice and in any order; the newest version of each name wins."""
    cache, latest = ObjectCache(), {}
    changes = []
    for version, (name, _, service) in enumerate(events, start=1):
        manifest = configmap(name, version, service=service)
        latest[name] = manifest
        changes += [manifest, manifest]
    random.shuffle(changes)
    for manifest in changes:
        cache.put(manifest)
    for name, manifest in latest.items():
        assert cache.get(key_of(configmap(name, 0))) == manifest
    listed = [m for s in ("tiny", "other") for m in cache.children("ConfigMap", "default", s)]
    assert sorted(key_of(m) for m in listed) == sorted(key_of(m) for m in latest.values())
