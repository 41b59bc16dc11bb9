"""What becomes of a version that serves when the key that signed it is no longer trusted."""

import pytest

from graft_operator.resources.meta import Manifest
from tests.operator.reconcile.test_service import (
    controlling,
    create,
    list_all,
    outcome,
    settled,
)
from tests.operator.reconcile.test_tenancy import entries
from tests.support.local import adapter_document, service_document
from tests.support.objects import DIGEST_1, DIGEST_2
from tests.support.signing import public_pem, signature
from tests.support.store_cluster import StoreCluster

OLD, NEW = "default/shout@111111111111", "default/shout@222222222222"


def trusting(*names: str) -> Manifest:
    keys = [public_pem(name=name) for name in names]
    return service_document(adapters={"trustedKeys": keys})


def updated(new_signature: str | None) -> Manifest:
    """Return an adapter whose first version serves when its source is changed."""
    signed = {} if new_signature is None else {"signature": new_signature}
    adapter = adapter_document("shout", source={"digest": DIGEST_2, **signed})
    current = {
        "id": OLD,
        "digest": DIGEST_1,
        "signature": signature(DIGEST_1, name="ours"),
        "uri": "s3://fake/old",
        "sourceHash": "of-old",
    }
    return {**adapter, "status": {"currentRevision": current}}


def stored(cluster: StoreCluster) -> Manifest:
    (adapter,) = cluster.store.list_objects("LoraAdapter")
    return adapter


@pytest.mark.parametrize(
    ("trusted", "current", "served"),
    [
        (("ours", "next"), OLD, True),
        (("next",), None, True),
        (("ours",), OLD, True),
        (("theirs",), OLD, False),
    ],
)
async def test_a_version_whose_key_is_gone_is_forgotten_once_the_next_one_is_taken(
    trusted: tuple[str, ...], current: str | None, served: bool
) -> None:
    cluster = StoreCluster()
    async with controlling(cluster) as controller:
        create(cluster, [trusting(*trusted), updated(signature(DIGEST_2, name="next"))])
        await settled(controller, cluster)
    assert stored(cluster)["status"].get("currentRevision", {}).get("id") == current
    assert outcome(cluster)["LoraAdapter/shout"][2]["Accepted"][0] == str(served)
    assert ("shout" in entries(cluster)) == served
    configs = [item["data"] for item in cluster.store.list_objects("ConfigMap")]
    assert "PUBLIC KEY" not in str(configs), "another key is no rollout"


@pytest.mark.parametrize("bad", [None, "AAAA"])
async def test_another_operator_comes_to_the_same_about_a_version_that_nobody_signed(
    bad: str | None,
) -> None:
    cluster = StoreCluster()
    create(cluster, [trusting("ours"), updated(bad)])
    seen = []
    for _ in range(2):
        async with controlling(cluster) as controller:
            list_all(cluster, controller)
            await settled(controller, cluster)
        entry = entries(cluster)["shout"]
        assert (entry.digest, entry.weight) == (DIGEST_1, 100)
        told = outcome(cluster)["LoraAdapter/shout"][2]
        assert told["Accepted"][:2] == ("True", "Accepted")
        assert told["RolloutProgressing"][:2] == ("False", "SignatureInvalid")
        assert told["RolloutProgressing"][2].startswith(f"{NEW}: ")
        seen.append((stored(cluster)["status"], outcome(cluster), len(cluster.writes)))
    assert seen[0] == seen[1]

    service = cluster.store.list_objects("InferenceService")[0]
    spec = trusting("next")["spec"]
    cluster.store.restore({**service, "spec": spec})
    async with controlling(cluster) as controller:
        list_all(cluster, controller)
        await settled(controller, cluster)
    assert entries(cluster) == {}
    accepted = outcome(cluster)["LoraAdapter/shout"][2]["Accepted"]
    assert accepted[:2] == ("False", "SignatureInvalid")
