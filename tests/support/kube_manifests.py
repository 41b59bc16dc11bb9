"""Manifests that users apply in tests of the operator, and what tests read back."""

from __future__ import annotations

import json
from typing import Any

from graft_protocol.desired import parse_shard, shard_index, shard_key
from tests.support.kube_api import KubeApi
from tests.support.kube_operator import RunningOperator, condition, until
from tests.support.kube_store import Json

API_VERSION = "serving.graft.dev/v1alpha1"
ENDPOINT = "http://127.0.0.1:9555"


def service(namespace: str = "default", **spec: Any) -> Json:
    """Return the InferenceService ``tiny``, whose model is behind the Secret ``keys``."""
    return {
        "apiVersion": API_VERSION,
        "kind": "InferenceService",
        "metadata": {"name": "tiny", "namespace": namespace},
        "spec": {
            "model": {"uri": "s3://models/ok", "credentialsSecretRef": {"name": "keys"}},
            "adapters": {"allowedEndpoints": [ENDPOINT]},
            **spec,
        },
    }


def adapter(name: str, uri: str = "s3://adapters/ok") -> Json:
    """Return a LoraAdapter of ``tiny``."""
    return {
        "apiVersion": API_VERSION,
        "kind": "LoraAdapter",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"inferenceServiceRef": {"name": "tiny"}, "source": {"uri": uri}},
    }


def secret() -> Json:
    """Return the Secret ``keys``."""
    data = {
        "accessKeyId": "YWJj",
        "secretAccessKey": "ZGVm",
        "endpoint": "aHR0cDovLzEyNy4wLjAuMTo5NTU1",
    }
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "data": data}


def shard_name(served: str) -> str:
    """Return the ConfigMap that holds a served name."""
    return f"tiny-adapters-{shard_index(served):02d}"


def revisions(api: KubeApi, served: str) -> list[str]:
    """Return the revisions of a served name in the desired set."""
    stored = api.store.find("configmaps", shard_name(served))
    if stored is None:
        return []
    text = stored["data"][shard_key(shard_index(served))]
    parse_shard(text)
    entries = json.loads(text)["entries"]
    return [entry["revision"] for entry in entries if entry["servedName"] == served]


def status(api: KubeApi, plural: str, name: str) -> Json:
    """Return an object's status."""
    found: Json = (api.store.find(plural, name) or {}).get("status") or {}
    return found


def is_ready(api: KubeApi, name: str, plural: str = "loraadapters") -> bool:
    """Whether an object says that it is ready."""
    return condition(api.store.find(plural, name), "Ready")[0] == "True"


async def serving(api: KubeApi, operator: RunningOperator, *names: str) -> None:
    """Wait until the service and these adapters, which are all, are ready and nothing is left."""

    def is_settled() -> bool:
        found = status(api, "inferenceservices", "tiny")
        adapters = found.get("adapters") or {}
        in_sync = adapters.get("podsInSync") == found.get("replicas")
        all_ready = adapters.get("ready") == adapters.get("registered") == len(names)
        return in_sync and all_ready and is_ready(api, "tiny", "inferenceservices")

    for name in names:
        await until(operator, lambda name=name: is_ready(api, name))  # type: ignore[misc]  # bound now
    await until(operator, is_settled)
