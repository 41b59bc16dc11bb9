"""The operator as a process behind a scripted proxy, and an oracle that sees everything.

The nursery of operators lasts for the session, the oracle's watch and the pods for a module, since
pods of other tests have a node of their own; the proxy and the namespace are a test's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.clusters import Cluster
from e2e.kubeconfigs import admin_kubeconfig
from tests.control_plane.conftest import ACCOUNT, Tenant, release, until
from tests.support.fake_runtime import FakeRuntime
from tests.support.loopback_node import LoopbackNode, loopback_node
from tests.support.proof.admin import Admin, administering
from tests.support.proof.api_proxy import ApiProxy, api_proxy
from tests.support.proof.end_state import differences, end_state, is_settled
from tests.support.proof.history import History, Json, Seen
from tests.support.proof.invariants import ALWAYS, Invariant, Violation, violations
from tests.support.proof.nursery import Nursery, Operator, nursery
from tests.support.proof.recorder import Recorder, recording

SLOW = pytest.mark.slow
CONVERGED_SECONDS = 60.0
"""What a busy machine is given; 30 s are promised."""
AUDIT_SECONDS = 0.3
QUIET_AUDITS = 3
ENDED_SECONDS = 90.0


@dataclass(frozen=True)
class Lab:
    """What all tests share."""

    kubeconfig: Path
    recorder: Recorder
    nursery: Nursery
    node: LoopbackNode


@dataclass
class Stand:
    """One namespace, its operator, and what stands between that and the API."""

    lab: Lab
    tenant: Tenant
    admin: Admin
    proxy: ApiProxy
    folder: Path
    kubeconfig: Path
    settings: Json = field(default_factory=dict)
    operator: Operator | None = None
    known: set[Violation] = field(default_factory=set)

    @property
    def namespace(self) -> str:
        return self.tenant.namespace

    def start(self, **settings: Any) -> Operator:
        """Start an operator; the one before must have ended."""
        self.settings.update(settings)
        given = {
            "namespaces": [self.namespace],
            "kubeconfig": str(self.kubeconfig),
            "health_host": "127.0.0.1",
            "health_port": 0,
            "audit_seconds": AUDIT_SECONDS,
            **self.settings,
        }
        self.proxy.operator += 1
        log = self.folder / f"operator-{self.proxy.operator}.log"
        self.operator = self.lab.nursery.start(given, log)
        self.proxy.kill = self.operator.kill
        return self.operator

    def end(self) -> None:
        """End the operator without a word."""
        if self.operator is not None:
            self.operator.kill()
            self.operator.wait(ENDED_SECONDS)

    def history(self) -> History:
        return self.lab.recorder.history(self.namespace, tuple(self.proxy.writes))

    def objects(self) -> list[Seen]:
        """Return what is there now, as the oracle has heard."""
        return list(self.lab.recorder.shelves[self.namespace].objects.values())

    def state(self) -> dict[str, Json]:
        return end_state(self.objects())

    def runtimes(self) -> list[FakeRuntime]:
        """Return the pods that run, by name."""
        pods = [self.lab.node.pods[key] for key in sorted(self.lab.node.pods)]
        mine = (pod.runtime for pod in pods if pod.key.namespace == self.namespace)
        return [runtime for runtime in mine if runtime is not None]

    def find(self, kind: str, name: str) -> Json | None:
        found = [one for one in self.objects() if one.key.kind == kind and one.key.name == name]
        return found[0].object if found else None

    def until(self, ask: Callable[[], Any], what: str, seconds: float = CONVERGED_SECONDS) -> Any:
        """Wait for something while the operator lives; show its log if it does not."""

        def asked() -> Any:
            # Asked first: who has been killed by now was hit before, which is then the answer.
            code = self.operator.code if self.operator else None
            answer = ask()
            assert answer or code is None, f"{code}: {self.operator and self.operator.tail()}"
            return answer

        try:
            return until(asked, what, seconds)
        except AssertionError as error:
            log = self.operator.tail() if self.operator else ""
            raise AssertionError(f"{error}\n{log}") from None

    def settle(self, wanted: Json | None = None) -> None:
        """Wait until all is done, and all is as in another run."""
        self.until(self.is_settled, "all to be done")
        if wanted is not None:
            try:
                self.until(lambda: not differences(wanted, self.state()), "the end state")
            except AssertionError as error:
                lines = "\n".join(differences(wanted, self.state()))
                raise AssertionError(f"{lines}\n{error}") from None

    def survive(
        self, ask: Callable[[], Any], what: str, seconds: float = ENDED_SECONDS
    ) -> list[int]:
        """Wait for something, and start the operator again whenever it ends, as Kubernetes does.

        Returns:
            The exit codes of those that ended.
        """
        codes: list[int] = []

        def asked() -> Any:
            if self.operator is not None and self.operator.code is not None:
                codes.append(self.operator.code)
                self.start()
            return ask()

        try:
            until(asked, what, seconds)
        except AssertionError as error:
            log = self.operator.tail() if self.operator else ""
            raise AssertionError(f"{error}\n{codes}\n{log}") from None
        return codes

    def is_settled(self) -> bool:
        return is_settled(self.objects())

    def is_at(self, wanted: Json) -> bool:
        return is_settled(self.objects()) and not differences(wanted, self.state())

    def rest(self) -> int:
        """Wait until the operator has looked at everything some times without a write.

        Returns:
            How many writes came before that.
        """
        end = time.monotonic() + CONVERGED_SECONDS
        while True:
            writes, audits = len(self.proxy.writes), self.proxy.counts["list pods"]
            self.audited(audits + QUIET_AUDITS)
            if len(self.proxy.writes) == writes:
                return writes
            last = [str(write.call) for write in self.proxy.writes[-6:]]
            assert time.monotonic() < end, f"it goes on writing: {last}"

    def audited(self, count: int) -> None:
        """Wait until the operator has looked at everything so many times."""
        self.until(lambda: self.proxy.counts["list pods"] > count, "audits")

    def news(self, invariants: tuple[Invariant, ...] = ALWAYS) -> list[Violation]:
        """Return what is wrong with the history that was not wrong when last asked."""
        found = set(violations(self.history(), invariants)) - self.known
        self.known |= found
        return sorted(found)


@pytest.fixture(scope="session")
def parents() -> Iterator[Nursery]:
    with nursery() as running:
        yield running


@pytest.fixture(scope="session")
def kinds(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The chart's custom resource definitions, which outlive a release: without them no watch."""
    with release(cluster, tmp_path_factory.mktemp("kinds")):
        pass


@pytest.fixture(scope="module")
def lab(
    cluster: Cluster, kinds: None, parents: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    kubeconfig = tmp_path_factory.mktemp("lab") / "admin.kubeconfig"
    kubeconfig.write_text(admin_kubeconfig(cluster.kubectl))
    with (
        recording(kubeconfig, "graft-cp-") as recorder,
        loopback_node(kubeconfig, recorder.on_report) as node,
    ):
        yield Lab(kubeconfig, recorder, parents, node)


@pytest.fixture
def stand(lab: Lab, tenant: Tenant, tmp_path: Path) -> Iterator[Stand]:
    inside = tenant.cluster.kubectl.within(tenant.operator_namespace)
    token = inside.run("create", "token", ACCOUNT, "--duration=12h").strip()
    path = tmp_path / "proxied.kubeconfig"
    with (
        api_proxy(lab.kubeconfig) as proxy,
        administering(lab.kubeconfig, tenant.namespace, lab.recorder) as admin,
    ):
        path.write_text(proxy.kubeconfig(token))
        found = Stand(lab, tenant, admin, proxy, tmp_path, path)
        yield found
        found.end()
