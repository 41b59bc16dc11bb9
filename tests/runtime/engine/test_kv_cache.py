"""The block pool."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from graft_runtime.engine.kv_cache import (
    BlockPool,
    OutOfBlocksError,
    blocks_for,
    next_key,
    root_key,
)
from graft_runtime.errors import GraftRuntimeError


def test_blocks_are_handed_out_as_ascending_runs_when_there_is_one() -> None:
    pool = BlockPool(64)
    first, second = pool.allocate(3), pool.allocate(4)
    for _ in range(5):
        pool.extend(first)
    assert first == list(range(first[0], first[0] + 8))
    assert second == list(range(second[0], second[0] + 4))


def test_scattered_blocks_are_used_when_no_run_is_left() -> None:
    pool = BlockPool(6)
    tables = [pool.allocate(1) for _ in range(6)]
    for table in tables[::2]:
        pool.free(table)
    assert sorted(pool.allocate(3)) == [0, 2, 4]
    assert pool.num_free == 0


def test_asking_for_too_many_takes_nothing() -> None:
    pool = BlockPool(4)
    table = pool.allocate(3)
    with pytest.raises(OutOfBlocksError):
        pool.allocate(2)
    assert pool.num_free == 1
    pool.check_integrity([table])


def test_a_double_free_is_noticed() -> None:
    pool = BlockPool(4)
    table = pool.allocate(2)
    copy = list(table)
    pool.free(table)
    with pytest.raises(GraftRuntimeError):
        pool.free(copy)


def test_a_lost_block_is_noticed() -> None:
    pool = BlockPool(4)
    table = pool.allocate(2)
    with pytest.raises(GraftRuntimeError, match="lost"):
        pool.check_integrity([table[:1]])


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_blocks_for_rounds_up(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens, 16) == blocks


def test_what_was_published_is_found_until_its_blocks_are_needed() -> None:
    pool = BlockPool(4)
    keys = [next_key(root_key(None), [1, 2]), next_key(b"x", [3, 4])]
    table = pool.allocate(2)
    for block, key in zip(table, keys, strict=True):
        pool.publish(block, key)
    kept = list(table)
    pool.free(table)
    assert (pool.num_free, pool.num_used) == (4, 0)
    assert pool.find(keys) == kept
    pool.share(kept)
    assert pool.num_free == 2
    pool.check_integrity([kept])
    pool.free(list(kept))
    pool.allocate(3)
    assert pool.find(keys) == kept[:1], "the tail goes before the head"


def test_a_block_is_free_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(4)
    table = pool.allocate(2)
    pool.publish(table[0], b"a")
    other = pool.find([b"a"])
    pool.share(other)
    pool.free(table)
    assert pool.num_used == 1
    pool.check_integrity([other])
    pool.free(other)
    assert pool.num_used == 0


def test_keys_differ_with_tokens_with_what_came_before_and_with_the_adapter() -> None:
    base, adapter = root_key(None), root_key("ns/a@0123456789ab")
    keys = {
        next_key(base, [1, 2]),
        next_key(base, [1, 3]),
        next_key(base, [2, 1]),
        next_key(adapter, [1, 2]),
        next_key(next_key(base, [1, 2]), [1, 2]),
    }
    assert len(keys) == 5


class PoolMachine(RuleBasedStateMachine):
    """Any order of allocate, extend and free keeps every block in exactly one place."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(24)
        self.tables: list[list[int]] = []

    @rule(count=st.integers(1, 8))
    def allocate(self, count: int) -> None:
        free = self.pool.num_free
        try:
            self.tables.append(self.pool.allocate(count))
        except OutOfBlocksError:
            assert free < count

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        free = self.pool.num_free
        try:
            self.pool.extend(table)
        except OutOfBlocksError:
            assert free == 0

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.free(table)
        assert table == []

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), key=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def publish(self, data: st.DataObject, key: bytes) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.pool.publish(data.draw(st.sampled_from(table)), key)

    @rule(keys=st.permutations([b"a", b"b", b"c", b"d"]))
    def share(self, keys: list[bytes]) -> None:
        found = self.pool.find(keys)
        self.pool.share(found)
        if found:
            self.tables.append(found)

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check_integrity(self.tables)


TestPoolMachine = PoolMachine.TestCase
