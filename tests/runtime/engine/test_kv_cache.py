"""The block pool."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from graft_runtime.engine.kv_cache import BlockPool, OutOfBlocksError, blocks_for
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

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check_integrity(self.tables)


TestPoolMachine = PoolMachine.TestCase
