"""Credentials for a Kubernetes API: from a kubeconfig file or from the pod's service account.

The only place that finds them; our own client and the watches both ask here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from kubernetes.aio import config as kube_config
from kubernetes.aio.client.configuration import Configuration

from graft_operator.errors import AccessError

ENV_KUBECONFIG = "KUBECONFIG"
ENV_IN_CLUSTER = "KUBERNETES_SERVICE_HOST"
DEFAULT_KUBECONFIG = "~/.kube/config"
UNUSABLE = (
    kube_config.ConfigException,
    yaml.YAMLError,
    OSError,
    # What the loader raises for a document of another shape.
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Connection:
    """What any HTTP client needs to speak to the API."""

    server: str
    scheme: str = ""
    token: str = ""
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    is_verified: bool = True
    proxy_url: str | None = None


class Access:
    """Finds credentials, and finds them anew when they have expired."""

    def __init__(self, kubeconfig: Path | None, context: str | None) -> None:
        self._kubeconfig = kubeconfig
        self._context = context

    async def configuration(self) -> Configuration:
        """Return a client configuration with credentials as they are now.

        Raises:
            AccessError: There are none, or the file cannot be used.
        """
        configuration = Configuration()
        try:
            await self._load(configuration)
        except UNUSABLE as error:
            raise AccessError(f"no access to a Kubernetes API: {error}") from error
        if configuration.tls_server_name:
            # The watches' client cannot send another name than the host's.
            raise AccessError("no access to a Kubernetes API: tls-server-name is not supported")
        return configuration

    async def connection(self) -> Connection:
        """Return the same, as plain values.

        Raises:
            AccessError: There are none, or the file cannot be used.
        """
        configuration = await self.configuration()
        authorization = await configuration.get_api_key_with_prefix("BearerToken") or ""
        scheme, _, token = authorization.strip().partition(" ")
        return Connection(
            server=configuration.host,
            scheme=scheme.capitalize(),
            token=token,
            ca_file=configuration.ssl_ca_cert,
            certificate_file=configuration.cert_file,
            key_file=configuration.key_file,
            is_verified=bool(configuration.verify_ssl),
            proxy_url=configuration.proxy,
        )

    async def _load(self, configuration: Configuration) -> None:
        files = str(self._kubeconfig) if self._kubeconfig else os.environ.get(ENV_KUBECONFIG)
        if not files and os.environ.get(ENV_IN_CLUSTER):
            kube_config.load_incluster_config(client_configuration=configuration)
            return
        files = files or DEFAULT_KUBECONFIG
        if not _any_exists(files):
            raise kube_config.ConfigException(f"{files} does not exist")
        await kube_config.load_kube_config(
            config_file=files,
            context=self._context,
            client_configuration=configuration,
            persist_config=False,
        )


def _any_exists(files: str) -> bool:
    return any(Path(file).expanduser().is_file() for file in files.split(os.pathsep))
