"""Selectors of namespaces mean what label selectors of Kubernetes mean."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from graft_operator.resources.selector import NamespaceSelector
from graft_operator.resources.tenancy import AllowedNamespaces

KEYS = ("team", "example.com/tier", "env")
VALUES = ("", "a", "b", "c")
TRUE_OF = {
    # Whether the label is there, and whether it has one of the values.
    "In": {(True, True)},
    "NotIn": {(True, False), (False, False)},
    "Exists": {(True, True), (True, False)},
    "DoesNotExist": {(False, False)},
}
"""Source: Kubernetes, Labels and Selectors, "Set-based requirement"."""

labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES))
some_values = st.lists(st.sampled_from(VALUES), min_size=1, max_size=3)
compared = st.fixed_dictionaries(
    {
        "key": st.sampled_from(KEYS),
        "operator": st.sampled_from(["In", "NotIn"]),
        "values": some_values,
    }
)
present = st.fixed_dictionaries(
    {"key": st.sampled_from(KEYS), "operator": st.sampled_from(["Exists", "DoesNotExist"])}
)
selectors = st.fixed_dictionaries(
    {},
    optional={"matchLabels": labels, "matchExpressions": st.lists(compared | present, max_size=4)},
).filter(lambda selector: any(selector.values()))


def is_meant(selector: dict[str, Any], found: dict[str, str]) -> bool:
    """The reference: every requirement, looked up in the table."""
    wanted = [
        {"key": key, "operator": "In", "values": [value]}
        for key, value in selector.get("matchLabels", {}).items()
    ]
    for one in (*wanted, *selector.get("matchExpressions", [])):
        is_there = one["key"] in found
        is_listed = is_there and found[one["key"]] in one.get("values", [])
        if "values" not in one:
            is_listed = is_there
        if (is_there, is_listed) not in TRUE_OF[one["operator"]]:
            return False
    return True


@given(selectors, labels)
def test_a_selector_means_what_kubernetes_means(
    selector: dict[str, Any], found: dict[str, str]
) -> None:
    assert NamespaceSelector.model_validate(selector).matches(found) == is_meant(selector, found)


@given(selectors)
def test_labels_that_nobody_knows_let_nobody_in(selector: dict[str, Any]) -> None:
    document = {"from": "Selector", "selector": selector}
    allowed = AllowedNamespaces.model_validate(document)
    assert not allowed.admits("team", "own", None)
    assert allowed.admits("own", "own", None)
