"""The life of revisions in a pod."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from graft_protocol.desired import AdapterEntry
from graft_protocol.reasons import AdapterState, Reason
from graft_runtime.adapters.manager import AdapterManager, Command
from graft_runtime.adapters.revision import Phase
from graft_runtime.ipc.messages import (
    AdapterPrepared,
    AdapterRefused,
    AdapterResidency,
    PrepareAdapter,
    RegisterAdapter,
    ReleaseAdapter,
    ResidencyState,
    UnregisterAdapter,
)


def entry(version: int, name: str = "a", **fields: object) -> AdapterEntry:
    values: dict[str, object] = {
        "revision": f"ns/{name}@{version:012d}",
        "served_name": name,
        "uri": f"s3://b/{name}",
        "digest": f"sha256:{version:064d}",
    }
    return AdapterEntry.model_validate(values | fields)


def prepared(one: AdapterEntry, digest: str | None = None) -> AdapterPrepared:
    return AdapterPrepared(
        one.revision, one.digest or digest or "", 10, 8, ("q_proj",), f"/slots/{one.revision}"
    )


def ready_manager(entries: Iterable[AdapterEntry]) -> AdapterManager:
    """A manager whose engine serves all entries."""
    manager = AdapterManager("pod-0", 60.0)
    manager.loader_started()
    manager.engine_started()
    manager.set_desired(entries, 0.0)
    for one in entries:
        manager.on_prepared(prepared(one))
        manager.on_residency(AdapterResidency(one.revision, "resident"), 0.0)
    list(manager.take_commands())
    return manager


def commands(manager: AdapterManager) -> list[Command]:
    return list(manager.take_commands())


def state(manager: AdapterManager, one: AdapterEntry) -> AdapterState:
    reports = {report.revision: report for report in manager.reports({})}
    return reports[one.revision].state


def test_a_new_entry_is_prepared_registered_and_then_available() -> None:
    one = entry(1)
    manager = AdapterManager("pod-0", 60.0)
    manager.loader_started()
    manager.engine_started()
    manager.set_desired([one], 0.0)
    assert commands(manager) == [PrepareAdapter(one.revision, one.uri, one.digest, None)]
    assert state(manager, one) is AdapterState.DOWNLOADING
    manager.on_prepared(prepared(one))
    assert [type(command) for command in commands(manager)] == [RegisterAdapter]
    assert state(manager, one) is AdapterState.LOADING
    manager.on_residency(AdapterResidency(one.revision, "loading"), 0.0)
    assert state(manager, one) is AdapterState.LOADING
    manager.on_residency(AdapterResidency(one.revision, "resident"), 0.0)
    assert state(manager, one) is AdapterState.AVAILABLE


def test_nothing_is_asked_of_a_loader_that_is_not_there() -> None:
    one = entry(1)
    manager = AdapterManager("pod-0", 60.0)
    manager.set_desired([one], 0.0)
    assert commands(manager) == []
    manager.loader_started()
    assert [type(command) for command in commands(manager)] == [PrepareAdapter]


def test_only_the_named_pod_resolves_an_entry_without_digest() -> None:
    revision = "ns/a@pending-0123"
    mine = entry(1, revision=revision, digest=None, resolver="pod-0")
    theirs = mine.model_copy(update={"resolver": "pod-1"})
    manager = AdapterManager("pod-0", 60.0)
    manager.loader_started()
    manager.set_desired([theirs], 0.0)
    assert commands(manager) == []
    manager.set_desired([mine], 0.0)
    assert commands(manager) == [PrepareAdapter(revision, mine.uri, None, None)]
    manager.on_prepared(prepared(mine, "sha256:" + "1" * 64))
    (report,) = manager.reports({})
    assert report.digest == "sha256:" + "1" * 64
    assert report.state is AdapterState.PENDING
    assert commands(manager) == [], "an unpinned revision must never reach the engine"


def test_a_removed_revision_drains_and_is_forgotten_when_the_engine_lets_go() -> None:
    one = entry(1)
    manager = ready_manager([one])
    manager.set_desired([], 5.0)
    assert commands(manager) == [UnregisterAdapter(one.revision)]
    assert state(manager, one) is AdapterState.DRAINING
    assert manager.expired(64.9) == []
    assert manager.expired(65.0) == [one.revision]
    manager.on_residency(AdapterResidency(one.revision, "removed"), 65.0)
    assert commands(manager) == [ReleaseAdapter(one.revision)]
    assert manager.reports({}) == ()


def test_an_adapters_own_drain_time_counts_instead_of_the_services() -> None:
    now, later, plain = (
        entry(1, "now", drain_timeout_seconds=0),
        entry(2, "later", drain_timeout_seconds=300),
        entry(3, "plain"),
    )
    manager = ready_manager([now, later, plain])
    manager.set_desired([], 5.0)
    assert manager.expired(5.0) == [now.revision]
    assert set(manager.expired(65.0)) == {now.revision, plain.revision}
    assert set(manager.expired(304.9)) == {now.revision, plain.revision}
    assert set(manager.expired(305.0)) == {now.revision, later.revision, plain.revision}


def test_the_drain_time_that_counts_is_the_one_that_was_last_wanted() -> None:
    manager = ready_manager([entry(1)])
    last = entry(1, drain_timeout_seconds=0)
    manager.set_desired([last], 1.0)
    assert commands(manager) == [], "a drain time changes nothing that is loaded"
    manager.set_desired([], 5.0)
    assert manager.expired(5.0) == [last.revision]


def test_a_report_tells_the_share_in_force() -> None:
    one, two = entry(1, weight=90), entry(2, weight=10)
    manager = ready_manager([one, two])
    assert weights(manager) == [90, 10]
    manager.set_desired([one.model_copy(update={"weight": 100})], 5.0)
    assert weights(manager) == [100, 0], "one that drains answers no new request"


def weights(manager: AdapterManager) -> list[int | None]:
    return [report.weight for report in manager.reports({})]


def test_a_revision_wanted_again_while_it_drains_comes_back() -> None:
    one = entry(1)
    manager = ready_manager([one])
    manager.set_desired([], 5.0)
    manager.set_desired([one], 6.0)
    manager.on_residency(AdapterResidency(one.revision, "resident"), 6.0)
    assert state(manager, one) is AdapterState.AVAILABLE
    assert manager.expired(1e9) == []


def test_a_terminal_refusal_is_not_retried_until_the_entry_changes() -> None:
    one = entry(1)
    manager = AdapterManager("pod-0", 60.0)
    manager.loader_started()
    manager.set_desired([one], 0.0)
    commands(manager)
    refusal = AdapterRefused(one.revision, Reason.CHECKSUM_MISMATCH, "no")
    manager.on_refused(refusal, 1.0)
    manager.tick(1e9)
    manager.set_desired([one], 1e9)
    assert commands(manager) == []
    manager.set_desired([entry(1, uri="s3://b/elsewhere")], 1e9)
    assert [type(command) for command in commands(manager)] == [PrepareAdapter]


def test_what_was_damaged_since_it_was_checked_is_made_anew_at_once_and_then_ever_rarer() -> None:
    one, other = entry(1), entry(2, "b")
    manager = ready_manager([one, other])
    lost = AdapterResidency(one.revision, "failed", Reason.MALFORMED_ARTIFACT.value, "damaged")
    manager.on_residency(lost, 10.0)
    assert commands(manager) == [PrepareAdapter(one.revision, one.uri, one.digest, None)]
    assert state(manager, other) is AdapterState.AVAILABLE
    pauses, now = [], 10.0
    for _ in range(3):
        manager.on_prepared(prepared(one))
        assert [type(command) for command in commands(manager)] == [RegisterAdapter]
        manager.on_residency(lost, now)
        assert (state(manager, one), commands(manager)) == (AdapterState.FAILED, [])
        deadline = manager.next_deadline()
        assert deadline is not None
        pauses.append(deadline - now)
        now = deadline
        manager.tick(now)
        assert [type(command) for command in commands(manager)] == [PrepareAdapter]
    assert all(most / 2 < pause <= most for pause, most in zip(pauses, (2, 4, 8), strict=True))
    manager.on_prepared(prepared(one))
    manager.on_residency(AdapterResidency(one.revision, "resident"), now)
    assert state(manager, one) is AdapterState.AVAILABLE
    manager.on_residency(lost, now)
    assert state(manager, one) is AdapterState.DOWNLOADING


def test_a_new_engine_gets_every_prepared_adapter_and_no_other() -> None:
    served, fetching = entry(1), entry(2, "b")
    manager = ready_manager([served])
    manager.set_desired([served, fetching], 0.0)
    commands(manager)
    manager.engine_stopped()
    assert state(manager, served) is AdapterState.LOADING
    manager.engine_started()
    assert [command.revision for command in commands(manager)] == [served.revision]


def test_a_new_loader_takes_up_what_the_old_one_had_in_hand() -> None:
    served, fetching = entry(1), entry(2, "b")
    manager = ready_manager([served])
    manager.set_desired([served, fetching], 0.0)
    commands(manager)
    manager.loader_stopped()
    manager.loader_started()
    assert [command.revision for command in commands(manager)] == [fetching.revision]


def test_readiness_waits_for_required_revisions_only() -> None:
    required, optional = entry(1, required_for_readiness=True), entry(2, "b")
    manager = AdapterManager("pod-0", 60.0)
    manager.loader_started()
    manager.engine_started()
    manager.set_desired([required, optional], 0.0)
    assert not manager.required_are_available()
    manager.on_prepared(prepared(required))
    manager.on_residency(AdapterResidency(required.revision, "registered"), 0.0)
    assert manager.required_are_available()


class ManagerMachine(RuleBasedStateMachine):
    """Whatever the three processes do, in the end the pod serves exactly the desired set."""

    def __init__(self) -> None:
        super().__init__()
        self.manager = AdapterManager("pod-0", 60.0)
        self.now = 0.0
        self.wanted: dict[str, AdapterEntry] = {}
        self.loader: dict[str, AdapterEntry] | None = None
        self.engine: dict[str, str] | None = None
        self.uris: dict[str, AdapterEntry] = {}

    def deliver(self) -> None:
        for command in self.manager.take_commands():
            match command:
                case PrepareAdapter():
                    assert self.loader is not None, "sent to a loader that is not there"
                    self.loader[command.revision] = self.uris[command.revision]
                case ReleaseAdapter() if self.loader is not None:
                    self.loader.pop(command.revision, None)
                case RegisterAdapter():
                    assert self.engine is not None, "sent to an engine that is not there"
                    self.engine[command.revision] = "registering"
                case UnregisterAdapter() if self.engine is not None:
                    self.engine[command.revision] = "leaving"
                case _:
                    pass

    @rule(versions=st.sets(st.integers(1, 6), max_size=4))
    def change_desired(self, versions: set[int]) -> None:
        self.wanted = {one.revision: one for one in map(entry, versions)}
        self.uris |= self.wanted
        self.manager.set_desired(self.wanted.values(), self.now)
        self.deliver()

    @precondition(lambda self: self.loader is None)
    @rule()
    def start_loader(self) -> None:
        self.loader = {}
        self.manager.loader_started()
        self.deliver()

    @precondition(lambda self: self.loader is not None)
    @rule()
    def kill_loader(self) -> None:
        self.loader = None
        self.manager.loader_stopped()
        self.deliver()

    @precondition(lambda self: self.engine is None)
    @rule()
    def start_engine(self) -> None:
        self.engine = {}
        self.manager.engine_started()
        self.deliver()

    @precondition(lambda self: self.engine is not None)
    @rule()
    def kill_engine(self) -> None:
        self.engine = None
        self.manager.engine_stopped()
        self.deliver()

    @precondition(lambda self: self.loader)
    @rule(data=st.data(), refused=st.sampled_from([None, Reason.SOURCE_UNAVAILABLE]))
    def loader_answers(self, data: st.DataObject, refused: Reason | None) -> None:
        assert self.loader is not None
        name = data.draw(st.sampled_from(sorted(self.loader)))
        one = self.loader.pop(name)
        if refused is None:
            self.manager.on_prepared(prepared(one))
        else:
            self.manager.on_refused(AdapterRefused(name, refused, "later"), self.now)
        self.deliver()

    @precondition(lambda self: self.engine)
    @rule(data=st.data())
    def engine_answers(self, data: st.DataObject) -> None:
        assert self.engine is not None
        name = data.draw(st.sampled_from(sorted(self.engine)))
        if self.engine[name] == "leaving":
            del self.engine[name]
            self.manager.on_residency(AdapterResidency(name, "removed"), self.now)
        else:
            self.engine[name] = "resident"
            self.manager.on_residency(AdapterResidency(name, "resident"), self.now)
        self.deliver()

    @precondition(lambda self: self.engine)
    @rule(data=st.data())
    def engine_loses(self, data: st.DataObject) -> None:
        assert self.engine is not None
        name = data.draw(st.sampled_from(sorted(self.engine)))
        if self.engine[name] != "leaving":
            self.engine[name] = "failed"
            reason = Reason.MALFORMED_ARTIFACT.value
            self.manager.on_residency(AdapterResidency(name, "failed", reason, "lost"), self.now)
        self.deliver()

    @rule()
    def time_passes(self) -> None:
        self.now += 100.0
        self.manager.tick(self.now)
        self.deliver()

    @invariant()
    def what_serves_is_wanted_and_in_the_engine(self) -> None:
        for one in self.manager.revisions():
            if one.phase is Phase.SERVING:
                assert one.entry.revision in self.wanted
                assert self.engine is not None
                assert self.engine[one.entry.revision] in ("resident", "registering")

    def teardown(self) -> None:
        if self.loader is None:
            self.start_loader()
        if self.engine is None:
            self.start_engine()
        for _ in range(50):
            self.now += 100.0
            self.manager.tick(self.now)
            self.deliver()
            for name in sorted(self.loader or {}):
                self.manager.on_prepared(prepared((self.loader or {}).pop(name)))
            self.deliver()
            for name, place in sorted((self.engine or {}).items()):
                event: ResidencyState = "removed" if place == "leaving" else "resident"
                if place == "leaving":
                    (self.engine or {}).pop(name)
                self.manager.on_residency(AdapterResidency(name, event), self.now)
            self.deliver()
        serving = {one.entry.revision for one in self.manager.revisions() if one.serves}
        assert serving == set(self.wanted)
        assert len(list(self.manager.revisions())) == len(self.wanted)
        assert set(self.engine or {}) == set(self.wanted), "the engine keeps what nobody wants"


TestManagerMachine = ManagerMachine.TestCase
TestManagerMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
