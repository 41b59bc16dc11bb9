"""Names and figures of the control plane that are not part of the contract with the runtime."""

from __future__ import annotations

from typing import Final

from graft_protocol.naming import API_GROUP

API_VERSION: Final = f"{API_GROUP}/v1alpha1"
CATEGORY: Final = "graft"
DEFAULT_NAMESPACE: Final = "default"
MANAGED_BY: Final = "graft"

KIND_SERVICE: Final = "InferenceService"
KIND_ADAPTER: Final = "LoraAdapter"

ANNOTATION_APPLIED: Final = f"{API_GROUP}/applied"
"""On a child: the hash of the manifest that was last applied, so that nothing is written twice."""
ANNOTATION_CONFIG: Final = f"{API_GROUP}/config"
"""On a pod: the hash of the runtime configuration it was started with."""
LABEL_CONTENT: Final = f"{API_GROUP}/content"
"""On a ConfigMap or Secret: which part of a service's state it holds."""

ANNOTATION_DEFAULT_IMAGE: Final = f"{API_GROUP}/default-image"
"""On a Deployment: the image that its pods have if the spec names none."""

TEMPLATE_NEWEST: Final = 3
"""Version of the rendered pod template. A new one never reaches running pods by itself."""
TEMPLATE_OLDEST: Final = TEMPLATE_NEWEST - 2
"""The oldest version that is still rendered, for the pods that have it."""

RESERVED_NAMES: Final = frozenset({"dummy", "tgi"})
"""Model names by which some clients mean the base model."""

MESSAGE_MAX: Final = 512
"""Longest message in a status, characters."""
FAILURES_MAX: Final = 5
"""Distinct failures that a status lists."""
ENDPOINTS_MAX: Final = 16
"""Pod addresses that a service's status lists."""
