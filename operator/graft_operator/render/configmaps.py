"""The runtime configuration and the shards of the desired set, as ConfigMaps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from graft_operator.render.common import child, child_name
from graft_operator.resources.credentials import credential_key
from graft_operator.resources.meta import Manifest
from graft_operator.resources.quantity import quantity_value
from graft_operator.resources.v1alpha1 import InferenceService
from graft_protocol.config import (
    AdapterSettings,
    CacheSettings,
    EngineSettings,
    ModelSettings,
    RuntimeConfig,
    ServerSettings,
    ServiceIdentity,
)
from graft_protocol.desired import NUM_SHARDS, Shard, shard_key
from graft_protocol.digest import content_hash

CONFIG_FILE = "runtime.yaml"
CONTENT_CONFIG = "runtime-config"
CONTENT_SHARD = "adapters"
HASH_LENGTH = 10

TELLS_DRAIN = 2
"""First revision that names the drain timeout. The pod's grace period is made from it, so a runtime
with another default of its own must not decide."""

_PLAN_ONLY = {"allowed_namespaces", "claims", "tenants", "trusted_keys"}
"""Fields of `spec.adapters` that the runtime never hears of."""
_WHEN_SET = ("allowed_uris", "allow_runtime_loading")
"""Left out while empty, so that services from before keep the configuration they have."""


def runtime_config(service: InferenceService, revision: int) -> RuntimeConfig:
    """Return what the service's pods are told, with only what the spec sets.

    Args:
        service: What to serve.
        revision: Version of the pod template. What is told without the spec asking for it must
            stand behind a new one, as in `pod_template`.
    """
    spec, metadata = service.spec, service.metadata
    model = spec.model.model_dump(exclude_none=True, exclude={"credentials_secret_ref"})
    ref = spec.model.credentials_secret_ref
    if ref is not None:
        model["credential"] = credential_key(metadata.namespace, ref.name)
    model["served_name"] = service.served_name
    adapters = spec.adapters.model_dump(exclude_none=True, exclude=_PLAN_ONLY)
    for name in _WHEN_SET:
        if not adapters[name]:
            del adapters[name]
    server = spec.server.model_dump(exclude_none=True)
    if revision >= TELLS_DRAIN:
        server.setdefault("drain_timeout_seconds", ServerSettings().drain_timeout_seconds)
    return RuntimeConfig(
        service=ServiceIdentity(namespace=metadata.namespace, name=metadata.name),
        model=ModelSettings.model_validate(model),
        engine=EngineSettings.model_validate(_engine(service)),
        adapters=AdapterSettings.model_validate(adapters),
        cache=CacheSettings(max_bytes=spec.cache.max_bytes),
        server=ServerSettings.model_validate(server),
    )


def _engine(service: InferenceService) -> dict[str, Any]:
    engine = service.spec.engine.model_dump(exclude_none=True)
    cpus = service.spec.resources.limits.get("cpu")
    if cpus is not None:
        # A thread per core of the node would have the container throttled for most of its time.
        engine.setdefault("threads", max(1, int(quantity_value(cpus))))
    return engine


def config_text(service: InferenceService, revision: int) -> str:
    """Return the configuration file.

    What nobody set is left out, so that a new default of the runtime is no change of this text.
    """
    document = runtime_config(service, revision).model_dump(
        mode="json", by_alias=True, exclude_unset=True
    )
    return yaml.safe_dump(document, sort_keys=True)


def config_hash(service: InferenceService, revision: int) -> str:
    """Return the hash that names a configuration."""
    return content_hash(config_text(service, revision).encode())[:HASH_LENGTH]


def config_map_name(service: InferenceService, revision: int) -> str:
    """Return the name of the configuration's ConfigMap."""
    return child_name(service, f"runtime-{config_hash(service, revision)}")


def config_map(service: InferenceService, revision: int) -> Manifest:
    """Return the immutable ConfigMap of the configuration."""
    name = config_map_name(service, revision)
    head = child(service, "v1", "ConfigMap", name, content=CONTENT_CONFIG)
    return {**head, "immutable": True, "data": {CONFIG_FILE: config_text(service, revision)}}


def shard_map_name(service: InferenceService, index: int) -> str:
    """Return the name of one shard's ConfigMap."""
    return child_name(service, f"adapters-{index:02d}")


def shard_map_names(service: InferenceService) -> tuple[str, ...]:
    """Return the names of all shards' ConfigMaps."""
    return tuple(shard_map_name(service, index) for index in range(NUM_SHARDS))


def shard_maps(service: InferenceService, shards: Iterable[Shard]) -> list[Manifest]:
    """Return the ConfigMaps of the desired set."""
    return [
        {
            **child(
                service,
                "v1",
                "ConfigMap",
                shard_map_name(service, shard.index),
                content=CONTENT_SHARD,
            ),
            "data": {shard_key(shard.index): shard.to_json()},
        }
        for shard in shards
    ]
