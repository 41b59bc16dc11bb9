"""A new version of unknown size, over an API and pods that find it out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from graft_operator.settings import OperatorSettings
from graft_protocol.reasons import AdapterState
from tests.operator.handlers.test_canary import current, progress, shares, update
from tests.support.fake_runtime import FakeRuntime
from tests.support.kube_api import KubeApi
from tests.support.kube_manifests import ENDPOINT, adapter, revisions, secret, service, serving
from tests.support.kube_node import KubeNode
from tests.support.kube_operator import run_operator_thread, until

SETTINGS = OperatorSettings(namespaces=("default",), audit_seconds=0.1)
LIMITED = {"allowedEndpoints": [ENDPOINT], "tenants": [{"maxBytes": 2000}]}


async def test_a_version_is_measured_before_anybody_meets_it(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(adapters=LIMITED, replicas=2), adapter("shout"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path, SETTINGS) as operator:
        await serving(api, operator, "shout")
        (first,) = revisions(api, "shout")
        answering = note_who_answers(node)

        update(api, "s3://adapters/bytes-9000")
        await until(operator, lambda: progress(api) == ("False", "QuotaExceeded"))
        await until(operator, lambda: revisions(api, "shout") == [first])
        assert set(answering) == {first}
        assert current(api) == "s3://adapters/ok"

        update(api, "s3://adapters/bytes-1500")
        await until(operator, lambda: current(api) == "s3://adapters/bytes-1500")
        await until(operator, lambda: shares(api) == [100])


def note_who_answers(node: KubeNode) -> list[str | None]:
    """Return what grows by who answers on a pod at the moment in which it has another version."""
    answering: list[str | None] = []

    def note(runtime: FakeRuntime, _revision: str, state: AdapterState | None) -> None:
        if state is AdapterState.AVAILABLE:
            answering.append(runtime.which("shout"))

    for pod in node.pods.values():
        assert pod.runtime is not None
        pod.runtime.on_report = partial(note, pod.runtime)
    return answering
