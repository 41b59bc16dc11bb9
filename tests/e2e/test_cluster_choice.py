"""Which cluster the stories use: what is given, else what a Docker engine gives, else the lab."""

from pathlib import Path

import pytest

from e2e.cluster import clusters
from e2e.cluster.clusters import Origin


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing installed and no lab; returns the folder of its programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("GRAFT_LAB_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    return folder


def install(programs: Path, name: str, exit_code: int) -> None:
    program = programs / name
    program.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    program.chmod(0o755)


def test_a_machine_with_nothing_becomes_the_lab(programs: Path) -> None:
    assert clusters.origin() is Origin.LAB


def test_kind_is_used_where_a_docker_engine_answers(programs: Path) -> None:
    install(programs, "docker", 0)
    install(programs, "kind", 0)

    assert clusters.origin() is Origin.KIND


def test_a_docker_command_without_an_engine_is_no_reason_for_kind(programs: Path) -> None:
    install(programs, "docker", 1)
    install(programs, "kind", 0)

    assert clusters.origin() is Origin.LAB


def test_a_docker_engine_without_kind_is_not_enough(programs: Path) -> None:
    install(programs, "docker", 0)

    assert clusters.origin() is Origin.LAB


def test_a_given_cluster_comes_before_all(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(programs, "docker", 0)
    install(programs, "kind", 0)
    monkeypatch.setenv("KUBECONFIG", "/somewhere/else")

    assert clusters.origin() is Origin.GIVEN


def test_the_labs_own_kubeconfig_does_not_count_as_given(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "state" / "kubeconfig" / "admin"))

    assert clusters.origin() is Origin.LAB
