"""An operator that comes later changes no running pod unless it is let."""

from typing import Any

import pytest

from graft_operator.constants import TEMPLATE_NEWEST, TEMPLATE_OLDEST
from graft_operator.plan.template import TemplateChoice, choose_template
from graft_operator.resources.pin import TemplatePin
from tests.support.objects import make_service

NEWEST = TemplatePin(TEMPLATE_NEWEST, "new")
OLD = TemplatePin(TEMPLATE_OLDEST, "old")


def choice(stored: TemplatePin | None, *, has_pods: bool = True, **spec: Any) -> TemplateChoice:
    return choose_template(make_service(**spec), stored, NEWEST, has_pods=has_pods)


def upgrade(**fields: str) -> dict[str, Any]:
    return {"rollout": {"runtimeUpgrade": fields}}


def test_a_new_service_gets_the_newest() -> None:
    assert choice(None, has_pods=False) == TemplateChoice(NEWEST)


def test_a_running_service_keeps_what_it_has_and_is_told_of_the_newer() -> None:
    assert choice(OLD) == TemplateChoice(OLD, NEWEST)


@pytest.mark.parametrize("stored", [OLD, OLD._replace(image="new"), NEWEST._replace(image="old")])
def test_what_is_approved_by_name_or_in_general_is_taken(stored: TemplatePin) -> None:
    assert choice(stored, **upgrade(policy="Auto")) == TemplateChoice(NEWEST)
    assert choice(stored, **upgrade(approve=NEWEST.id)) == TemplateChoice(NEWEST)


def test_an_approval_does_not_stand_for_a_later_update() -> None:
    assert choice(OLD, **upgrade(approve=OLD.id)) == TemplateChoice(OLD, NEWEST)


def test_a_service_without_pods_is_brought_up_to_date() -> None:
    assert choice(OLD, has_pods=False, replicas=0) == TemplateChoice(NEWEST)
    assert choice(OLD, has_pods=True, replicas=0) == TemplateChoice(OLD, NEWEST)
    assert choice(OLD, has_pods=False, replicas=1) == TemplateChoice(OLD, NEWEST)


def test_a_default_image_that_is_not_in_use_is_no_update() -> None:
    own: dict[str, Any] = {"runtime": {"image": "own"}}
    assert choice(NEWEST._replace(image="old"), **own) == TemplateChoice(NEWEST)
    assert choice(OLD, **own) == TemplateChoice(OLD, NEWEST)


@pytest.mark.parametrize("revision", [TEMPLATE_OLDEST - 1, TEMPLATE_NEWEST + 1])
def test_a_template_of_another_age_is_left_alone(revision: int) -> None:
    found = choice(TemplatePin(revision, "x"))
    assert not found.is_renderable
    assert found.offer == NEWEST


def test_the_name_of_an_update_tells_revision_and_image_apart() -> None:
    ids = {TemplatePin(r, i).id for r in (1, 2) for i in ("a", "b")}
    assert len(ids) == 4
