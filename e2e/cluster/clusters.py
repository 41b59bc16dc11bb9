"""Which cluster the tests use: the one KUBECONFIG names, kind's, or the lab's own.

The only module that knows all three. `make cluster` and the stories' fixtures ask it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from e2e.cluster import addons, kind, lab
from e2e.cluster.control_plane import PROCESSES as CONTROL_PLANE
from e2e.cluster.errors import LabError
from e2e.cluster.node import PROCESSES as NODE
from e2e.cluster.paths import CONTEXT, Lab
from e2e.cluster.processes import Processes
from e2e.cluster.tools import Helm, Kubectl, run_tool

OPERATOR_IMAGE = "localhost/graft-operator:dev"
RUNTIME_IMAGE = "localhost/graft-runtime:dev"


class Origin(StrEnum):
    """Where a cluster comes from."""

    GIVEN = "given"
    KIND = "kind"
    LAB = "lab"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that tests may use, and how to reach it."""

    origin: Origin
    environment: Mapping[str, str] = field(repr=False)
    context: str
    operator_image: str
    runtime_image: str

    @property
    def kubectl(self) -> Kubectl:
        """The cluster's kubectl."""
        return Kubectl(self.environment, self.context)

    @property
    def helm(self) -> Helm:
        """The cluster's Helm."""
        return Helm(self.environment, self.context)


def origin() -> Origin:
    """Decide where the cluster comes from."""
    if os.environ.get("KUBECONFIG", str(Lab().admin_kubeconfig)) != str(Lab().admin_kubeconfig):
        return Origin.GIVEN
    # A lab that is up goes on being used, also when somebody starts a Docker engine beside it.
    if not Processes(Lab()).running() and kind.is_possible():
        return Origin.KIND
    return Origin.LAB


def find() -> Cluster:
    """Return the cluster, without asking whether it is up.

    Raises:
        LabError: KUBECONFIG's context is not one that tests may use.
    """
    where = origin()
    environment, context = _target(where)
    _refuse_others(context)
    return Cluster(
        where,
        environment,
        context,
        os.environ.get("GRAFT_OPERATOR_IMAGE") or OPERATOR_IMAGE,
        os.environ.get("GRAFT_RUNTIME_IMAGE") or RUNTIME_IMAGE,
    )


def up(*, node: bool = True) -> Cluster:
    """Bring the cluster up, or find it up."""
    cluster = find()
    match cluster.origin:
        case Origin.LAB:
            lab.up(Lab(), node=node)
        case Origin.KIND:
            kind.up()
        case Origin.GIVEN:
            cluster.kubectl.run("version")
            if node:
                addons.add_store(cluster.kubectl, addons.PUBLIC_STORE_IMAGE, kind.DATA)
    return cluster


def down(*, purge: bool = False) -> None:
    """Take the cluster down; of a given cluster, take away what was added to it."""
    match origin():
        case Origin.LAB:
            lab.purge(Lab()) if purge else lab.down(Lab())
        case Origin.KIND:
            kind.down()
        case Origin.GIVEN:
            find().kubectl.run("delete", "namespace", addons.STORE_NAMESPACE, "--ignore-not-found")


def is_up(*, node: bool = True) -> bool:
    """Tell whether the cluster is up as far as wanted."""
    if origin() is not Origin.LAB:
        return find().kubectl.succeeds("version")
    return {*CONTROL_PLANE, *(NODE if node else ())} <= set(Processes(Lab()).running())


def _target(where: Origin) -> tuple[Mapping[str, str], str]:
    match where:
        case Origin.LAB:
            return Lab().environment, CONTEXT
        case Origin.KIND:
            return kind.environment(), kind.CONTEXT
        case Origin.GIVEN:
            current = run_tool(("kubectl", "config", "current-context"), os.environ)
            return dict(os.environ), current.strip()


def _refuse_others(context: str) -> None:
    """Tests create and delete: never in a cluster that nobody meant for them."""
    allowed = os.environ.get("GRAFT_E2E_CONTEXT", "")
    if context in (CONTEXT, allowed) or re.fullmatch(r"kind-[a-z0-9.-]+", context):
        return
    raise LabError(
        f"refusing to touch the cluster of context {context!r}: it is neither {CONTEXT} nor kind-*;"
        f" set GRAFT_E2E_CONTEXT={context} if tests may create and delete in it"
    )
