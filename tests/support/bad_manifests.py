"""Manifests that each break one rule of the CRDs, with the rule's words.

Refused by the API server's CEL and by local mode alike; both have tests over this list.
"""

from __future__ import annotations

from typing import Any

from graft_operator.resources.affinity import VALUES_FIT_OPERATOR
from graft_operator.resources.canary import WEIGHTS_GROW
from graft_operator.resources.container import ENV_IS_TAKEN
from graft_operator.resources.exposure import NAME_OR_ANNOTATIONS
from graft_operator.resources.meta import Manifest
from graft_operator.resources.placement import (
    DEVICES_IN_LIMITS,
    DURATION_NEEDS_NO_EXECUTE,
    EXISTS_HAS_NO_VALUE,
    KEYLESS_EXISTS,
)
from graft_operator.resources.rollout import DEADLINE_AFTER_START, SOME_PROGRESS
from graft_operator.resources.scaling import MIN_UP_TO_MAX, SOME_TARGET
from graft_operator.resources.selector import SELECTS_SOMETHING, VALUES_WHEN_COMPARED
from graft_operator.resources.tenancy import NAMES_WHEN_LISTED, SELECTOR_WHEN_SELECTED
from graft_operator.resources.v1alpha1 import UNSIGNED_BY_API
from tests.support.local import adapter_document, service_document
from tests.support.signing import public_pem


def _tolerating(**toleration: Any) -> Manifest:
    return service_document(scheduling={"tolerations": [toleration]})


def _choosing(**expression: Any) -> Manifest:
    required = [{"matchExpressions": [{"key": "gpu", **expression}]}]
    return service_document(scheduling={"nodeAffinity": {"required": required}})


def _selecting(**selector: Any) -> Manifest:
    allowed = {"from": "Selector", "selector": selector}
    return service_document(adapters={"allowedNamespaces": allowed})


def _steps(*weights: int) -> Manifest:
    steps = [{"weight": weight} for weight in weights]
    return adapter_document("a", rollout={"steps": steps})


BROKEN_RULES: dict[str, tuple[Manifest, str]] = {
    "a model's uri leaves its root": (
        service_document(model={"uri": "s3://bucket/../other"}),
        "must not contain '..'",
    ),
    "a source leaves its root": (
        adapter_document("a", source={"uri": "s3://bucket/../other"}),
        "must not contain '..'",
    ),
    "a variable of ours": (
        service_document(runtime={"env": [{"name": "GRAFT_POD_NAME", "value": "x"}]}),
        ENV_IS_TAKEN,
    ),
    "a device is requested": (
        service_document(resources={"requests": {"nvidia.com/gpu": 1}}),
        DEVICES_IN_LIMITS,
    ),
    "Exists with a value": (
        _tolerating(key="a", operator="Exists", value="b"),
        EXISTS_HAS_NO_VALUE,
    ),
    "no key and Equal": (_tolerating(value="b"), KEYLESS_EXISTS),
    "a duration without NoExecute": (
        _tolerating(key="a", value="b", effect="NoSchedule", tolerationSeconds=5),
        DURATION_NEEDS_NO_EXECUTE,
    ),
    "In without values": (_choosing(operator="In"), VALUES_FIT_OPERATOR),
    "Exists with values": (_choosing(operator="Exists", values=["a"]), VALUES_FIT_OPERATOR),
    "more than a word": (_choosing(operator="Gt", values=["many"]), VALUES_FIT_OPERATOR),
    "a selector that is not asked for": (
        service_document(adapters={"allowedNamespaces": {"selector": {"matchLabels": {"a": "b"}}}}),
        SELECTOR_WHEN_SELECTED,
    ),
    "a selector of nothing": (_selecting(), SELECTS_SOMETHING),
    "a selector of no labels": (
        _selecting(matchLabels={}, matchExpressions=[]),
        SELECTS_SOMETHING,
    ),
    "NotIn without values": (
        _selecting(matchExpressions=[{"key": "a", "operator": "NotIn"}]),
        VALUES_WHEN_COMPARED,
    ),
    "DoesNotExist with values": (
        _selecting(matchExpressions=[{"key": "a", "operator": "DoesNotExist", "values": ["b"]}]),
        VALUES_WHEN_COMPARED,
    ),
    "no progress": (
        service_document(rollout={"maxSurge": 0, "maxUnavailable": 0}),
        SOME_PROGRESS,
    ),
    "no progress by default": (
        service_document(rollout={"maxUnavailable": 0}),
        SOME_PROGRESS,
    ),
    "a deadline within the start": (
        service_document(rollout={"startupDeadlineSeconds": 100, "progressDeadlineSeconds": 100}),
        DEADLINE_AFTER_START,
    ),
    "a deadline within the default start": (
        service_document(rollout={"progressDeadlineSeconds": 100}),
        DEADLINE_AFTER_START,
    ),
    "more at least than at most": (
        service_document(autoscaling={"minReplicas": 3, "maxReplicas": 2, "targetRequests": 1}),
        MIN_UP_TO_MAX,
    ),
    "scaled by nothing": (service_document(autoscaling={"maxReplicas": 2}), SOME_TARGET),
    "annotations for a named account": (
        service_document(
            runtime={"serviceAccount": {"name": "a", "annotations": {"example.com/a": "b"}}}
        ),
        NAME_OR_ANNOTATIONS,
    ),
    "names that are not asked for": (
        service_document(adapters={"allowedNamespaces": {"from": "All", "names": ["a"]}}),
        NAMES_WHEN_LISTED,
    ),
    "no names where they are asked for": (
        service_document(adapters={"allowedNamespaces": {"from": "Listed"}}),
        NAMES_WHEN_LISTED,
    ),
    "a way around signatures": (
        service_document(adapters={"trustedKeys": [public_pem()], "allowRuntimeLoading": True}),
        UNSIGNED_BY_API,
    ),
    "a share that shrinks": (_steps(10, 5), WEIGHTS_GROW),
    "a share that stays": (_steps(10, 10), WEIGHTS_GROW),
}
