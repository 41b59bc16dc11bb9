"""The way from version to version, against pods that fail, restart and lag as they like."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from graft_operator.plan.accept import Names
from graft_operator.plan.desired import adapter_entries
from graft_operator.plan.rollout import advance, wanted_revision
from graft_operator.plan.views import PodView
from graft_operator.resources.admission import parse
from graft_operator.resources.v1alpha1 import LoraAdapter
from graft_protocol.desired import AdapterEntry
from graft_protocol.reasons import AdapterState
from tests.support.objects import (
    DIGEST_1,
    DIGEST_2,
    adapter_manifest,
    make_adapter,
    make_pod,
    revision_report,
)

NAMES = Names("shout")
URIS = ("s3://a/v1", "s3://a/v2", "s3://a/v3")
CONTENT = {uri: f"sha256:{index}{'0' * 63}" for index, uri in enumerate(URIS, start=1)}


def test_the_first_version_is_current_as_soon_as_it_serves() -> None:
    adapter = make_adapter()
    revision = wanted_revision(adapter).id
    before = advance(adapter, [make_pod(revision_report(revision, AdapterState.LOADING))])
    assert (before.current, before.candidate and before.candidate.id) == (None, revision)
    after = advance(adapter, [make_pod(revision_report(revision))])
    assert (after.current and after.current.id, after.candidate) == (revision, None)


def test_the_commit_that_a_pod_read_is_where_the_version_lies_from_then_on() -> None:
    adapter = make_adapter(uri="hf://org/repo@main", digest=None)
    pending = wanted_revision(adapter).id
    origin = "hf://org/repo@0123456789012345678901234567890123456789"
    report = revision_report(pending, AdapterState.PENDING, digest=DIGEST_2, origin=origin)
    wanted = advance(adapter, [make_pod(report)]).wanted
    assert wanted is not None
    assert wanted.uri == origin
    kept = adapter.model_copy(
        update={"status": adapter.status.model_copy(update={"candidate_revision": wanted})}
    )
    assert wanted_revision(kept).uri == origin


def test_the_digest_that_a_pod_found_pins_the_version() -> None:
    adapter = make_adapter(digest=None)
    pending = wanted_revision(adapter).id
    report = revision_report(pending, AdapterState.PENDING, digest=DIGEST_2)
    wanted = advance(adapter, [make_pod(report)]).wanted
    assert wanted is not None
    assert (wanted.id, wanted.digest) == ("default/shout@222222222222", DIGEST_2)


def test_the_same_content_at_another_place_is_no_update() -> None:
    current = {
        "id": "default/shout@111111111111",
        "digest": DIGEST_1,
        "uri": "s3://a",
        "sourceHash": "h",
    }
    adapter = make_adapter(uri="s3://b", status={"currentRevision": current})
    versions = advance(adapter, [make_pod()])
    assert versions.candidate is None
    assert versions.current is not None
    assert versions.current.uri == "s3://b"


class Rollout(RuleBasedStateMachine):
    """A service of two pods, an adapter whose spec changes, and a truth to compare with.

    Each pod holds the entries it last read and the revisions it has loaded. The machine breaks off
    anywhere, as a crash between two writes would.
    """

    @initialize(pinned=st.booleans())
    def begin(self, pinned: bool) -> None:
        self.uri = URIS[0]
        self.pinned = pinned
        self.broken: set[str] = set()
        self.status: dict[str, Any] = {}
        self.entries: list[AdapterEntry] = []
        self.read: list[list[AdapterEntry]] = [[], []]
        self.loaded: list[set[str]] = [set(), set()]
        self.found: list[dict[str, str]] = [{}, {}]
        self.ready = [True, True]
        self.settled = False

    @rule(uri=st.sampled_from(URIS))
    def change_spec(self, uri: str) -> None:
        self.settled &= uri == self.uri
        self.uri = uri

    @rule(uri=st.sampled_from(URIS[1:]), is_broken=st.booleans())
    def break_or_mend_content(self, uri: str, is_broken: bool) -> None:
        (self.broken.add if is_broken else self.broken.discard)(uri)

    @rule()
    def write_shards(self) -> None:
        self.entries = adapter_entries(self.adapter(), NAMES, self.pods())

    @rule()
    def write_status(self) -> None:
        before = self.status.get("currentRevision", {}).get("id")
        versions = advance(self.adapter(), self.pods())
        if before is not None and versions.current is not None and versions.current.id != before:
            ready = [loaded for loaded, ok in zip(self.loaded, self.ready, strict=True) if ok]
            assert all(versions.current.id in loaded for loaded in ready), "moved on too early"
        self.status = {
            key: value.model_dump(mode="json", by_alias=True, exclude_none=True)
            for key, value in (
                ("currentRevision", versions.current),
                ("candidateRevision", versions.candidate),
            )
            if value is not None
        }

    @rule(pod=st.integers(0, 1))
    def pod_reads(self, pod: int) -> None:
        current = self.status.get("currentRevision", {}).get("id")
        served = self.ready[pod] and current in self.loaded[pod]
        self.read[pod] = list(self.entries)
        present = {entry.revision for entry in self.read[pod]}
        self.loaded[pod] &= present
        assert self.loaded[pod] or not served, "the set took the name away from a serving pod"
        self.found[pod] = {k: v for k, v in self.found[pod].items() if k in present}

    @rule(pod=st.integers(0, 1))
    def pod_works(self, pod: int) -> None:
        for entry in self.read[pod]:
            if entry.digest is None and entry.resolver == f"tiny-{pod}":
                self.found[pod][entry.revision] = CONTENT[entry.uri]
            elif entry.digest is not None and entry.uri not in self.broken:
                assert entry.digest == CONTENT[entry.uri]
                self.loaded[pod].add(entry.revision)

    @precondition(lambda self: all(self.ready))
    @rule(pod=st.integers(0, 1))
    def pod_restarts(self, pod: int) -> None:
        self.ready[pod] = False
        self.loaded[pod] = set()
        self.found[pod] = {}

    @rule(pod=st.integers(0, 1))
    def pod_comes_back(self, pod: int) -> None:
        """A restarted pod is ready with what the set asks for, as far as it can be loaded."""
        self.read[pod] = list(self.entries)
        self.pod_works(pod)
        self.ready[pod] = True

    @rule()
    def everything_settles(self) -> None:
        self.broken.clear()
        for _ in range(4):
            self.write_shards()
            for pod in (0, 1):
                self.pod_comes_back(pod)
            self.write_status()
        self.write_shards()
        self.settled = True
        assert [entry.digest for entry in self.entries] == [CONTENT[self.uri]]

    def adapter(self) -> LoraAdapter:
        digest = CONTENT[self.uri] if self.pinned else None
        manifest = adapter_manifest(uri=self.uri, digest=digest, status=self.status)
        return parse(LoraAdapter, manifest)

    def pods(self) -> list[PodView]:
        views = []
        for index in (0, 1):
            reports = [revision_report(item) for item in sorted(self.loaded[index])]
            reports += [
                revision_report(revision, AdapterState.PENDING, digest=digest)
                for revision, digest in self.found[index].items()
            ]
            views.append(make_pod(*reports, name=f"tiny-{index}", ready=self.ready[index]))
        return views

    @invariant()
    def a_version_is_pinned_to_its_own_content(self) -> None:
        for entry in self.entries:
            assert entry.digest in (None, CONTENT[entry.uri])

    @invariant()
    def what_serves_is_never_taken_out_before_its_successor_serves(self) -> None:
        """The entry of the current version stays until the wanted one is on every ready pod."""
        current = self.status.get("currentRevision")
        if current is None:
            return
        fresh = adapter_entries(self.adapter(), NAMES, self.pods())
        assert current["id"] in {entry.revision for entry in fresh}

    @invariant()
    def at_most_one_version_has_a_weight(self) -> None:
        assert sum(entry.weight > 0 for entry in self.entries) <= 1


TestRollout = Rollout.TestCase
TestRollout.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_an_own_chat_template_is_another_content() -> None:
    plain = make_adapter(digest=None)
    spec = plain.spec.model_copy(update={"chat_template": "Adapter"})
    own = plain.model_copy(update={"spec": spec})
    assert wanted_revision(own).id != wanted_revision(plain).id
    (entry,) = adapter_entries(own, NAMES, [])
    assert entry.chat_template is True
    (entry,) = adapter_entries(plain, NAMES, [])
    assert entry.chat_template is None


def test_the_version_before_keeps_the_template_that_it_had() -> None:
    plain = make_adapter()
    current = wanted_revision(plain).model_copy(update={"chat_template": True})
    status = plain.status.model_copy(update={"current_revision": current})
    changed = make_adapter(uri="s3://a/v2", digest=DIGEST_2).model_copy(update={"status": status})
    found = {entry.revision: entry.chat_template for entry in adapter_entries(changed, NAMES, [])}
    assert found == {wanted_revision(changed).id: None, current.id: True}
