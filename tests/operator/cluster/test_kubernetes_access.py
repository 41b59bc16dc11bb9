"""Credentials from a kubeconfig file and from a pod's service account."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio.config import incluster_config

from graft_operator.cluster.kubernetes_access import Access
from graft_operator.errors import AccessError


def kubeconfig(folder: Path, cluster: dict[str, Any], user: dict[str, Any]) -> Path:
    document = {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u"}},
            {"name": "there", "context": {"cluster": "none", "user": "u"}},
        ],
        "current-context": "here",
    }
    path = folder / "config"
    path.write_text(yaml.safe_dump(document))
    return path


async def test_a_token_is_read_from_a_kubeconfig(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, {"server": "http://127.0.0.1:1"}, {"token": "abc"})
    connection = await Access(path, None).connection()
    assert (connection.server, connection.scheme, connection.token) == (
        "http://127.0.0.1:1",
        "Bearer",
        "abc",
    )


async def test_a_changed_token_is_read_anew(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, {"server": "http://127.0.0.1:1"}, {"token": "abc"})
    access = Access(path, None)
    assert (await access.connection()).token == "abc"
    kubeconfig(tmp_path, {"server": "http://127.0.0.1:1"}, {"token": "def"})
    assert (await access.connection()).token == "def"


async def test_the_environment_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kubeconfig(
        tmp_path, {"server": "https://127.0.0.1:1"}, {"username": "u", "password": "p"}
    )
    monkeypatch.setenv("KUBECONFIG", str(path))
    connection = await Access(None, None).connection()
    assert (connection.scheme, connection.server) == ("Basic", "https://127.0.0.1:1")


async def test_a_pod_uses_its_service_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("abc")
    (tmp_path / "ca.crt").write_text("certificate")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    connection = await Access(None, None).connection()
    assert connection.server == "https://[fd00::1]:443"
    assert (connection.scheme, connection.token) == ("Bearer", "abc")
    assert connection.ca_file == str(tmp_path / "ca.crt")


@pytest.mark.parametrize("text", ["", "[]", "a: [", "clusters: 3\ncurrent-context: x\n"])
async def test_a_file_that_is_no_kubeconfig_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(AccessError):
        await Access(path, None).connection()


async def test_missing_files_and_contexts_are_errors(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="does not exist"):
        await Access(tmp_path / "nothing", None).connection()
    path = kubeconfig(tmp_path, {"server": "http://127.0.0.1:1"}, {"token": "abc"})
    for context in ("there", "nowhere"):
        with pytest.raises(AccessError):
            await Access(path, context).connection()


async def test_what_the_watches_cannot_do_is_refused(tmp_path: Path) -> None:
    cluster = {"server": "https://127.0.0.1:1", "tls-server-name": "other"}
    with pytest.raises(AccessError, match="tls-server-name"):
        await Access(kubeconfig(tmp_path, cluster, {"token": "abc"}), None).connection()
