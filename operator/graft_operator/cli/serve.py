"""`graft serve`: manifests made from the command line, then the same as `graft up`."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import click
import yaml

from graft_operator.cli.peer_flags import read_environment, read_flags
from graft_operator.cli.up import UpOptions, run_up
from graft_operator.constants import API_VERSION, KIND_ADAPTER, KIND_SERVICE

SECRET = "object-store"  # noqa: S105 - a name
DEFAULT_PORT: Final = 8000
_AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION")


@dataclass(frozen=True)
class ServeOptions:
    """What the command line said."""

    model: str | None
    adapters: tuple[str, ...] = ()
    name: str | None = None
    endpoint: str | None = None
    spec: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """More fields of the service, by section."""
    without_effect: tuple[str, ...] = ()
    """What was asked for and changes nothing."""

    def with_peers(
        self, arguments: Sequence[str], environment: Mapping[str, str], port: int | None
    ) -> tuple[ServeOptions, int]:
        """Return the options and the port, with what other servers' users typed; our own win.

        Args:
            arguments: What is left of the command line.
            environment: Looked at where no model was named.
            port: Our own option.

        Raises:
            click.UsageError: Something cannot be honoured, or there is no model.
        """
        wanted = read_flags(arguments)
        model = self.model or wanted.model
        launched = None if model else read_environment(environment)
        if launched is not None:
            model = launched.model
            wanted.spec = launched.spec | wanted.spec
            wanted.adapters += launched.adapters
            wanted.without_effect += launched.without_effect
            wanted.port = wanted.port if wanted.port is not None else launched.port
        if not model:
            raise click.UsageError("Missing argument 'MODEL'.")
        options = replace(
            self,
            model=model,
            adapters=(*self.adapters, *wanted.adapters),
            name=self.name or wanted.name,
            spec=wanted.spec,
            without_effect=tuple(wanted.without_effect),
        )
        asked = wanted.port if port is None else port
        return options, DEFAULT_PORT if asked is None else asked


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
    assert options.model is not None, "the command line has named one"  # noqa: S101 - ours
    uri = as_uri(options.model)
    name = options.name or uri.rstrip("/").rpartition("/")[2]
    ref = {"credentialsSecretRef": {"name": SECRET}} if options.endpoint else {}
    service_name = object_name(name)
    own: dict[str, dict[str, Any]] = {
        "model": {"uri": uri, "servedName": name, **ref},
        "adapters": {"allowedEndpoints": [options.endpoint] if options.endpoint else []},
    }
    sections = own.keys() | options.spec.keys()
    spec = {each: {**options.spec.get(each, {}), **own.get(each, {})} for each in sections}
    service = _manifest(KIND_SERVICE, service_name, spec)
    documents = [service]
    for adapter in options.adapters:
        served, equals, source = adapter.partition("=")
        if not (served and equals and source):
            raise click.UsageError(f"--adapter {adapter!r} is not NAME=URI")
        declared = {
            "inferenceServiceRef": {"name": service_name},
            "servedName": served,
            "source": {"uri": as_uri(source), **ref},
        }
        documents.append(_manifest(KIND_ADAPTER, object_name(served), declared))
    if options.endpoint:
        documents.append(_secret(options.endpoint))
    return documents


def as_uri(place: str) -> str:
    """Return a URI as it is, a path as a ``file://`` URI, and a name on the model hub as that."""
    if "://" in place:
        return place
    path = Path(place).expanduser()
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        return f"hf://{place}"
    return path.resolve().as_uri()


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
