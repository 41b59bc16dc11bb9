"""`graft serve`: manifests made from the command line, then the same as `graft up`."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import yaml

from graft_operator.cli.up import UpOptions, run_up
from graft_operator.constants import API_VERSION, KIND_ADAPTER, KIND_SERVICE

SECRET = "object-store"  # noqa: S105 - a name
_AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION")


@dataclass(frozen=True)
class ServeOptions:
    """What the command line said."""

    model: str
    adapters: tuple[str, ...] = ()
    name: str | None = None
    endpoint: str | None = None


def run_serve(options: ServeOptions, up: UpOptions) -> int:
    """Serve until Ctrl-C, run as `up` says but for its folder; return the exit code.

    Raises:
        LocalModeError: It cannot be served.
        click.UsageError: An adapter is not ``NAME=URI``.
    """
    documents = manifests(options)
    with tempfile.TemporaryDirectory(prefix="graft-serve-") as folder:
        (Path(folder) / "serve.yaml").write_text(yaml.safe_dump_all(documents, sort_keys=False))
        return run_up(replace(up, folder=Path(folder)))


def manifests(options: ServeOptions) -> list[dict[str, Any]]:
    """Return the manifests of what is to be served.

    Raises:
        click.UsageError: An adapter is not ``NAME=URI``.
    """
    uri = as_uri(options.model)
    name = options.name or uri.rstrip("/").rpartition("/")[2]
    ref = {"credentialsSecretRef": {"name": SECRET}} if options.endpoint else {}
    service_name = object_name(name)
    service = _manifest(
        KIND_SERVICE,
        service_name,
        {
            "model": {"uri": uri, "servedName": name, **ref},
            "adapters": {"allowedEndpoints": [options.endpoint] if options.endpoint else []},
        },
    )
    documents = [service]
    for adapter in options.adapters:
        served, equals, source = adapter.partition("=")
        if not (served and equals and source):
            raise click.UsageError(f"--adapter {adapter!r} is not NAME=URI")
        spec = {
            "inferenceServiceRef": {"name": service_name},
            "servedName": served,
            "source": {"uri": as_uri(source), **ref},
        }
        documents.append(_manifest(KIND_ADAPTER, object_name(served), spec))
    if options.endpoint:
        documents.append(_secret(options.endpoint))
    return documents


def as_uri(place: str) -> str:
    """Return a URI as it is, and a path as a ``file://`` URI."""
    return place if "://" in place else Path(place).expanduser().resolve().as_uri()


def object_name(name: str) -> str:
    """Return a name that objects may have."""
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-.") or "model"


def _manifest(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _secret(endpoint: str) -> dict[str, Any]:
    keys = {name: os.environ[name] for name in _AWS if os.environ.get(name)}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET},
        "stringData": {"endpoint": endpoint, **keys},
    }
