"""The pool of KV blocks: who holds which, and which hold a prefix that others may share.

A block is free, held (by one or more sequences), or cached: held by nobody, but kept because its
content has a name. Knows no tensor and no request.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from graft_runtime.errors import GraftRuntimeError

FREE, TAKEN = 1, 0
RUN_SLACK = 8
"""Blocks of room left between two runs where possible, so that both grow without a break."""

RELEASED = -1
"""Stands in a table for a block that was given back: no layer sees that far any more."""

BlockKey = bytes
"""Names a full block's content: its tokens, all tokens before them, and who computed them."""
KEY_BYTES = 16


def root_key(adapter: str | None, rope_variant: int = 0, salt: str = "") -> BlockKey:
    """Return the start of the chain of keys for one adapter's sequences; None is the base model.

    The adapter is named by its revision, which carries its digest: what one version computed is
    never taken for another's. Nor are keys that were rotated by other frequencies, nor what was
    computed under another salt: whoever has one cannot tell by the time of an answer what others
    have asked.
    """
    content = b"" if adapter is None else adapter.encode()
    if rope_variant:
        content += b"\0rope" + rope_variant.to_bytes(8, "little")
    if salt:
        content += b"\0salt" + salt.encode()
    return blake2b(content, digest_size=KEY_BYTES).digest()


def next_key(parent: BlockKey, token_ids: Sequence[int]) -> BlockKey:
    """Return the key of a full block that follows the one named ``parent``."""
    content = array("q", token_ids).tobytes()
    return blake2b(content, key=parent, digest_size=KEY_BYTES).digest()


class OutOfBlocksError(GraftRuntimeError):
    """The pool cannot give what was asked; nothing was taken."""


class BlockPool:
    """Hands out blocks, in ascending runs where it can, and remembers what they hold.

    A run of neighbouring blocks is one contiguous piece of the cache, which the CPU attention reads
    without a copy. A byte per block says whether it is free; searching bytes for a run is one call.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._state = bytearray([FREE]) * num_blocks
        self._num_empty = num_blocks
        self._holders = [0] * num_blocks
        self._keys: list[BlockKey | None] = [None] * num_blocks
        self._by_key: dict[BlockKey, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        """Blocks that nobody holds but that have a key, the longest unused first."""

    @property
    def num_free(self) -> int:
        """Blocks that can be taken; cached ones can."""
        return self._num_empty + len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks in somebody's table."""
        return self.num_blocks - self.num_free

    def num_sole(self, table: Sequence[int]) -> int:
        """Return how many of a table's blocks could be taken once it is freed."""
        return sum(block != RELEASED and self._holders[block] == 1 for block in table)

    def allocate(self, count: int) -> list[int]:
        """Take blocks for a new sequence.

        Raises:
            OutOfBlocksError: Fewer than ``count`` can be taken.
        """
        if count > self.num_free:
            message = f"{count} blocks wanted, {self.num_free} free"
            raise OutOfBlocksError(message)
        while self._num_empty < count:
            self._evict()
        start = self._find_run(count + 2 * RUN_SLACK)
        if start < 0:
            start = self._find_run(count)
        elif start > 0:
            start += RUN_SLACK  # the run before it may grow this far
        if start >= 0:
            return self._take(list(range(start, start + count)))
        empty = [block for block, state in enumerate(self._state) if state == FREE]
        return self._take(empty[:count])

    def extend(self, table: list[int]) -> None:
        """Append one block to a table, the neighbour of its last one if that is free.

        Raises:
            OutOfBlocksError: No block can be taken.
        """
        neighbour = table[-1] + 1 if table else self.num_blocks
        if neighbour < self.num_blocks and self._state[neighbour] == FREE:
            table.extend(self._take([neighbour]))
        else:
            table.extend(self.allocate(1))

    def find(self, keys: Sequence[BlockKey], num_seen: int | None = None) -> list[int]:
        """Return the table of the longest known prefix of a sequence; it may be empty.

        Args:
            keys: Of the sequence's full blocks, from the first on.
            num_seen: How many blocks before it a block's first token sees; None is all. A key
                names all tokens before its block, too, so what nobody sees need not be there:
                `RELEASED` stands for it.
        """
        if num_seen is None:
            return self._find_all(keys)
        num_found = 0
        for index in range(len(keys) - 1, -1, -1):
            num_found = num_found + 1 if keys[index] in self._by_key else 0
            if num_found and (num_found >= num_seen or index == 0):
                found = keys[index : index + num_found]
                return [RELEASED] * index + [self._by_key[key] for key in found]
        return []

    def _find_all(self, keys: Sequence[BlockKey]) -> list[int]:
        found: list[int] = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, table: Sequence[int]) -> None:
        """Hold the blocks of a table that `find` returned."""
        for block in table:
            if block != RELEASED:
                self._cached.pop(block, None)
                self._holders[block] += 1

    def publish(self, block: int, key: BlockKey) -> None:
        """Name the content of a full block, so that others find it.

        Content that another block holds already stays with that one.
        """
        if self._keys[block] is None and key not in self._by_key:
            self._keys[block] = key
            self._by_key[key] = block

    def free(self, table: list[int]) -> None:
        """Give back every block of a table and empty it.

        The last block is the first to be forgotten: a prefix serves more requests than a tail.

        Raises:
            GraftRuntimeError: A block that nobody holds: a caller's bug, and never retried.
        """
        for block in reversed(table):
            if block == RELEASED:
                continue
            if not self._holders[block]:
                message = f"block {block} was freed twice"
                raise GraftRuntimeError(message)
            self._holders[block] -= 1
            if not self._holders[block]:
                self._let_go(block)
        table.clear()

    def check_integrity(self, tables: list[list[int]]) -> None:
        """Compare the pool with the tables of everybody who holds blocks.

        Raises:
            GraftRuntimeError: A block is lost, miscounted, or at once held and free.
        """
        holders = Counter(block for table in tables for block in table if block != RELEASED)
        if any(self._holders[block] != holders[block] for block in range(self.num_blocks)):
            message = f"blocks lost or stolen: tables {holders}, pool {self._holders}"
            raise GraftRuntimeError(message)
        empty = {block for block, state in enumerate(self._state) if state == FREE}
        if len(empty) != self._num_empty or empty & self._cached.keys() or empty & holders.keys():
            message = "a block is empty and cached, or empty and held"
            raise GraftRuntimeError(message)
        if len(empty) + len(self._cached) + len(holders) != self.num_blocks:
            message = "a block is neither empty, cached nor held"
            raise GraftRuntimeError(message)
        if any(self._keys[block] != key for key, block in self._by_key.items()):
            message = "a key leads to a block that holds something else"
            raise GraftRuntimeError(message)

    def _let_go(self, block: int) -> None:
        if self._keys[block] is None:
            self._state[block] = FREE
            self._num_empty += 1
        else:
            self._cached[block] = None

    def _evict(self) -> None:
        """Forget the longest unused cached block."""
        block, _ = self._cached.popitem(last=False)
        key = self._keys[block]
        if key is not None:
            del self._by_key[key]
        self._keys[block] = None
        self._let_go(block)

    def _find_run(self, count: int) -> int:
        return self._state.find(bytes([FREE]) * count)

    def _take(self, blocks: list[int]) -> list[int]:
        for block in blocks:
            self._state[block] = TAKEN
            self._holders[block] = 1
        self._num_empty -= len(blocks)
        return blocks


def readable(table: list[int], num_released: int) -> list[int]:
    """Return a copy of a table that names a block everywhere.

    For the first blocks, which were given back, the first other one stands: nothing sees what is in
    their place, but a kernel may read it, and then it must be finite.
    """
    return table[num_released : num_released + 1] * num_released + table[num_released:]


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Return how many blocks hold ``num_tokens`` tokens."""
    return -(-num_tokens // block_size)


def common_window(windows: Sequence[int | None]) -> int | None:
    """Return how many tokens a token sees in the layer that sees most; None when one sees all.

    Args:
        windows: Of each layer, the token itself included; None is all before it.
    """
    widest = 0
    for window in windows:
        if window is None:
            return None
        widest = max(widest, window)
    return widest or None


def blocks_behind(position: int, window: int, block_size: int) -> int:
    """Return how many of a sequence's first blocks no token from ``position`` on sees."""
    return max(0, position + 1 - window) // block_size


def blocks_seen(window: int, block_size: int) -> int:
    """Return how many full blocks before it a block's first token sees, one at least."""
    return max(1, blocks_for(window - 1, block_size))
