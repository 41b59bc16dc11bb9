"""Stories create and delete, so they refuse clusters that nobody meant for them."""

import json
from pathlib import Path

import pytest

from e2e.cluster import clusters
from e2e.cluster.clusters import Origin
from e2e.cluster.errors import LabError


@pytest.fixture
def use_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point KUBECONFIG at a cluster of somebody else, and return its context."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps({"current-context": "production"}))
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text("#!/bin/sh\necho ${CONTEXT_OF_TEST}\n")
    kubectl.chmod(0o755)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.setenv("CONTEXT_OF_TEST", "production")
    monkeypatch.setenv("PATH", f"{kubectl.parent}:/bin:/usr/bin")
    monkeypatch.delenv("GRAFT_E2E_CONTEXT", raising=False)
    return "production"


def test_a_given_cluster_of_another_name_is_refused(use_context: str) -> None:
    with pytest.raises(LabError, match="refusing to touch the cluster of context 'production'"):
        clusters.find()


def test_a_context_that_only_looks_like_kinds_is_refused(
    use_context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTEXT_OF_TEST", "production-kind-a")

    with pytest.raises(LabError, match="refusing"):
        clusters.find()


def test_an_explicitly_allowed_context_is_used(
    use_context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFT_E2E_CONTEXT", use_context)

    cluster = clusters.find()

    assert (cluster.origin, cluster.context) == (Origin.GIVEN, "production")


def test_kinds_own_contexts_are_used(use_context: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTEXT_OF_TEST", "kind-graft")

    assert clusters.find().context == "kind-graft"
