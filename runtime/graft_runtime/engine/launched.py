"""The steps that have been launched and have not retired. The scheduler owns them.

What a launched step names (blocks, slots) is given to nobody before the step has retired. Never
sees a tensor or a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from graft_runtime.engine.batch import Batch, Row
from graft_runtime.engine.fair_share import OUTPUT_COST, PROMPT_COST, FairShare
from graft_runtime.engine.kv_cache import BlockPool, blocks_behind
from graft_runtime.engine.request import Request
from graft_runtime.errors import GraftRuntimeError


class LaunchedSteps:
    """Batches, the oldest first."""

    def __init__(
        self, pool: BlockPool, share: FairShare, block_size: int, window: int | None
    ) -> None:
        """Start with none.

        Args:
            pool: Whose blocks they name.
            share: Who pays for them.
            block_size: Tokens of a block.
            window: How many tokens a token sees in any layer, itself included; None is all.
        """
        self._pool = pool
        self._share = share
        self._block_size = block_size
        self._window = window
        self._batches: deque[Batch] = deque()

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    @property
    def held(self) -> list[list[int]]:
        """Tables that requests have given up and that launched steps still name."""
        return [table for batch in self._batches for table in batch.held]

    @property
    def num_coming(self) -> int:
        """How many blocks are free once all of them have retired."""
        return sum(map(self._pool.num_sole, self.held))

    def launch(self, batch: Batch) -> Batch:
        """Advance requests as if a step had succeeded already. One without rows is no step.

        Those that decode in a cohort are further by having been in it.
        """
        tenants = batch.decodes.members.tenants
        costs: dict[str, float] = {tenant: OUTPUT_COST * count for tenant, count in tenants.items()}
        for row in batch.others:
            request = row.request
            request.num_computed += row.num_tokens
            request.length += row.samples
            if row.scored:
                request.num_scored += len(row.scored)
            if not request.has_ended:
                costs[request.tenant] = costs.get(request.tenant, 0.0) + _cost(row)
        for tenant, cost in costs.items():
            self._share.charge(tenant, cost)
        if batch.num_rows:
            self._batches.append(batch)
        return batch

    def retire(self, batch: Batch) -> list[Request]:
        """Name the blocks that the oldest launched step filled, and free what it kept from others.

        Its tokens must have been recorded, as far as their requests have not ended.

        Returns:
            The requests that gave blocks back, as far behind them as nobody sees.

        Raises:
            GraftRuntimeError: An older step has not retired: a caller's bug, and never retried.
        """
        if self._batches.popleft() is not batch:
            raise GraftRuntimeError("steps retire in the order of their launch")
        size, decodes = self._block_size, batch.decodes
        ends = np.flatnonzero((decodes.starts_D + 1) % size == 0).tolist()
        full = [decodes.row(at) for at in ends]
        full += [
            row for row in batch.others if (row.start + row.num_tokens) // size > row.start // size
        ]
        for row in full:
            self._publish(row)
        shorter = [row.request for row in full if self._release(row)]
        self._free_held(batch)
        return shorter

    def roll_back(self) -> None:
        """Undo all of them, the latest first: none of them brought anything.

        None of their requests may be in a cohort any more.
        """
        while self._batches:
            batch = self._batches.pop()
            for row in batch.rows:
                request = row.request
                request.length -= row.samples
                request.num_scored -= len(row.scored)
                if row.is_current:
                    request.num_computed = row.start
            self._free_held(batch)

    def keep(self, request: Request, table: list[int]) -> bool:
        """Leave a request's table to the last step that names it; False when none does."""
        for batch in reversed(self._batches):
            if batch.names(request):
                batch.held.append(table)
                return True
        return False

    def has(self, request: Request) -> bool:
        """Tell whether one of them computes something of a request."""
        return any(batch.has(request) for batch in self._batches)

    def drop(self, request: Request) -> None:
        """Note that a request has ended in all that name it."""
        for batch in self._batches:
            if batch.has(request):
                batch.ended.append(request)

    def _publish(self, row: Row) -> None:
        """Name the blocks that a row's tokens filled, so that others find them."""
        request, size = row.request, self._block_size
        known = min(row.start + row.num_tokens, len(request.tokens))
        first, full = row.start // size, known // size
        if full > first and row.table:
            keys = request.block_keys(full, size)
            for index in range(first, full):
                self._pool.publish(row.table[index], keys[index])

    def _release(self, row: Row) -> bool:
        """Give back the blocks that no later token of a row's request sees; False without any.

        Only now that the row has retired: one that fails is computed again from its start.
        """
        request, window = row.request, self._window
        if window is None or not row.is_current:
            return False
        behind = request.release(
            blocks_behind(row.start + row.num_tokens, window, self._block_size)
        )
        if self.has(request):
            self._batches[-1].held.append(behind)  # a launched step was told of them
        else:
            self._pool.free(behind)
        return bool(behind)

    def _free_held(self, batch: Batch) -> None:
        for table in batch.held:
            self._pool.free(table)
        batch.held.clear()


def _cost(row: Row) -> float:
    """Return what a row costs its tenant: tokens that are computed for the first time."""
    request = row.request
    cost = OUTPUT_COST if row.samples else 0.0
    if request.num_charged < request.num_prompt:
        reached = min(row.start + row.num_tokens, request.num_prompt)
        new = max(0, reached - request.num_charged)
        request.num_charged += new
        cost += PROMPT_COST * new
    return cost
