"""Makes the operator a newer one: Python imports this before anything else.

The next revision of the pod template labels its pods, and tells the runtime one thing more.
"""

from __future__ import annotations

from typing import Any

from graft_operator import constants
from graft_protocol.config import RuntimeConfig

NEXT = constants.TEMPLATE_NEWEST + 1
LABEL = "example.com/release"

# Before the rest is imported, which takes these by name.
constants.TEMPLATE_NEWEST = NEXT  # type: ignore[misc]  # what a release to come does in its source
constants.TEMPLATE_OLDEST = NEXT - 2  # type: ignore[misc]  # the same

from graft_operator.render import configmaps  # noqa: E402 - see above

_runtime_config = configmaps.runtime_config


def _next_runtime_config(service: Any, revision: int) -> RuntimeConfig:
    config = _runtime_config(service, revision)
    if revision < NEXT:
        return config
    engine = config.engine.model_copy(update={"max_running": 16})
    return config.model_copy(update={"engine": engine})


configmaps.runtime_config = _next_runtime_config

from graft_operator.render import deployment, pod_template  # noqa: E402 - see above

_pod_template = pod_template.pod_template


def _next_pod_template(service: Any, pin: Any) -> dict[str, Any]:
    template = _pod_template(service, pin)
    if pin.revision >= NEXT:
        template["metadata"]["annotations"][LABEL] = "next"
    return template


pod_template.pod_template = _next_pod_template
deployment.pod_template = _next_pod_template  # type: ignore[attr-defined]  # it took it by name
