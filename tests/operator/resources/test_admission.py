"""What a manifest may say, and what a person reads when it says something else."""

import copy
from typing import Any

import pytest

from graft_operator.errors import InvalidManifestError
from graft_operator.resources.admission import admit, parse
from graft_operator.resources.meta import Manifest
from graft_operator.resources.v1alpha1 import InferenceService, LoraAdapter
from tests.support.objects import DIGEST_1, adapter_manifest, service_manifest


def refusal(manifest: Manifest, old: Manifest | None = None) -> InvalidManifestError:
    with pytest.raises(InvalidManifestError) as caught:
        admit(manifest, old)
    return caught.value


def changed(manifest: Manifest, path: str, value: Any) -> Manifest:
    manifest = copy.deepcopy(manifest)
    *parents, last = path.split(".")
    target = manifest
    for parent in parents:
        target = target[parent]
    target[last] = value
    return manifest


def test_an_unknown_field_is_refused_by_its_path_with_the_name_that_was_meant() -> None:
    error = refusal(changed(adapter_manifest(), "spec.source.url", "s3://b/k"))
    assert error.path == "spec.source.url"
    assert "unknown field; did you mean 'uri'?" in str(error)


def test_an_unknown_field_is_named_before_the_field_that_is_missing_because_of_it() -> None:
    manifest = adapter_manifest()
    manifest["spec"]["source"] = {"url": "s3://b/k"}
    assert refusal(manifest).path == "spec.source.url"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.model.uri", "http://example.test/model"),
        ("spec.model.uri", "s3://bucket/../secret"),
        ("spec.model.uri", "s3://key@bucket/x"),
        ("spec.model.uri", "s3://bucket/x?versionId=1"),
        ("spec.model.uri", "hf://org"),
        ("spec.model.uri", "hf://token@org/repo"),
        ("spec.model.uri", "hf://org/repo@a@b"),
        ("spec.model.uri", "hf://org/repo/deep@v1"),
        ("spec.model.digest", "sha256:1234"),
        ("spec.model.dtype", "float8"),
        ("spec.model.credentialsSecretRef", {"name": "../../other/secrets/keys"}),
        ("spec.model.credentialsSecretRef", {"name": "Keys"}),
        ("spec.replicas", -1),
        ("spec.replicas", "2"),
        ("spec.replicas", 1.5),
        ("spec.engine", {"kvBlocks": 0}),
        ("spec.engine", {"kv_blocks": 1}),
        ("spec.adapters", {"allowedEndpoints": ["127.0.0.1:9000"]}),
        ("spec.adapters", {"allowedNamespaces": {"from": "Some"}}),
        ("spec.runtime", {"env": [{"name": "GRAFT_POD_NAME", "value": "x"}]}),
        ("spec.runtime", {"env": [{"name": "A", "value": "x"}, {"name": "A", "value": "y"}]}),
        ("spec.scheduling", {"topologySpreadConstraints": [{"topologyKey": "zone"}] * 2}),
        ("metadata.name", "Has_Capitals"),
        ("metadata.name", None),
        ("apiVersion", "serving.graft.dev/v1"),
        ("kind", "Deployment"),
    ],
)
def test_a_value_that_cannot_work_is_refused_at_its_path(path: str, value: Any) -> None:
    error = refusal(changed(service_manifest(), path, value))
    assert error.path.startswith(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("servedName", "a/b"),
        ("servedName", "x" * 129),
        ("aliases", ["ok", "not ok"]),
        ("tier", "Disc"),
        ("suspend", "yes"),
        ("drainTimeoutSeconds", -0.1),
        ("drainTimeoutSeconds", 86_401),
        ("drainTimeoutSeconds", "1m"),
        ("access", {"apiKeySecretRefs": [{"name": "a/b"}]}),
        ("inferenceServiceRef", {"name": "tiny", "namespace": "a/b"}),
        ("expiresAt", "2030-02-31T00:00:00Z"),
        ("expiresAt", "2030-01-01T24:30:00Z"),
        ("expiresAt", "2030-01-01"),
    ],
)
def test_an_adapter_field_that_cannot_work_is_refused(field: str, value: Any) -> None:
    assert refusal(adapter_manifest(**{field: value})).path.startswith(f"spec.{field}")


def test_the_service_of_an_adapter_cannot_be_changed() -> None:
    error = refusal(adapter_manifest(service="other"), adapter_manifest())
    assert error.path == "spec.inferenceServiceRef"
    assert "immutable" in str(error)


def test_everything_else_of_an_adapter_can_be_changed() -> None:
    admit(adapter_manifest(uri="s3://b/new", digest=None, suspend=True), adapter_manifest())


def test_defaults_are_filled_in_as_an_api_server_does() -> None:
    stored = admit(service_manifest(), None)
    assert stored["spec"]["replicas"] == 1
    assert stored["spec"]["adapters"]["allowedNamespaces"] == {"from": "Same"}
    assert stored["spec"]["model"] == {"uri": "s3://models/tiny", "dtype": "auto"}
    assert admit(stored, stored) == stored


def test_a_status_that_nobody_can_read_counts_as_empty() -> None:
    manifest = adapter_manifest(status={"currentRevision": {"id": 7}, "readyReplicas": "many"})
    adapter = parse(LoraAdapter, manifest)
    assert adapter.status.current_revision is None
    assert adapter.spec.source.digest == DIGEST_1


@pytest.mark.parametrize(
    "facts",
    [
        {"id": "nonsense", "digest": DIGEST_1},
        {"id": "default/shout@111111111111"},
        {"id": "default/shout@111111111111", "digest": "sha256:1"},
        {"id": "default/shout@111111111111", "digest": DIGEST_1, "weight": 101},
        {"id": "default/shout@111111111111", "digest": DIGEST_1, "stepSince": "yesterday"},
    ],
)
def test_a_version_that_no_entry_could_be_made_from_counts_as_none(facts: Manifest) -> None:
    revision = {"uri": "s3://a/b", "sourceHash": "h", **facts}
    adapter = parse(LoraAdapter, adapter_manifest(status={"currentRevision": revision}))
    assert adapter.status.current_revision is None


def test_a_status_field_of_a_newer_version_is_passed_over() -> None:
    service = service_manifest() | {"status": {"replicas": 2, "somethingNew": {"a": 1}}}
    assert parse(InferenceService, service).status.replicas == 2


def test_what_is_no_json_is_refused_and_not_a_crash() -> None:
    assert "JSON" in str(refusal(changed(service_manifest(), "spec.replicas", {1, 2})))
