"""With which template and image a service's pods are rendered: theirs, or the operator's newest.

A new operator changes no running pod unless the spec lets it.
"""

from __future__ import annotations

from typing import NamedTuple

from graft_operator.constants import TEMPLATE_NEWEST, TEMPLATE_OLDEST
from graft_operator.resources.pin import TemplatePin
from graft_operator.resources.v1alpha1 import InferenceService


class TemplateChoice(NamedTuple):
    """What the pods are rendered with, and what there would be."""

    pin: TemplatePin
    """What they have, or are to get."""
    offer: TemplatePin | None = None
    """What the operator has newer, while it may not be taken."""

    @property
    def is_renderable(self) -> bool:
        """Whether this operator knows the template. If not, the Deployment is left as it is."""
        return TEMPLATE_OLDEST <= self.pin.revision <= TEMPLATE_NEWEST


def choose_template(
    service: InferenceService, stored: TemplatePin | None, newest: TemplatePin, *, has_pods: bool
) -> TemplateChoice:
    """Decide what a service's pods are rendered with.

    Args:
        service: The service.
        stored: What its Deployment was rendered with; None if there is none yet.
        newest: What this operator gives to new services.
        has_pods: Whether there is any pod that a change would replace.
    """
    if stored is None or stored == newest:
        return TemplateChoice(newest)
    upgrade = service.spec.rollout.runtime_upgrade
    is_approved = upgrade.policy == "Auto" or upgrade.approve == newest.id
    if is_approved or not (has_pods or service.spec.replicas):
        return TemplateChoice(newest)
    if service.spec.runtime.image is not None and stored.revision == newest.revision:
        # The default image is not in use: noting the newer one replaces nobody.
        return TemplateChoice(newest)
    return TemplateChoice(stored, newest)
