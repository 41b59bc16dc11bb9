"""Where the test cluster keeps its things: a cache that stays, and a state that `down` removes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from e2e.cluster.programs import MODULES, GoModule

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
NODE_NAME = "graft-lab"
BRIDGE = "graftlab0"
CONTEXT = "graft-lab"


def _cache() -> Path:
    return Path(os.environ.get("GRAFT_LAB_CACHE") or "~/.cache/graft-lab").expanduser().absolute()


def _state() -> Path:
    # Short: unix sockets live in it, and their paths end at 108 bytes. Only a node needs root.
    own = "/var/lib/graft-lab" if os.geteuid() == 0 else f"/tmp/graft-lab-{os.geteuid()}"
    return Path(os.environ.get("GRAFT_LAB_STATE") or own).absolute()


@dataclass(frozen=True, slots=True)
class Lab:
    """The two folders of the test cluster and what lies in them."""

    cache: Path = field(default_factory=_cache)
    """Built programs, the base image, containerd's images. Outlives the cluster."""
    state: Path = field(default_factory=_state)
    """Everything a running cluster writes."""

    def programs(self, module: GoModule) -> Path:
        """Return the folder of one module's programs."""
        return self.cache / "programs" / f"{module.name}-{module.version}"

    def program(self, name: str) -> Path:
        """Return where one program lies, built or not."""
        module = next(module for module in MODULES if name in module.programs)
        return self.programs(module) / name

    @property
    def images(self) -> Path:
        """What containerd stores: images and BuildKit's cache. Kept by `down`, not by `purge`."""
        return self.cache / "images"

    @property
    def admin_kubeconfig(self) -> Path:
        """The kubeconfig for people and tests."""
        return self.kubeconfig("admin")

    def kubeconfig(self, user: str) -> Path:
        """Return where a user's kubeconfig lies."""
        return self.state / "kubeconfig" / user

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.state / "pki"

    @property
    def config(self) -> Path:
        """Configuration files of the components."""
        return self.state / "config"

    @property
    def containerd_socket(self) -> Path:
        """Where containerd listens."""
        return self.state / "containerd.sock"

    @property
    def buildkit_socket(self) -> Path:
        """Where buildkitd listens."""
        return self.state / "buildkitd.sock"

    @property
    def exports(self) -> dict[str, str]:
        """What a shell needs to talk to the cluster: `make cluster-env` prints it."""
        folders = [str(self.programs(module)) for module in MODULES]
        return {
            "KUBECONFIG": str(self.admin_kubeconfig),
            "CONTAINERD_ADDRESS": str(self.containerd_socket),
            "CONTAINERD_NAMESPACE": "k8s.io",
            "CONTAINER_RUNTIME_ENDPOINT": f"unix://{self.containerd_socket}",
            "BUILDKIT_HOST": f"unix://{self.buildkit_socket}",
            # Helm's own files go where the cluster's go, not into the home folder.
            **{f"HELM_{kind}_HOME": f"{self.state}/helm" for kind in ("CACHE", "CONFIG", "DATA")},
            "PATH": os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)]),
        }

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the cluster's programs."""
        return {**os.environ, **self.exports}
