"""The pool of KV blocks: which are free, who gets which. Knows no tensor and no request."""

from __future__ import annotations

from graft_runtime.errors import GraftRuntimeError

FREE, USED = 1, 0
RUN_SLACK = 8
"""Blocks of room left between two runs where possible, so that both grow without a break."""


class OutOfBlocksError(GraftRuntimeError):
    """The pool cannot give what was asked; nothing was taken."""


class BlockPool:
    """Hands out block ids, in ascending runs where it can.

    A run of neighbouring blocks is one contiguous piece of the cache, which the CPU attention reads
    without a copy. A byte per block says whether it is free; searching bytes for a run is one call.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._state = bytearray([FREE]) * num_blocks
        self._num_free = num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that can be taken."""
        return self._num_free

    @property
    def num_used(self) -> int:
        """Blocks in somebody's table."""
        return self.num_blocks - self._num_free

    def allocate(self, count: int) -> list[int]:
        """Take blocks for a new sequence.

        Raises:
            OutOfBlocksError: Fewer than ``count`` are free.
        """
        if count > self._num_free:
            message = f"{count} blocks wanted, {self._num_free} free"
            raise OutOfBlocksError(message)
        start = self._find_run(count + 2 * RUN_SLACK)
        if start < 0:
            start = self._find_run(count)
        elif start > 0:
            start += RUN_SLACK  # the run before it may grow this far
        if start >= 0:
            return self._take(list(range(start, start + count)))
        free = [block for block, state in enumerate(self._state) if state == FREE]
        return self._take(free[:count])

    def extend(self, table: list[int]) -> None:
        """Append one block to a table, the neighbour of its last one if that is free.

        Raises:
            OutOfBlocksError: No block is free.
        """
        neighbour = table[-1] + 1 if table else self.num_blocks
        if neighbour < self.num_blocks and self._state[neighbour] == FREE:
            table.extend(self._take([neighbour]))
        else:
            table.extend(self.allocate(1))

    def free(self, table: list[int]) -> None:
        """Give back every block of a table and empty it."""
        for block in table:
            if self._state[block] == FREE:
                message = f"block {block} was freed twice"
                raise GraftRuntimeError(message)
            self._state[block] = FREE
        self._num_free += len(table)
        table.clear()

    def check_integrity(self, tables: list[list[int]]) -> None:
        """Compare the pool with the tables of everybody who holds blocks.

        Raises:
            GraftRuntimeError: A block is lost, or in two tables, or in a table and free.
        """
        held = [block for table in tables for block in table]
        if len(held) != len(set(held)):
            message = "a block is in two tables"
            raise GraftRuntimeError(message)
        used = {block for block, state in enumerate(self._state) if state == USED}
        if used != set(held) or len(used) != self.num_used:
            message = f"blocks lost: {sorted(used - set(held))}, stolen: {sorted(set(held) - used)}"
            raise GraftRuntimeError(message)

    def _find_run(self, count: int) -> int:
        return self._state.find(bytes([FREE]) * count)

    def _take(self, blocks: list[int]) -> list[int]:
        for block in blocks:
            self._state[block] = USED
        self._num_free -= len(blocks)
        return blocks


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Return how many blocks hold ``num_tokens`` tokens."""
    return -(-num_tokens // block_size)
