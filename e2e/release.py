"""The chart, installed and removed with Helm as docs/install.md says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from e2e.cluster.clusters import Cluster
from e2e.cluster.paths import REPOSITORY
from e2e.cluster.processes import wait_until

CHART = str(REPOSITORY / "charts" / "graft")


@dataclass(frozen=True, slots=True)
class Release:
    """A release of the chart in a namespace of its own."""

    cluster: Cluster
    namespace: str
    serves: tuple[str, ...]
    name: str = "graft"

    def install(self, *flags: str) -> str:
        """Install and wait until the operator is Ready; return what Helm says to do next."""
        # An earlier story's release may have left the CRDs; this one takes them over.
        claim = ("--take-ownership", "--set", "crds.adopt=true")
        return self._run("install", self.name, CHART, "--wait", *self._values(), *claim, *flags)

    def upgrade(self, *flags: str) -> str:
        """Change values and wait until the operator is Ready again."""
        keep = ("--reset-then-reuse-values", "--wait")
        return self._run("upgrade", self.name, CHART, *keep, *flags)

    def rollback(self) -> None:
        """Go back to the values before the last change."""
        self._run("rollback", self.name, "--wait")

    def uninstall(self) -> None:
        """Take the release away."""
        self._run("uninstall", self.name, "--wait")

    @property
    def deployment(self) -> str:
        """The operator's Deployment, as kubectl names it."""
        name = self.name if "graft" in self.name else f"{self.name}-graft"
        return f"deployment/{name}"

    def operator_pod(self) -> dict[str, Any]:
        """Return the one pod of the operator, once no other is there."""
        inside = self.cluster.kubectl.within(self.namespace)
        listed = ("pods", "-l", f"app.kubernetes.io/instance={self.name}")
        wait_until(lambda: len(inside.get(*listed)["items"]) == 1, "one operator", seconds=60)
        (pod,) = inside.get(*listed)["items"]
        return dict(pod)

    def scale(self, replicas: int) -> None:
        """Stop the operator (0) or start it (1), and wait until that is done."""
        inside = self.cluster.kubectl.within(self.namespace)
        inside.run("scale", self.deployment, f"--replicas={replicas}")
        if replicas:
            inside.run("rollout", "status", self.deployment, "--timeout=90s")
        else:
            labels = f"app.kubernetes.io/instance={self.name}"
            inside.run("wait", "pod", "-l", labels, "--for=delete", "--timeout=90s")

    def _values(self) -> Sequence[str]:
        values = ["--set", f"serviceNamespaces={{{','.join(self.serves)}}}"]
        images = {"image": self.cluster.operator_image, "runtime.image": self.cluster.runtime_image}
        for field, image in images.items():
            repository, _, tag = image.rpartition(":")
            values += ["--set", f"{field}.repository={repository}", "--set", f"{field}.tag={tag}"]
        return values

    def _run(self, *arguments: str) -> str:
        return self.cluster.helm.run(*arguments, "--namespace", self.namespace, seconds=180)
