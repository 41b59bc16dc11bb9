"""A real API server without nodes; the chart's rights; the operator in a thread; pods on loopback.

Needs what `make test-control-plane` brings up. Nodes, if there are any, are cordoned meanwhile: the
pods of these tests belong to `tests.support.loopback_node`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from e2e.cluster import clusters
from e2e.cluster.clusters import Cluster
from e2e.cluster.tools import Kubectl
from e2e.kubeconfigs import account_kubeconfig, admin_kubeconfig
from e2e.release import CHART
from graft_operator.cluster.ports import free_port
from graft_operator.settings import OperatorSettings
from tests.support.kube_operator import OperatorThread
from tests.support.loopback_node import LoopbackNode, loopback_node

T = TypeVar("T")
DEADLINE_SECONDS = 60.0
POLL_SECONDS = 0.05
ACCOUNT = "graft"
GOING = ("--wait=false", "--ignore-not-found")
Json = dict[str, Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run these only when they are asked for: they need a cluster."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.control_plane)


def until(ask: Callable[[], T], what: str, seconds: float = DEADLINE_SECONDS) -> T:
    """Ask until the answer is true in the sense of Python, and return it."""
    end = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < end, f"waited in vain for {what}; last answer {answer!r}"
        time.sleep(POLL_SECONDS)
    return answer


@dataclass(frozen=True)
class Tenant:
    """A namespace that the operator serves, and the operator's place and account."""

    cluster: Cluster
    kubectl: Kubectl
    operator_namespace: str
    kubeconfig: Path
    """Opens the API with no more rights than the chart gives the operator."""

    @property
    def namespace(self) -> str:
        return self.kubectl.namespace

    @property
    def account(self) -> str:
        return f"system:serviceaccount:{self.operator_namespace}:{ACCOUNT}"

    def apply(self, *manifests: Json) -> None:
        self.kubectl.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))

    def find(self, *what: str) -> Json | None:
        listed = self.kubectl.run("get", *what, "--ignore-not-found", "--output", "json")
        return dict(json.loads(listed)) if listed.strip() else None

    def is_ready(self, *what: str) -> bool:
        stored = self.find(*what)
        conditions = (stored or {}).get("status", {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    @contextmanager
    def operator(self, **settings: Any) -> Iterator[OperatorThread]:
        """Run the operator with the chart's rights."""
        given = OperatorSettings(
            namespaces=(self.namespace,),
            kubeconfig=self.kubeconfig,
            health_host="127.0.0.1",
            health_port=free_port(),
        )
        operator = OperatorThread(replace(given, **settings))
        operator.start()
        try:
            yield operator
        finally:
            operator.halt()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A control plane of which no node takes pods."""
    found = clusters.find() if clusters.is_up(node=False) else clusters.up(node=False)
    nodes = found.kubectl.run("get", "nodes", "--output", "name").split()
    for node in nodes:
        found.kubectl.run("cordon", node)
    yield found
    for node in nodes:
        found.kubectl.run("uncordon", node)


@contextmanager
def release(cluster: Cluster, folder: Path, tenants: tuple[str, ...] = ()) -> Iterator[Tenant]:
    """Install the chart for a namespace of its own; the release's operator pod is not wanted.

    Args:
        cluster: Where.
        folder: Takes the operator's kubeconfig.
        tenants: Namespaces, which exist, whose adapters are looked at as well.
    """
    mark = secrets.token_hex(3)
    served, installed = f"graft-cp-{mark}", f"graft-cp-operator-{mark}"
    for namespace in (served, installed):
        cluster.kubectl.run("create", "namespace", namespace)
    claim = ("--take-ownership", "--set", "crds.adopt=true")
    where = ("--namespace", installed)
    values = ["--set", f"serviceNamespaces={{{served}}}"]
    if tenants:
        values += ["--set", f"tenantNamespaces={{{','.join(tenants)}}}"]
    cluster.helm.run("install", "graft", CHART, *where, *values, *claim)
    inside = cluster.kubectl.within(installed)
    inside.run("scale", "deployment/graft", "--replicas=0")
    kubeconfig = folder / f"{installed}.kubeconfig"
    kubeconfig.write_text(account_kubeconfig(inside, ACCOUNT))
    yield Tenant(cluster, cluster.kubectl.within(served), installed, kubeconfig)
    cluster.helm.run("uninstall", "graft", *where)
    cluster.kubectl.run("delete", "namespace", served, installed, *GOING)


@pytest.fixture
def tenant(cluster: Cluster, tmp_path: Path) -> Iterator[Tenant]:
    """A namespace for which the chart is installed."""
    with release(cluster, tmp_path) as installed:
        yield installed


@pytest.fixture
def team(cluster: Cluster) -> Iterator[Kubectl]:
    """A namespace of a tenant."""
    name = f"graft-cp-team-{secrets.token_hex(3)}"
    cluster.kubectl.run("create", "namespace", name)
    yield cluster.kubectl.within(name)
    cluster.kubectl.run("delete", "namespace", name, *GOING)


@pytest.fixture
def neighbour(cluster: Cluster, tmp_path: Path) -> Iterator[Tenant]:
    """Another namespace, of another release of the same name."""
    with release(cluster, tmp_path) as installed:
        yield installed


@pytest.fixture
def node(cluster: Cluster, tmp_path: Path) -> Iterator[LoopbackNode]:
    """What runs the pods."""
    kubeconfig = tmp_path / "admin.kubeconfig"
    kubeconfig.write_text(admin_kubeconfig(cluster.kubectl))
    with loopback_node(kubeconfig) as running:
        yield running


@pytest.fixture
def served(tenant: Tenant, node: LoopbackNode) -> Iterator[Tenant]:
    """The namespace with a running operator."""
    with tenant.operator():
        yield tenant
