"""Who says how many pods there are: the spec, or an autoscaler, with no dip in between."""

from typing import Any

from graft_operator.plan.replicas import replicas_expected, replicas_to_apply
from graft_operator.plan.views import DeploymentView
from tests.support.objects import make_service

SCALING: dict[str, Any] = {"autoscaling": {"minReplicas": 2, "maxReplicas": 6, "targetRequests": 8}}


def test_without_an_autoscaler_the_spec_decides_whatever_others_write() -> None:
    service = make_service(replicas=3)
    assert replicas_to_apply(service, None) == 3
    assert replicas_to_apply(service, DeploymentView(9, is_scaled_by_others=True)) == 3


def test_a_new_service_begins_within_the_autoscalers_bounds() -> None:
    assert replicas_to_apply(make_service(replicas=1, **SCALING), None) == 2
    assert replicas_to_apply(make_service(replicas=4, **SCALING), None) == 4
    assert replicas_to_apply(make_service(replicas=9, **SCALING), None) == 6


def test_the_field_is_handed_over_with_the_number_that_is_there() -> None:
    service = make_service(replicas=1, **SCALING)
    # Nobody else owns it yet: left out, it would fall back to 1.
    assert replicas_to_apply(service, DeploymentView(5)) == 5
    assert replicas_to_apply(service, DeploymentView(5, is_scaled_by_others=True)) is None
    assert replicas_expected(service, DeploymentView(5, is_scaled_by_others=True)) == 5


def test_the_spec_takes_over_again_when_the_autoscaler_is_gone() -> None:
    service = make_service(replicas=4)
    stored = DeploymentView(6, is_scaled_by_others=True)
    assert (replicas_to_apply(service, stored), replicas_expected(service, stored)) == (4, 4)
