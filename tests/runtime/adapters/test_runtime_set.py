"""Names that clients load: on their way, there, replaced, failed, gone."""

from __future__ import annotations

from graft_protocol.reasons import Reason
from graft_protocol.revisions import RUNTIME_NAMESPACE
from graft_runtime.adapters.runtime_set import Outcome, RuntimeSet

URI = "s3://bucket/a"
DIGESTS = [f"sha256:{number:064x}" for number in range(16**10, 16**10 + 4)]


class World:
    """A set and what its revisions are said to be."""

    def __init__(self) -> None:
        self.set = RuntimeSet("pod-0")
        self.outcomes: dict[str, Outcome] = {}

    def advance(self) -> bool:
        return self.set.advance(lambda name: self.outcomes.get(name, Outcome()))

    def coming(self, name: str) -> str:
        one = self.set.get(name)
        assert one is not None
        assert one.coming is not None
        return one.coming.revision

    def bring(self, name: str, digest: str, *, uri: str = URI, on_demand: bool = False) -> None:
        self.set.load(name, uri, on_demand=on_demand)
        self.outcomes[self.coming(name)] = Outcome(digest=digest)
        assert self.advance()
        self.outcomes[self.coming(name)] = Outcome(serves=True)
        assert self.advance()
        assert not self.advance()


def test_a_name_is_resolved_then_pinned_then_there() -> None:
    world = World()
    world.set.load("a", URI)
    (pending,) = world.set.entries()
    assert (pending.digest, pending.resolver) == (None, "pod-0")
    assert not world.advance()
    world.outcomes[pending.revision] = Outcome(digest=DIGESTS[0])
    assert world.advance()
    (pinned,) = world.set.entries()
    assert pinned.digest == DIGESTS[0]
    assert pinned.revision == f"{RUNTIME_NAMESPACE}/a@{DIGESTS[0][7:19]}"
    world.outcomes[pinned.revision] = Outcome(serves=True)
    assert world.advance()
    assert world.set.entries() == (pinned,)


def test_the_old_version_stands_by_until_the_new_one_is_there() -> None:
    world = World()
    world.bring("a", DIGESTS[0])
    (old,) = world.set.entries()
    world.set.load("a", URI)
    assert [entry.weight for entry in world.set.entries()] == [100, 0]
    assert world.set.entries()[1].revision == old.revision
    world.outcomes[world.coming("a")] = Outcome(failure=(Reason.SHAPE_MISMATCH, "no"))
    assert world.advance()
    assert world.set.entries() == (old,)
    one = world.set.get("a")
    assert one is not None
    assert one.failure == (Reason.SHAPE_MISMATCH, "no")
    world.bring("a", DIGESTS[1])
    assert [entry.digest for entry in world.set.entries()] == [DIGESTS[1]]


def test_loading_the_same_bytes_again_keeps_one_version() -> None:
    world = World()
    world.bring("a", DIGESTS[0])
    world.set.load("a", URI)
    world.outcomes[world.coming("a")] = Outcome(digest=DIGESTS[0])
    assert world.advance()
    (entry,) = world.set.entries()
    assert (entry.digest, entry.weight) == (DIGESTS[0], 100)


def test_a_first_version_that_fails_leaves_no_name_but_says_why() -> None:
    world = World()
    one = world.set.load("a", URI)
    world.outcomes[world.coming("a")] = Outcome(failure=(Reason.SOURCE_NOT_FOUND, "no key"))
    assert world.advance()
    assert len(world.set) == 0
    assert one.gone
    assert one.failure == (Reason.SOURCE_NOT_FOUND, "no key")


def test_declared_names_win() -> None:
    world = World()
    world.bring("a", DIGESTS[0])
    world.bring("b", DIGESTS[1])
    assert world.set.yield_to({"a", "c"}) == ["a"]
    assert [entry.served_name for entry in world.set.entries()] == ["b"]


def test_only_what_a_request_brought_and_nobody_uses_may_go() -> None:
    world = World()
    world.bring("mine", DIGESTS[0])
    world.bring("s3://x", DIGESTS[1], on_demand=True)
    world.bring("s3://y", DIGESTS[2], on_demand=True)
    used = world.set.get("s3://x")
    assert used is not None
    world.set.touch(used)
    assert world.set.idle_on_demand(set()) == "s3://y"
    busy = {entry.revision for entry in world.set.entries() if entry.served_name == "s3://y"}
    assert world.set.idle_on_demand(busy) == "s3://x"
    assert world.set.unload("s3://x")
    assert not world.set.unload("s3://x")
    assert world.set.idle_on_demand(busy) is None
