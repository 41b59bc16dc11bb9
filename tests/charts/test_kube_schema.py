"""The check of manifests that the chart's tests rely on finds what it is for."""

from typing import Any

import pytest

from tests.support.kube_schema import problems


def role(**changes: Any) -> dict[str, Any]:
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"], **changes}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "a"},
        "rules": [rule],
    }


def test_a_valid_manifest_has_no_problems() -> None:
    assert problems(role()) == []


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"resource": ["pods"]}, "rules.0.resource"),
        ({"verbs": "get"}, "rules.0.verbs"),
        ({"verbs": None}, "rules.0.verbs"),
        ({"resourceNames": [1]}, "rules.0.resourceNames.0"),
    ],
)
def test_a_field_that_is_unknown_or_of_another_type_is_found(
    changes: dict[str, Any], path: str
) -> None:
    assert [problem.partition(":")[0] for problem in problems(role(**changes))] == [path]


def test_a_kind_that_does_not_exist_is_found() -> None:
    assert problems({**role(), "kind": "Rule"})


def test_a_quantity_may_be_a_number() -> None:
    container = {"name": "a", "resources": {"limits": {"cpu": 1}}}
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [container]}}
    assert problems(pod) == []
