"""The CRDs' own rules, as the API server reads them, refuse what local mode refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from e2e.cluster.errors import LabError
from tests.control_plane.conftest import Tenant
from tests.control_plane.manifests import service
from tests.support.bad_manifests import BROKEN_RULES


@pytest.mark.parametrize("name", BROKEN_RULES)
def test_a_broken_rule_is_named(tenant: Tenant, name: str) -> None:
    manifest, message = BROKEN_RULES[name]
    with pytest.raises(LabError) as refusal:
        tenant.apply(copy.deepcopy(manifest))
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "part", [{"scheduling": {"nodeSelector": {"-a": "b"}}}, {"resources": {"limits": {"a b": 1}}}]
)
def test_a_key_that_is_none_is_refused(tenant: Tenant, part: dict[str, Any]) -> None:
    with pytest.raises(LabError) as refusal:
        tenant.apply(service(**part))
    assert "a key does not have the form" in str(refusal.value)
