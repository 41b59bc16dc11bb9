"""From which template and default image a service's pods are made, and where that is noted.

Noted on the Deployment: it lives exactly as long as there are pods that a change would replace.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from graft_operator.constants import ANNOTATION_DEFAULT_IMAGE
from graft_operator.resources.meta import Manifest
from graft_protocol.naming import ANNOTATION_TEMPLATE_REVISION


class TemplatePin(NamedTuple):
    """What the operator adds to a spec when it renders pods."""

    revision: int
    """Version of the pod template and of the runtime configuration."""
    image: str
    """Image of the runtime where the spec names none."""

    @property
    def id(self) -> str:
        """A short name, for a person to approve."""
        digest = hashlib.sha256(f"{self.revision}\n{self.image}".encode()).hexdigest()
        return f"r{self.revision}-{digest[:8]}"


def read_pin(deployment: Manifest | None, default_image: str) -> TemplatePin | None:
    """Return what a stored Deployment was rendered with; None if nothing says so.

    Args:
        deployment: As stored; None if there is none.
        default_image: Stands in where neither a note nor a container tells the image.
    """
    if deployment is None:
        return None
    template = deployment["spec"].get("template") or {}
    annotations = (template.get("metadata") or {}).get("annotations") or {}
    revision = str(annotations.get(ANNOTATION_TEMPLATE_REVISION, ""))
    if not revision.isdigit():
        return None
    own = deployment["metadata"].get("annotations") or {}
    containers = (template.get("spec") or {}).get("containers") or [{}]
    # Operators before the note was made had one image for all that named none.
    image = own.get(ANNOTATION_DEFAULT_IMAGE) or containers[0].get("image") or default_image
    return TemplatePin(int(revision), str(image))
