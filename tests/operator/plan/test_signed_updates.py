"""What goes on serving while a new version is refused that no trusted key signed."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from graft_operator.plan.accept import AcceptContext, accept_adapters, measured
from graft_operator.plan.conditions import adapter_status, stamped
from graft_operator.plan.desired import adapter_entries
from graft_operator.plan.rollout import advance, wanted_revision
from graft_operator.plan.signature import without_revision
from graft_operator.resources.meta import Manifest
from graft_operator.resources.v1alpha1 import InferenceService, LoraAdapter
from graft_protocol.desired import AdapterEntry
from graft_protocol.reasons import Reason
from graft_protocol.revisions import pinned_revision
from tests.operator.plan.test_signature import NEW, OLD, shares, trusting, verdict
from tests.support.objects import (
    DIGEST_1,
    DIGEST_2,
    NOW,
    make_adapter,
    make_pod,
    make_service,
    revision_report,
)
from tests.support.signing import public_pem, signature

FIRST: dict[str, Any] = {
    "uri": "s3://adapters/v1",
    "digest": DIGEST_1,
    "signature": signature(DIGEST_1),
}
NEXT: dict[str, Any] = {
    "uri": "s3://adapters/v2",
    "digest": DIGEST_2,
    "signature": signature(DIGEST_2),
}
TWIN_OF_1 = f"{DIGEST_1[:-1]}f"
"""Another digest that names the same revision, which has no more than a part of it."""
BAD_NEXT: dict[str, dict[str, Any]] = {
    "no signature": {"signature": None},
    "no digest": {"digest": None},
    "nothing": {"digest": None, "signature": None},
    "the old signature": {"signature": FIRST["signature"]},
    "another's": {"signature": signature(DIGEST_2, name="another")},
    "damaged": {"signature": "AAAA"},
}


def concluded(service: InferenceService, adapter: LoraAdapter) -> dict[str, Any]:
    """Return the status that is stored once the only pod has read the set and done what it says."""
    decided = verdict(service, adapter)
    pinned = [one.revision for one in entries(service, adapter) if one.digest is not None]
    pods = [make_pod(*map(revision_report, pinned))]
    known = without_revision(adapter, decided.untrusted)
    found = measured(decided, known, pods)
    versions = advance(known, pods, NOW, held_back=found.held_back is not None)
    status = adapter_status(known, found, versions, pods, "")
    conditions = stamped(status.conditions, adapter.status.conditions, 1, NOW)
    stored = status.model_copy(update={"conditions": conditions})
    return stored.model_dump(mode="json", by_alias=True, exclude_none=True)


def entries(service: InferenceService, adapter: LoraAdapter) -> list[AdapterEntry]:
    """Return what is in the desired set, for less than the set costs."""
    found = verdict(service, adapter)
    if found.names is None:
        return []
    known, held_back = without_revision(adapter, found.untrusted), found.held_back is not None
    return adapter_entries(known, found.names, [make_pod()], held_back=held_back)


def in_set(service: InferenceService, adapter: LoraAdapter) -> set[str | None]:
    return {entry.digest for entry in entries(service, adapter)}


def told(status: Manifest) -> dict[str, tuple[str, str]]:
    return {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}


def message(status: Manifest, type_: str) -> str:
    (found,) = (one["message"] for one in status["conditions"] if one["type"] == type_)
    return str(found)


def revision_of(digest: str) -> str:
    return pinned_revision("default", "shout", digest)


def serving_first() -> Manifest:
    """Return the status of an adapter whose first version serves."""
    status: Manifest = {}
    for _ in range(2):
        status = concluded(trusting(public_pem()), make_adapter(**FIRST, status=status))
    assert status["currentRevision"]["id"] == OLD
    return status


@pytest.mark.parametrize("bad", BAD_NEXT.values(), ids=BAD_NEXT)
def test_a_new_version_that_is_not_signed_leaves_the_old_one_serving_and_is_told(
    bad: dict[str, Any],
) -> None:
    service, status = trusting(public_pem()), serving_first()
    for _ in range(3):
        adapter = make_adapter(**{**NEXT, **bad}, status=status)
        assert shares(service, adapter) == {DIGEST_1: 100}
        status = concluded(service, adapter)
        assert status["currentRevision"]["id"] == OLD
        candidate = status["candidateRevision"]["id"]
        assert told(status) == {
            "Accepted": ("True", "Accepted"),
            "Resolved": told(status)["Resolved"],
            "Loaded": ("False", "SignatureInvalid"),
            "RolloutProgressing": ("False", "SignatureInvalid"),
            "Ready": ("True", "Available"),
            "Stalled": ("True", "SignatureInvalid"),
        }
        assert message(status, "Ready") == f"{OLD} serves; {candidate}: SignatureInvalid"
        assert message(status, "Loaded").startswith(f"{candidate}: ")
        assert "spec.adapters.trustedKeys" in message(status, "Loaded")
    for _ in range(2):
        status = concluded(service, make_adapter(**NEXT, status=status))
    assert status["currentRevision"]["id"] == NEW
    assert "candidateRevision" not in status


@pytest.mark.parametrize("bad", BAD_NEXT.values(), ids=BAD_NEXT)
def test_what_goes_on_behind_a_refused_version_leaves_with_the_key_that_signed_it(
    bad: dict[str, Any],
) -> None:
    adapter = make_adapter(**{**NEXT, **bad}, status=serving_first())
    revoked = trusting(public_pem(name="next"))
    assert shares(revoked, adapter) == {}
    assert verdict(revoked, adapter).reason is Reason.SIGNATURE_INVALID
    status = concluded(revoked, adapter)
    assert told(status)["Accepted"] == ("False", "SignatureInvalid")
    again = make_adapter(**{**NEXT, **bad}, status=status)
    assert shares(revoked, again) == {}
    assert shares(trusting(public_pem()), again) == {DIGEST_1: 100}


@pytest.mark.parametrize(
    "bad", [None, "AAAA", NEXT["signature"]], ids=["none", "damaged", "the next one's"]
)
@pytest.mark.parametrize("uri", ["s3://adapters/v1", "s3://adapters/moved"])
def test_a_bad_signature_of_what_serves_already_does_not_take_it_out(
    bad: str | None, uri: str
) -> None:
    service, status = trusting(public_pem()), serving_first()
    spec = {**FIRST, "uri": uri, "signature": bad}
    for _ in range(3):
        adapter = make_adapter(**spec, status=status)
        (entry,) = entries(service, adapter)
        assert (entry.digest, entry.uri, entry.weight) == (DIGEST_1, FIRST["uri"], 100)
        status = concluded(service, adapter)
        assert status["currentRevision"]["signature"] == FIRST["signature"]
        assert status["currentRevision"]["uri"] == FIRST["uri"]
        assert "candidateRevision" not in status
        assert told(status)["Loaded"] == ("False", "SignatureInvalid")
        assert told(status)["Ready"] == ("True", "Available")
    revoked = trusting(public_pem(name="next"))
    assert shares(revoked, make_adapter(**spec, status=status)) == {}
    status = concluded(service, make_adapter(**{**FIRST, "uri": uri}, status=status))
    assert status["currentRevision"]["uri"] == uri
    assert told(status)["Loaded"] == ("True", "Available")


def test_content_whose_name_looks_like_that_of_what_serves_is_not_taken_for_it() -> None:
    service, status = trusting(public_pem()), serving_first()
    for _ in range(2):
        adapter = make_adapter(**{**FIRST, "digest": TWIN_OF_1}, status=status)
        assert wanted_revision(adapter).id == OLD
        assert shares(service, adapter) == {DIGEST_1: 100}
        status = concluded(service, adapter)
        assert status["currentRevision"]["digest"] == DIGEST_1
        assert told(status)["Loaded"] == ("False", "SignatureInvalid")


@pytest.mark.parametrize(
    "forged",
    [
        {"signature": None},
        {"signature": "AAAA"},
        {"signature": FIRST["signature"], "digest": DIGEST_2, "id": NEW},
        {"signature": signature(DIGEST_1, name="another")},
    ],
)
def test_what_a_status_claims_to_have_served_has_to_be_signed_itself(
    forged: dict[str, Any],
) -> None:
    status = serving_first()
    status["currentRevision"] |= forged
    adapter = make_adapter(**{**NEXT, "signature": "AAAA"}, status=status)
    assert shares(trusting(public_pem()), adapter) == {}
    assert verdict(trusting(public_pem()), adapter).reason is Reason.SIGNATURE_INVALID


def test_keys_that_come_newly_keep_the_last_version_that_they_signed() -> None:
    unsigned, status = {**NEXT, "signature": None}, serving_first()
    coming = make_adapter(**unsigned, status=status)
    assert shares(make_service(), coming) == {DIGEST_2: 100, DIGEST_1: 0}
    assert shares(trusting(public_pem()), coming) == {DIGEST_1: 100}
    for _ in range(2):
        status = concluded(make_service(), make_adapter(**unsigned, status=status))
    assert status["currentRevision"]["id"] == NEW
    assert shares(trusting(public_pem()), make_adapter(**unsigned, status=status)) == {}


def test_a_version_on_its_way_in_steps_loses_its_share_with_its_key() -> None:
    rollout = {"steps": [{"weight": 20}]}
    spec = {**NEXT, "signature": signature(DIGEST_2, name="next"), "rollout": rollout}
    both, status = trusting(public_pem(), public_pem(name="next")), serving_first()
    for _ in range(2):
        status = concluded(both, make_adapter(**spec, status=status))
    adapter = make_adapter(**spec, status=status)
    assert shares(both, adapter) == {DIGEST_2: 20, DIGEST_1: 80}
    ours = trusting(public_pem())
    assert shares(ours, adapter) == {DIGEST_1: 100}
    status = concluded(ours, adapter)
    assert "weight" not in status["candidateRevision"], "it starts anew when its key is back"


def test_a_version_that_is_not_signed_takes_no_room_from_anybody() -> None:
    def growing(name: str, old: int, new: int, text: str) -> LoraAdapter:
        first, wanted = make_adapter(name, **FIRST), make_adapter(name, **NEXT)
        pairs = (("currentRevision", first, old), ("candidateRevision", wanted, new))
        status = {
            key: wanted_revision(one).model_dump(mode="json", by_alias=True) | {"bytes": size}
            for key, one, size in pairs
        }
        return make_adapter(name, **{**NEXT, "signature": text}, status=status)

    service = trusting(public_pem(), tenants=[{"maxBytes": 100}])
    for text, held in (("AAAA", None), (NEXT["signature"], Reason.QUOTA_EXCEEDED)):
        two = (growing("a", 60, 80, text), growing("b", 20, 40, NEXT["signature"]))
        found = [accept_adapters(service, two, AcceptContext())[one.key].held_back for one in two]
        assert found[0] is None or found[0][0] is Reason.SIGNATURE_INVALID
        assert (found[1][0] if found[1] else None) is held


DIGESTS = tuple(f"sha256:{number}{'0' * 63}" for number in range(1, 4))
TWIN = f"{DIGESTS[0][:-1]}f"
"""Nobody signs it, and its short form is another's."""
KEYS = ("ours", "next")
TRUSTING: dict[tuple[str, ...], InferenceService] = {
    keys: trusting(*(public_pem(name=key) for key in keys))
    for keys in ((), KEYS[:1], KEYS[1:], KEYS)
}
MADE: dict[tuple[str | None, str], str] = {
    (digest, key): signature(digest, name=key) for digest in DIGESTS for key in KEYS
}
SIGNED = st.sampled_from((None, "damaged", *MADE))
"""By which key, and of what."""


class SignedUpdates(RuleBasedStateMachine):
    """A spec, keys and a status that change at any moment.

    Nothing is remembered but what is stored, so that each step may be the first of a new operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.keys: tuple[str, ...] = KEYS[:1]
        self.source: dict[str, Any] = {"uri": "s3://a/0", "digest": DIGESTS[0]}
        self.status: Manifest = {}

    @rule(
        digest=st.sampled_from((*DIGESTS, TWIN)),
        uri=st.sampled_from(("s3://a", "s3://b")),
        signed=SIGNED,
    )
    def change_source(self, digest: str, uri: str, signed: Any) -> None:
        self.source = {"uri": uri, "digest": digest, "signature": text_of(signed)}

    @rule(key=st.sampled_from(KEYS))
    def sign(self, key: str) -> None:
        digest = self.source["digest"] if self.source["digest"] in DIGESTS else DIGESTS[0]
        self.source |= {"digest": digest, "signature": MADE[digest, key]}

    @rule(field=st.sampled_from(("digest", "signature")))
    def drop(self, field: str) -> None:
        self.source[field] = None

    @rule(keys=st.sampled_from(tuple(TRUSTING)))
    def trust(self, keys: tuple[str, ...]) -> None:
        self.keys = keys

    @rule(number=st.integers(0, 2), signed=SIGNED, is_wanted=st.booleans())
    def edit_status(self, number: int, signed: Any, is_wanted: bool) -> None:
        """Claim that a version has served, perhaps as the one that the spec asks for."""
        digest, claimed = DIGESTS[number], "forged"
        if is_wanted:
            claimed = wanted_revision(self.adapter()).source_hash
        forged: Manifest = {"id": revision_of(digest), "digest": digest, "uri": "s3://c"}
        forged |= {"sourceHash": claimed, "signature": text_of(signed)}
        self.status = {**self.status, "currentRevision": forged}

    @rule()
    def conclude(self) -> None:
        self.status = concluded(self.service(), self.adapter())

    @invariant()
    def only_what_a_trusted_key_signed_is_in_the_set(self) -> None:
        texts = {self.source.get("signature"), self.current().get("signature")}
        for digest in in_set(self.service(), self.adapter()) if self.keys else ():
            assert any(is_made(text, digest, self.keys) for text in texts)

    @invariant()
    def what_serves_and_is_signed_stays_whatever_the_spec_asks_for(self) -> None:
        digest, text = self.current().get("digest"), self.current().get("signature")
        if digest is not None and is_made(text, digest, self.keys):
            assert digest in in_set(self.service(), self.adapter())

    @invariant()
    def what_the_spec_asks_for_in_vain_is_told(self) -> None:
        digest, text = self.source["digest"], self.source.get("signature")
        if digest not in (None, wanted_revision(self.adapter()).digest):
            return  # An edited status has it that this digest is another one's.
        if self.keys and (digest is None or not is_made(text, digest, self.keys)):
            status = concluded(self.service(), self.adapter())
            assert ("False", "SignatureInvalid") in told(status).values()

    def service(self) -> InferenceService:
        return TRUSTING[self.keys]

    def adapter(self) -> LoraAdapter:
        return make_adapter(**self.source, status=self.status)

    def current(self) -> Manifest:
        return self.status.get("currentRevision") or {}


def text_of(signed: Any) -> str | None:
    return {None: None, "damaged": "AAAA"}[signed] if signed in (None, "damaged") else MADE[signed]


def is_made(text: str | None, digest: str | None, keys: tuple[str, ...]) -> bool:
    """Whether one of several keys made a signature, as those know who had it made."""
    return text is not None and any(text == MADE.get((digest, key)) for key in keys)


TestSignedUpdates = SignedUpdates.TestCase
TestSignedUpdates.settings = settings(max_examples=150, stateful_step_count=20, deadline=None)
