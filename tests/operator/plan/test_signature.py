"""Which adapters and versions a service takes that asks for signatures."""

from typing import Any

import pytest

from graft_operator.errors import InvalidManifestError
from graft_operator.plan.accept import AcceptContext, Verdict, accept_adapters
from graft_operator.plan.desired import desired_shards
from graft_operator.plan.public_key import has_signed
from graft_operator.plan.rollout import advance, wanted_revision
from graft_operator.plan.signature import unusable_keys, without_revision
from graft_operator.resources.v1alpha1 import InferenceService, LoraAdapter
from graft_protocol.reasons import Reason
from tests.support.objects import (
    DIGEST_1,
    DIGEST_2,
    make_adapter,
    make_pod,
    make_service,
    revision_report,
)
from tests.support.signing import public_pem, signature

USABLE = ("P-256", "P-384", "P-521", "RSA-2048")
OLD, NEW = "default/shout@111111111111", "default/shout@222222222222"


def trusting(*pems: str, **adapters: Any) -> InferenceService:
    return make_service(adapters={"trustedKeys": list(pems), **adapters})


def verdict(service: InferenceService, adapter: LoraAdapter) -> Verdict:
    return accept_adapters(service, [adapter], AcceptContext())[adapter.key]


def shares(service: InferenceService, adapter: LoraAdapter) -> dict[str | None, int]:
    """Return the weight of each digest in the desired set."""
    verdicts = accept_adapters(service, [adapter], AcceptContext())
    shards = desired_shards([adapter], verdicts, [make_pod()])
    return {entry.digest: entry.weight for shard in shards for entry in shard.entries}


def updated(old_key: str, new_key: str, **status: Any) -> LoraAdapter:
    """Return an adapter whose first version serves while its second comes in."""
    current = {
        "id": OLD,
        "digest": DIGEST_1,
        "uri": "s3://adapters/v1",
        "sourceHash": "of-v1",
        "signature": signature(DIGEST_1, name=old_key),
    }
    return make_adapter(
        uri="s3://adapters/v2",
        digest=DIGEST_2,
        signature=signature(DIGEST_2, name=new_key),
        status={"currentRevision": current, **status},
    )


def test_without_keys_nothing_is_asked_for() -> None:
    assert verdict(make_service(), make_adapter(digest=None)).is_accepted
    assert verdict(make_service(), make_adapter(signature="AAAA")).is_accepted


@pytest.mark.parametrize("kind", USABLE)
def test_a_signature_of_the_digest_by_a_trusted_key_lets_an_adapter_in(kind: str) -> None:
    adapter = make_adapter(signature=signature(DIGEST_1, kind))
    assert verdict(trusting(public_pem(kind)), adapter).is_accepted
    one_of_several = trusting(public_pem(name="another"), public_pem(kind))
    assert verdict(one_of_several, adapter).is_accepted


@pytest.mark.parametrize("kind", USABLE)
@pytest.mark.parametrize(("digest", "name"), [(DIGEST_2, "ours"), (DIGEST_1, "another")])
def test_a_signature_of_another_digest_or_by_another_key_does_not(
    kind: str, digest: str, name: str
) -> None:
    found = verdict(
        trusting(public_pem(kind)), make_adapter(signature=signature(digest, kind, name))
    )
    assert found.reason is Reason.SIGNATURE_INVALID
    assert f"signed {DIGEST_1}" in found.message


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ({"digest": None, "signature": "AAAA"}, "there is no spec.source.digest:"),
        ({"signature": None}, "there is no spec.source.signature:"),
        ({"digest": None}, "there is no spec.source.digest and spec.source.signature:"),
    ],
)
def test_who_lacks_what_is_asked_for_is_told_what(source: dict[str, Any], missing: str) -> None:
    found = verdict(trusting(public_pem()), make_adapter(**source))
    assert (found.reason, found.is_accepted) == (Reason.SIGNATURE_INVALID, False)
    assert missing in found.message
    assert "--sign-key" in found.message


@pytest.mark.parametrize("damage", ["AAAA", "A", "AA=", "A" * 1400])
@pytest.mark.parametrize("kind", USABLE)
def test_a_signature_that_is_damaged_is_one_that_nobody_made(kind: str, damage: str) -> None:
    whole = signature(DIGEST_1, kind)
    for text in (damage, whole[:-4], f"{whole[:40]}{'B' if whole[40] == 'A' else 'A'}{whole[41:]}"):
        assert not has_signed(public_pem(kind), DIGEST_1, text)
    found = verdict(trusting(public_pem(kind)), make_adapter(signature=damage))
    assert found.reason is Reason.SIGNATURE_INVALID


@pytest.mark.parametrize(
    ("pem", "problem"),
    [
        (public_pem("Ed25519"), "is Ed25519; keys have to be ECDSA on P-256"),
        (public_pem("RSA-1024"), "is RSA of 1024 bits; keys have to be"),
        (public_pem("secp256k1"), "is ECDSA on secp256k1; keys have to be"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "is no public key"),
    ],
)
def test_a_key_that_cannot_be_used_lets_nobody_in_and_is_named(pem: str, problem: str) -> None:
    adapter = make_adapter(signature=signature(DIGEST_1))
    found = verdict(trusting(pem), adapter)
    assert found.reason is Reason.SIGNATURE_INVALID
    assert f"spec.adapters.trustedKeys[0] {problem}" in found.message
    beside = trusting(public_pem(), pem)
    assert verdict(beside, adapter).is_accepted
    assert unusable_keys(beside).startswith(f"spec.adapters.trustedKeys[1] {problem}")


@pytest.mark.parametrize(
    "pem", ["-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "AAAA", ""]
)
def test_what_is_no_public_key_at_all_is_never_stored(pem: str) -> None:
    with pytest.raises(InvalidManifestError, match=r"spec\.adapters\.trustedKeys\[0\]"):
        trusting(pem)


def test_the_old_version_stands_by_as_long_as_the_key_that_signed_it_is_trusted() -> None:
    adapter = updated("ours", "next")
    rotating = trusting(public_pem(), public_pem(name="next"))
    assert shares(rotating, adapter) == {DIGEST_2: 100, DIGEST_1: 0}
    rotated = trusting(public_pem(name="next"))
    assert shares(rotated, adapter) == {DIGEST_2: 100}
    assert shares(trusting(public_pem()), adapter) == {DIGEST_1: 100}, "the new one's key is gone"
    assert shares(trusting(public_pem(name="another")), adapter) == {}


def test_a_key_that_is_taken_out_takes_the_version_out_that_serves() -> None:
    adapter = make_adapter(signature=signature(DIGEST_1))
    serving = [make_pod(revision_report(OLD))]
    current = advance(adapter, serving).current
    assert current is not None
    assert current.signature == adapter.spec.source.signature
    status = adapter.status.model_copy(update={"current_revision": current})
    served = adapter.model_copy(update={"status": status})
    assert shares(trusting(public_pem()), served) == {DIGEST_1: 100}
    revoked = trusting(public_pem(name="next"))
    assert shares(revoked, served) == {}
    assert verdict(revoked, served).reason is Reason.SIGNATURE_INVALID


def test_a_version_that_is_signed_anew_is_the_same_version() -> None:
    current = {"id": OLD, "digest": DIGEST_1, "uri": "s3://adapters/shout", "signature": "AAAA"}
    source_hash = wanted_revision(make_adapter()).source_hash
    adapter = make_adapter(
        signature=signature(DIGEST_1, name="next"),
        status={"currentRevision": current | {"sourceHash": source_hash}},
    )
    service = trusting(public_pem(name="next"))
    assert shares(service, adapter) == {DIGEST_1: 100}
    versions = advance(adapter, [make_pod(revision_report(OLD))])
    assert versions.current is not None
    assert versions.current.signature == adapter.spec.source.signature


def test_a_version_from_before_signatures_were_asked_for_does_not_serve_on() -> None:
    adapter = updated("ours", "ours")
    current = adapter.status.current_revision
    assert current is not None
    unsigned = current.model_copy(update={"signature": None})
    status = adapter.status.model_copy(update={"current_revision": unsigned})
    before = adapter.model_copy(update={"status": status})
    found = verdict(trusting(public_pem()), before)
    assert (found.is_accepted, found.untrusted) == (True, OLD)
    forgetful = without_revision(before, found.untrusted)
    versions = advance(forgetful, [make_pod(revision_report(OLD))])
    assert versions.current is None
    assert versions.candidate is not None
    assert versions.candidate.id == NEW


def test_nothing_goes_back_to_a_version_that_no_trusted_key_signed() -> None:
    rejected = {
        "id": NEW,
        "sourceHash": wanted_revision(updated("ours", "next")).source_hash,
        "reason": "RolledBack",
        "message": "5 of 5 requests failed",
    }
    adapter = updated("ours", "next", rejectedRevision=rejected)
    both = trusting(public_pem(), public_pem(name="next"))
    assert shares(both, adapter) == {DIGEST_1: 100}
    revoked = trusting(public_pem(name="next"))
    assert shares(revoked, adapter) == {}
    found = verdict(revoked, adapter)
    assert found.reason is Reason.SIGNATURE_INVALID
    assert f"{NEW} was rolled back" in found.message


def test_what_a_status_claims_to_be_the_content_has_to_be_signed_itself() -> None:
    forged = {
        "id": NEW,
        "digest": DIGEST_2,
        "uri": "s3://adapters/shout",
        "sourceHash": wanted_revision(make_adapter()).source_hash,
    }
    adapter = make_adapter(signature=signature(DIGEST_1), status={"candidateRevision": forged})
    assert shares(trusting(public_pem()), adapter) == {}
