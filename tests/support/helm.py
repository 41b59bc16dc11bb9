"""Renders the chart with the real Helm, wherever there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster.paths import Lab
from tests.support.source_tree import ROOT

CHART = ROOT / "charts/graft"
Json = dict[str, Any]


class HelmError(Exception):
    """Helm refused; the text says why."""


@cache
def find_helm() -> str | None:
    """Return the Helm of this machine: that of $PATH, or the one `make cluster` builds."""
    built = Lab().program("helm")
    return shutil.which("helm") or (str(built) if built.exists() else None)


needs_helm = pytest.mark.skipif(
    find_helm() is None, reason="no helm: neither in $PATH nor built by `make cluster`"
)


def run_helm(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run Helm with folders of its own and return what it prints.

    Raises:
        HelmError: It ended with an error.
    """
    helm = find_helm()
    if helm is None:
        raise HelmError("there is no helm")
    with tempfile.TemporaryDirectory() as home:
        folders = {f"HELM_{name}_HOME": f"{home}/{name}" for name in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run(
            [helm, *arguments],
            env={**os.environ, **folders, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise HelmError(done.stderr)
    return done.stdout


def template(
    *settings: str,
    release: str = "graft",
    namespace: str = "graft-system",
    files: Sequence[Path] = (),
) -> list[Json]:
    """Return what an installation would make. Rendered once; not to be changed.

    Args:
        settings: `path=value` pairs in the form of `--set`.
        release: Name of the release.
        namespace: Its namespace.
        files: Files of values.

    Raises:
        HelmError: The values are refused.
    """
    options = [f"--set={setting}" for setting in settings]
    options += [f"--values={file}" for file in files]
    return [*_template(release, f"--namespace={namespace}", *options)]


@cache
def _template(release: str, *options: str) -> tuple[Json, ...]:
    text = run_helm("template", release, str(CHART), *options)
    return tuple(document for document in yaml.load_all(text, yaml.CSafeLoader) if document)


def of_kind(manifests: Sequence[Json], kind: str) -> list[Json]:
    """Return the manifests of one kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]
