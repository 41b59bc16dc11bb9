"""What no schema can say is refused all the same, and with the words of the CRD's own rule."""

from collections.abc import Iterator
from typing import Any

import pytest

from graft_operator.constants import KIND_ADAPTER, KIND_SERVICE
from graft_operator.errors import InvalidManifestError
from graft_operator.resources.admission import admit
from graft_operator.resources.crdgen import crd
from tests.support.bad_manifests import BROKEN_RULES


def messages() -> Iterator[str]:
    def walk(node: dict[str, Any]) -> Iterator[str]:
        for rule in node.get("x-kubernetes-validations", ()):
            yield rule["message"]
        for child in node.get("properties", {}).values():
            yield from walk(child)
        for part in ("items", "additionalProperties"):
            if part in node:
                yield from walk(node[part])

    for kind in (KIND_SERVICE, KIND_ADAPTER):
        yield from walk(crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


@pytest.mark.parametrize("name", BROKEN_RULES)
def test_a_broken_rule_is_named(name: str) -> None:
    manifest, message = BROKEN_RULES[name]
    with pytest.raises(InvalidManifestError) as caught:
        admit(manifest, None)
    assert message in str(caught.value)


def test_every_rule_of_the_crds_is_broken_by_some_manifest() -> None:
    # An immutable field needs an object that is there, and keys of maps have a pattern locally.
    others = {
        "is immutable; create a new LoraAdapter",
        "a key does not have the form that keys here have",
    }
    assert set(messages()) - others == {message for _, message in BROKEN_RULES.values()}
