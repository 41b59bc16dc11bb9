"""All children of a service, in the order in which they must exist."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graft_operator.render.configmaps import config_map, shard_maps
from graft_operator.render.deployment import deployment
from graft_operator.render.exposure import (
    inference_pool,
    network_policy,
    pod_monitor,
    service_account,
)
from graft_operator.render.scaling import autoscaler, disruption_budget
from graft_operator.render.secrets import credential_secrets, token_secret
from graft_operator.render.service import service_manifest
from graft_operator.resources.meta import Manifest
from graft_operator.resources.pin import TemplatePin
from graft_operator.resources.v1alpha1 import InferenceService
from graft_protocol.credentials import Credential
from graft_protocol.desired import Shard


@dataclass(frozen=True)
class Ingredients:
    """What children are made from, besides the service itself."""

    credentials: Mapping[str, Credential]
    token: str
    shards: Iterable[Shard]
    pin: TemplatePin | None
    """None where the pods' template cannot be rendered: the Deployment stays as it is."""
    replicas: int | None
    operator_namespace: str = ""


def children(service: InferenceService, given: Ingredients) -> tuple[Manifest, ...]:
    """Return the children of kinds that every cluster has."""
    before = (
        *credential_secrets(service, given.credentials),
        token_secret(service, given.token),
        *shard_maps(service, given.shards),
        service_manifest(service),
        service_account(service),
        network_policy(service, given.operator_namespace),
    )
    pods = (
        (
            config_map(service, given.pin.revision),
            deployment(service, given.pin, given.replicas),
        )
        if given.pin is not None
        else ()
    )
    after = (disruption_budget(service), autoscaler(service))
    return tuple(item for item in (*before, *pods, *after) if item is not None)


def optional_children(service: InferenceService) -> dict[str, Manifest | None]:
    """Return, by kind, the children of kinds that a cluster may lack; None is not wanted."""
    return {"PodMonitor": pod_monitor(service), "InferencePool": inference_pool(service)}
