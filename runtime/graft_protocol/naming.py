"""Names both planes use: labels, annotations, ports, and where things lie inside a pod."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

API_GROUP = "serving.graft.dev"
FIELD_MANAGER = "graft"

LABEL_SERVICE = f"{API_GROUP}/service"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
ANNOTATION_DESIRED = f"{API_GROUP}/desired"
"""On a pod: ``<set hash>/<attempt>``. Only a nudge; its value is never read by the pod."""
ANNOTATION_TEMPLATE_REVISION = f"{API_GROUP}/template-revision"

HTTP_PORT = 8000
GRPC_PORT = 8001
INTERNAL_PORT = 9000

STATUS_PATH = "/internal/status"
LASTING_HEADER = "x-graft-lasting"
"""Hash of what a report says that requests alone do not change, sent along with it."""
UNLESS_LASTING_HEADER = "x-graft-unless-lasting"
"""Asks for a report only if that hash is another one: counters may be old then."""
NUM_CREDENTIAL_SECRETS = 8

ENV_POD_NAME = "GRAFT_POD_NAME"
ENV_POD_ROOT = "GRAFT_POD_ROOT"


@dataclass(frozen=True)
class PodPaths:
    """Where a pod finds its mounts. In a cluster `root` is ``/``; locally each pod has its own."""

    root: Path = Path("/")

    @property
    def config_file(self) -> Path:
        """The runtime configuration."""
        return self.root / "etc/graft/runtime/runtime.yaml"

    @property
    def adapters_dir(self) -> Path:
        """The projected shards of the desired set."""
        return self.root / "etc/graft/adapters"

    @property
    def credentials_dir(self) -> Path:
        """The projected credential files."""
        return self.root / "etc/graft/credentials"

    @property
    def token_file(self) -> Path:
        """The bearer token of the internal port."""
        return self.root / "etc/graft/internal/token"

    @property
    def claims_dir(self) -> Path:
        """The volume claims that sources may lie on, each under its own name."""
        return self.root / "var/lib/graft/claims"

    @property
    def cache_dir(self) -> Path:
        """The disk cache of models and adapters."""
        return self.root / "var/cache/graft"

    @property
    def run_dir(self) -> Path:
        """Sockets and other files that live as long as the pod."""
        return self.root / "run/graft"
