"""A new version on its way through its steps, over an API and pods that report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graft_operator.settings import OperatorSettings
from graft_protocol.desired import shard_index, shard_key
from tests.support.kube_api import KubeApi
from tests.support.kube_manifests import adapter, secret, service, serving, shard_name, status
from tests.support.kube_node import KubeNode
from tests.support.kube_operator import run_operator_thread, until

SETTINGS = OperatorSettings(namespaces=("default",), audit_seconds=0.1)


def shares(api: KubeApi) -> list[int]:
    """Return the weights of the versions in the desired set, the least first."""
    stored = api.store.find("configmaps", shard_name("shout"))
    assert stored is not None
    text = stored["data"][shard_key(shard_index("shout"))]
    entries = json.loads(text)["entries"]
    return sorted(entry["weight"] for entry in entries if entry["servedName"] == "shout")


def progress(api: KubeApi) -> tuple[str, str]:
    """Return status and reason of the condition that tells of the steps."""
    conditions = status(api, "loraadapters", "shout")["conditions"]
    (found,) = (one for one in conditions if one["type"] == "RolloutProgressing")
    return found["status"], found["reason"]


def current(api: KubeApi) -> str:
    found: str = status(api, "loraadapters", "shout")["currentRevision"]["uri"]
    return found


def update(api: KubeApi, uri: str, *steps: dict[str, int], **rollout: Any) -> None:
    spec = {"source": {"uri": uri}, "rollout": {"steps": list(steps), **rollout}}
    api.change("loraadapters", "shout", {"spec": spec})


async def test_a_version_goes_through_its_steps_and_waits_for_a_person_where_asked(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path, SETTINGS) as operator:
        await serving(api, operator, "shout")
        update(api, "s3://adapters/ok-2", {"weight": 10, "pauseSeconds": 1}, {"weight": 40})
        await until(operator, lambda: shares(api) == [40, 60])
        assert current(api) == "s3://adapters/ok"
        candidate = status(api, "loraadapters", "shout")["candidateRevision"]
        assert (candidate["weight"], candidate["step"]) == (40, 1)
        api.change("loraadapters", "shout", {"spec": {"rollout": {"promote": candidate["id"]}}})
        await until(operator, lambda: current(api) == "s3://adapters/ok-2")
        await until(operator, lambda: shares(api) == [100])


async def test_a_version_whose_requests_fail_is_taken_out_and_the_one_before_serves(
    api: KubeApi, node: KubeNode, tmp_path: Path
) -> None:
    for manifest in (service(), adapter("shout"), secret()):
        api.create(manifest)
    async with run_operator_thread(api, tmp_path, SETTINGS) as operator:
        await serving(api, operator, "shout")
        update(api, "s3://adapters/errors-30", {"weight": 10})
        await until(operator, lambda: "rejectedRevision" in status(api, "loraadapters", "shout"))
        await until(operator, lambda: shares(api) == [100])
        await until(operator, lambda: progress(api) == ("False", "RolledBack"))
        found = status(api, "loraadapters", "shout")
        assert current(api) == "s3://adapters/ok"
        assert found["rejectedRevision"]["message"] == "30 of 100 requests failed"
        told = {item["type"]: (item["status"], item["reason"]) for item in found["conditions"]}
        assert told["Ready"] == ("True", "Available")
        # Another source is tried again.
        update(api, "s3://adapters/ok-3")
        await until(operator, lambda: current(api) == "s3://adapters/ok-3")
        assert "rejectedRevision" not in status(api, "loraadapters", "shout")
