"""What users apply in these tests. The sources are those that the fake runtimes know."""

from __future__ import annotations

from typing import Any

from tests.support.kube_manifests import API_VERSION, ENDPOINT

Json = dict[str, Any]


def service(name: str = "tiny", **spec: Any) -> Json:
    """Return an InferenceService whose model is behind the Secret ``keys``.

    Its pods name a scheduler of their own: the cluster's would write that there is no node for
    them, over the status of those that run on loopback.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "s3://models/ok", "credentialsSecretRef": {"name": "keys"}},
            "adapters": {"allowedEndpoints": [ENDPOINT]},
            "scheduling": {"schedulerName": "loopback"},
            **spec,
        },
    }


def adapter(name: str, uri: str = "s3://adapters/ok", **spec: Any) -> Json:
    """Return a LoraAdapter of ``tiny``."""
    return {
        "apiVersion": API_VERSION,
        "kind": "LoraAdapter",
        "metadata": {"name": name},
        "spec": {"inferenceServiceRef": {"name": "tiny"}, "source": {"uri": uri}, **spec},
    }


def keys() -> Json:
    """Return the Secret ``keys``."""
    data = {"accessKeyId": "abc", "secretAccessKey": "def", "endpoint": ENDPOINT}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "keys"},
        "stringData": data,
    }
