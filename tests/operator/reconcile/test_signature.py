"""What becomes of a version that serves when the key that signed it is no longer trusted."""

import pytest

from tests.operator.reconcile.test_service import controlling, create, outcome, settled
from tests.operator.reconcile.test_tenancy import entries
from tests.support.local import adapter_document, service_document
from tests.support.objects import DIGEST_1, DIGEST_2
from tests.support.signing import public_pem, signature
from tests.support.store_cluster import StoreCluster

OLD, NEW = "default/shout@111111111111", "default/shout@222222222222"


@pytest.mark.parametrize(
    ("trusted", "current"), [(("ours", "next"), OLD), (("next",), None), (("ours",), OLD)]
)
async def test_a_version_whose_key_is_gone_is_forgotten_once_the_next_one_is_taken(
    trusted: tuple[str, ...], current: str | None
) -> None:
    keys = [public_pem(name=name) for name in trusted]
    source = {"digest": DIGEST_2, "signature": signature(DIGEST_2, name="next")}
    adapter = adapter_document("shout", source=source)
    adapter["status"] = {
        "currentRevision": {
            "id": OLD,
            "digest": DIGEST_1,
            "signature": signature(DIGEST_1, name="ours"),
            "uri": "s3://fake/old",
            "sourceHash": "of-old",
        }
    }
    cluster = StoreCluster()
    async with controlling(cluster) as controller:
        create(cluster, [service_document(adapters={"trustedKeys": keys}), adapter])
        await settled(controller, cluster)
    (stored,) = cluster.store.list_objects("LoraAdapter")
    assert stored["status"].get("currentRevision", {}).get("id") == current
    is_taken = "next" in trusted
    assert outcome(cluster)["LoraAdapter/shout"][2]["Accepted"][0] == str(is_taken)
    assert ("shout" in entries(cluster)) == is_taken
    configs = [item["data"] for item in cluster.store.list_objects("ConfigMap")]
    assert "PUBLIC KEY" not in str(configs), "another key is no rollout"
