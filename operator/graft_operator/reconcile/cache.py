"""What is known of the cluster's objects, with the indexes that reconciling needs.

Fed by watches and by complete lists; an older version never replaces a newer one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from graft_operator.cluster.base import Change
from graft_operator.constants import KIND_ADAPTER, KIND_SERVICE
from graft_operator.resources.meta import Manifest, ObjectKey, key_of, uid_of
from graft_protocol.naming import LABEL_SERVICE

ChildrenOf = tuple[str, str, str]
"""Kind, namespace and service label."""


class ObjectCache:
    """Objects by key. What it returns belongs to it and must not be changed."""

    def __init__(self) -> None:
        self._objects: dict[ObjectKey, Manifest] = {}
        self._children: defaultdict[ChildrenOf, set[ObjectKey]] = defaultdict(set)
        self._adapters: defaultdict[ObjectKey, set[ObjectKey]] = defaultdict(set)

    def get(self, key: ObjectKey) -> Manifest | None:
        """Return one object."""
        return self._objects.get(key)

    def keys(self, kind: str) -> tuple[ObjectKey, ...]:
        """Return the keys of all objects of a kind."""
        return tuple(key for key in self._objects if key.kind == kind)

    def children(self, kind: str, namespace: str, service_label: str) -> list[Manifest]:
        """Return the children of one kind that carry a service's label, by name."""
        keys = self._children[kind, namespace, service_label]
        return [self._objects[key] for key in sorted(keys)]

    def adapters_of(self, namespace: str, service: str) -> list[Manifest]:
        """Return the LoraAdapters that refer to a service, by key."""
        referring = self._adapters[ObjectKey(KIND_SERVICE, namespace, service)]
        return [self._objects[key] for key in sorted(referring)]

    def observe(self, change: Change) -> bool:
        """Take in a change from a watch; tell whether it was news."""
        if change.type == "DELETED":
            return self.remove(key_of(change.manifest), uid_of(change.manifest))
        return self.put(change.manifest)

    def put(self, manifest: Manifest) -> bool:
        """Take in an object as it is; tell whether it was news."""
        key = key_of(manifest)
        old = self._objects.get(key)
        if old is not None and not _is_newer(manifest, old):
            return False
        if old is not None:
            self._unindex(key, old)
        self._objects[key] = manifest
        self._index(key, manifest)
        return True

    def remove(self, key: ObjectKey, uid: str) -> bool:
        """Forget an object, but not one that has taken its name since."""
        old = self._objects.get(key)
        if old is None or (uid and uid_of(old) != uid):
            return False
        del self._objects[key]
        self._unindex(key, old)
        return True

    def replace_all(
        self, kind: str, namespace: str | None, manifests: Iterable[Manifest]
    ) -> set[ObjectKey]:
        """Take in a complete list of a kind; return the keys that were news, vanished ones too.

        Only a list that is complete may come here: what it lacks is forgotten.
        """
        listed = {key_of(manifest): manifest for manifest in manifests}
        news = {key for key, manifest in listed.items() if self.put(manifest)}
        for key in self.keys(kind):
            if key not in listed and namespace in (None, key.namespace):
                self.remove(key, "")
                news.add(key)
        return news

    def _index(self, key: ObjectKey, manifest: Manifest) -> None:
        label = (manifest["metadata"].get("labels") or {}).get(LABEL_SERVICE)
        if label:
            self._children[key.kind, key.namespace, label].add(key)
        if key.kind == KIND_ADAPTER:
            self._adapters[service_of(manifest)].add(key)

    def _unindex(self, key: ObjectKey, manifest: Manifest) -> None:
        label = (manifest["metadata"].get("labels") or {}).get(LABEL_SERVICE)
        if label:
            self._children[key.kind, key.namespace, label].discard(key)
        if key.kind == KIND_ADAPTER:
            self._adapters[service_of(manifest)].discard(key)


def service_of(adapter: Manifest) -> ObjectKey:
    """Return the service an adapter refers to, without trusting the spec to be one that parses."""
    ref = adapter.get("spec", {}).get("inferenceServiceRef") or {}
    namespace = ref.get("namespace") or key_of(adapter).namespace
    return ObjectKey(KIND_SERVICE, str(namespace), str(ref.get("name", "")))


def _is_newer(new: Manifest, old: Manifest) -> bool:
    return _version(new) > _version(old) or not _version(new)


def _version(manifest: Manifest) -> int:
    """Return the resource version, which Kubernetes promises to grow; 0 where it is no number."""
    text = str(manifest["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdigit() else 0
