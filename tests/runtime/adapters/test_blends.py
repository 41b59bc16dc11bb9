"""Weighted sums: what they are called, what they take, who may use them, and when they go."""

from __future__ import annotations

import pytest

from graft_protocol.desired import AdapterEntry
from graft_runtime.adapters.blends import MAX_PARTS, Blends, blend
from graft_runtime.adapters.manager import AdapterManager
from graft_runtime.adapters.revision import Phase, Revision
from graft_runtime.errors import InvalidRequestError, OverloadedError
from graft_runtime.ipc.messages import (
    AdapterPrepared,
    AdapterResidency,
    PrepareAdapter,
    RegisterAdapter,
    SlotPart,
    UnregisterAdapter,
)

KEYS = [f"{number:064x}" for number in range(3)]


def entry(
    name: str, access: tuple[str, ...] | None = None, drain_timeout_seconds: float | None = None
) -> AdapterEntry:
    digest = "sha256:" + f"{ord(name):064x}"[::-1]
    revision = f"ns/{name}@{digest[7:19]}"
    uri = f"s3://b/{name}"
    return AdapterEntry(
        revision=revision,
        served_name=name,
        uri=uri,
        digest=digest,
        access=access,
        drain_timeout_seconds=drain_timeout_seconds,
    )


def prepared(one: AdapterEntry, rank: int) -> AdapterPrepared:
    path = f"/{one.served_name}.slot"
    return AdapterPrepared(one.revision, one.digest or "", 10, rank, ("q_proj",), path)


def revision(name: str, rank: int = 16, access: tuple[str, ...] | None = None) -> Revision:
    one = entry(name, access)
    return Revision(one, Phase.SERVING, prepared(one, rank))


def test_the_same_sum_has_one_name_and_another_has_another() -> None:
    a, b = revision("a"), revision("b")
    first = blend([a, b], (0.5, 0.5), 8)
    assert first == blend([a, b], (0.5, 0.5), 8)
    others = [blend([a, b], (0.5, 0.4), 8), blend([b, a], (0.5, 0.5), 8), blend([a], (1.0,), 8)]
    names = {one.entry.served_name for one in [first, *others]}
    assert len(names) == len({one.entry.revision for one in [first, *others]}) == 4


def test_a_sum_takes_the_pages_of_its_parts() -> None:
    parts = [revision("a", rank=17), revision("b", rank=4)]
    assert len(blend(parts, (1.0, 1.0), 3).parts) == 2
    with pytest.raises(InvalidRequestError, match="3 pages"):
        blend(parts, (1.0, 1.0), 2)
    with pytest.raises(InvalidRequestError, match="at most"):
        blend([revision("a")] * (MAX_PARTS + 1), (1.0,) * (MAX_PARTS + 1), 100)


def test_who_may_use_every_part_may_use_the_sum() -> None:
    open_to_all, two, one = (
        revision("a"),
        revision("b", access=(KEYS[0], KEYS[1])),
        revision("c", access=(KEYS[1], KEYS[2])),
    )
    assert blend([open_to_all], (1.0,), 8).entry.access is None
    assert blend([open_to_all, two], (1.0, 1.0), 8).entry.access == (KEYS[0], KEYS[1])
    assert blend([one, two], (1.0, 1.0), 8).entry.access == (KEYS[1],)


def test_the_longest_unused_sum_goes_unless_it_is_busy() -> None:
    blends = Blends(2)
    assert blends.use("x", set()) is None
    assert blends.use("y", set()) is None
    assert blends.use("x", set()) is None
    assert blends.use("z", set()) == "y"
    assert blends.use("w", {"x"}) == "z"
    with pytest.raises(OverloadedError):
        blends.use("v", {"x", "w"})
    assert blends.use("w", {"x", "w"}) is None


class Pod:
    """A manager whose adapters have all been prepared and registered."""

    def __init__(self, *entries: AdapterEntry) -> None:
        self.manager = AdapterManager("pod-0", 10.0)
        self.manager.loader_started()
        self.manager.engine_started()
        self.manager.set_desired(entries, 0.0)
        for one in entries:
            self.manager.on_prepared(prepared(one, 20))
            self.manager.on_residency(AdapterResidency(one.revision, "registered"), 0.0)
        list(self.manager.take_commands())

    def derive(self, *names: str) -> AdapterEntry:
        found = {one.entry.served_name: one for one in self.manager.revisions()}
        merged = blend([found[name] for name in names], (0.5,) * len(names), 100)
        self.manager.derive(merged.entry, merged.parts)
        return merged.entry


def test_a_sum_is_registered_from_the_files_of_its_parts() -> None:
    pod = Pod(entry("a"), entry("b"))
    merged = pod.derive("a", "b")
    pod.derive("a", "b")  # harmless
    parts = (SlotPart("/a.slot", 0.5), SlotPart("/b.slot", 0.5))
    expected = RegisterAdapter(merged.revision, "", 64, merged=parts)
    assert list(pod.manager.take_commands()) == [expected]
    pod.manager.on_residency(AdapterResidency(merged.revision, "resident"), 1.0)
    pod.manager.engine_stopped()
    pod.manager.engine_started()
    again = [one for one in pod.manager.take_commands() if isinstance(one, RegisterAdapter)]
    assert expected in again


@pytest.mark.parametrize("kept", [(entry("a"),), (entry("a"), entry("b", access=(KEYS[0],)))])
def test_a_sum_goes_when_a_part_goes_or_is_closed(kept: tuple[AdapterEntry, ...]) -> None:
    pod = Pod(entry("a"), entry("b"))
    merged = pod.derive("a", "b")
    pod.manager.on_residency(AdapterResidency(merged.revision, "resident"), 1.0)
    pod.manager.set_desired((entry("a"), entry("b")), 2.0)
    list(pod.manager.take_commands())
    pod.manager.set_desired(kept, 3.0)
    assert UnregisterAdapter(merged.revision) in list(pod.manager.take_commands())


@pytest.mark.parametrize("is_loaded", [True, False])
def test_a_sum_is_ended_as_soon_as_the_part_that_may_go_on_least(is_loaded: bool) -> None:
    parts = entry("a", drain_timeout_seconds=2), entry("b")
    pod = Pod(*parts)
    merged = pod.derive("a", "b")
    pod.manager.on_residency(AdapterResidency(merged.revision, "resident"), 1.0)
    if not is_loaded:
        failed = AdapterResidency(parts[0].revision, "failed", "InsufficientCapacity", "no room")
        pod.manager.on_residency(failed, 1.0)
    pod.manager.set_desired(parts[1:], 3.0)
    assert merged.revision not in pod.manager.expired(4.9)
    assert merged.revision in pod.manager.expired(5.0)


def test_a_sum_that_fails_is_not_fetched_but_tried_again_when_asked_for() -> None:
    pod = Pod(entry("a"), entry("b"))
    merged = pod.derive("a", "b")
    list(pod.manager.take_commands())
    failed = AdapterResidency(merged.revision, "failed", "InsufficientCapacity", "no room")
    pod.manager.on_residency(failed, 1.0)
    pod.manager.tick(1000.0)
    assert not [one for one in pod.manager.take_commands() if isinstance(one, PrepareAdapter)]
    pod.derive("a", "b")
    (again,) = pod.manager.take_commands()
    assert isinstance(again, RegisterAdapter)
