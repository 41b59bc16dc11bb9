"""The block pool."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from graft_runtime.engine.kv_cache import (
    RELEASED,
    BlockPool,
    OutOfBlocksError,
    blocks_behind,
    blocks_for,
    blocks_seen,
    common_window,
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


def named(pool: BlockPool, count: int) -> tuple[list[bytes], list[int]]:
    """Return keys, and blocks that hold them and that nobody holds."""
    keys = [bytes([index]) for index in range(count)]
    table = pool.allocate(count)
    for block, key in zip(table, keys, strict=True):
        pool.publish(block, key)
    kept = list(table)
    pool.free(table)
    return keys, kept


def forget(pool: BlockPool, keys: list[bytes]) -> None:
    """Let the pool need the blocks of some keys."""
    for key in keys:
        block = pool._by_key[key]
        pool._cached.move_to_end(block, last=False)
        pool._evict()


@pytest.mark.parametrize(
    ("lost", "num_seen", "hit", "held"),
    [
        ([], 2, 6, [4, 5]),
        ([0, 1, 2], 2, 6, [4, 5]),
        ([5], 2, 5, [3, 4]),
        ([4], 2, 4, [2, 3]),
        ([2, 4], 2, 2, [0, 1]),
        ([1, 3, 4, 5], 2, 1, [0]),
        ([0, 2, 4], 2, 0, []),
        ([0], 6, 0, []),
        ([], 9, 6, [0, 1, 2, 3, 4, 5]),
        ([0, 1, 2, 3, 4], 1, 6, [5]),
        ([0, 1, 2, 3, 4, 5], 1, 0, []),
    ],
)
def test_behind_a_window_a_hit_needs_only_the_blocks_that_its_next_token_sees(
    lost: list[int], num_seen: int, hit: int, held: list[int]
) -> None:
    pool = BlockPool(8)
    keys, blocks = named(pool, 6)
    forget(pool, [keys[index] for index in lost])
    table = pool.find(keys, num_seen)
    first = hit - len(held)
    assert table == [RELEASED] * first + [blocks[index] for index in held]
    pool.share(table)
    assert pool.num_used == len(held)
    pool.check_integrity([table])
    assert pool.num_sole(table) == len(held)
    pool.free(table)
    assert (table, pool.num_used) == ([], 0)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 7, 8, 9, 12, 13])
def test_what_is_behind_a_window_is_what_no_later_token_sees(window: int) -> None:
    for position in range(40):
        seen = set(range(max(0, position - window + 1), position + 1))
        behind = blocks_behind(position, window, 4)
        assert not seen & set(range(behind * 4))
        assert seen & set(range(behind * 4, behind * 4 + 4)), "and no block more is kept"
        if position % 4 == 0:
            assert position // 4 - behind <= blocks_seen(window, 4)


@pytest.mark.parametrize(
    ("windows", "widest"), [((), None), ((4, 4), 4), ((4, 8), 8), ((4, None, 4), None)]
)
def test_a_model_has_a_window_only_if_every_layer_has_one(
    windows: tuple[int | None, ...], widest: int | None
) -> None:
    assert common_window(windows) == widest


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
        held = [block for block in table if block != RELEASED]
        self.pool.publish(data.draw(st.sampled_from(held)), key)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        end = data.draw(st.integers(0, len(table) - 1))
        behind, table[:end] = table[:end], [RELEASED] * end
        self.pool.free(behind)

    @rule(keys=st.permutations([b"a", b"b", b"c", b"d"]), num_seen=st.none() | st.integers(1, 5))
    def share(self, keys: list[bytes], num_seen: int | None) -> None:
        found = self.pool.find(keys, num_seen)
        held = [block for block in found if block != RELEASED]
        assert len(held) >= min(num_seen or len(found), len(found)), "what is seen is there"
        self.pool.share(found)
        if found:
            self.tables.append(found)

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check_integrity(self.tables)


TestPoolMachine = PoolMachine.TestCase
