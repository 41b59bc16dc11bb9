"""Which tokens of which requests the next step computes. Never sees a tensor or a clock.

One token budget per step: decodes first, then chunks of running prompts, then waiting requests in
order of arrival. When blocks run out the youngest running request gives its blocks back and is
computed again later, so the oldest always progresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from graft_runtime.engine.kv_cache import BlockPool, OutOfBlocksError, blocks_for
from graft_runtime.engine.request import Request


@dataclass(frozen=True)
class SchedulerLimits:
    """What bounds a step; see `graft_protocol.config.EngineSettings` for the meaning."""

    block_size: int
    max_batch_tokens: int
    max_running: int
    max_chunk_tokens: int
    max_scored_tokens: int = 256
    """Tokens of scored prompts in one step. Each has a row of logits, which is as long as the
    vocabulary: this bounds the memory they take."""


class Row(NamedTuple):
    """One request's part of a step: ``num_tokens`` tokens from ``request.num_computed`` on."""

    request: Request
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether this part reaches the last token, so that a new one is sampled."""
        return self.num_tokens == self.request.num_remaining

    @property
    def scored(self) -> range:
        """Positions of the prompt's tokens whose scores this part brings."""
        request = self.request
        if not request.is_scoring:
            return range(0)
        first = max(request.num_computed, len(request.prompt_scores)) + 1
        return range(first, min(request.num_computed + self.num_tokens + 1, request.num_prompt))


AdapterGate = Callable[[str], int | None]
"""Returns the device slot of a revision that may run now, or None while it cannot."""


class Scheduler:
    """Owns the requests and their blocks from arrival to end."""

    def __init__(self, limits: SchedulerLimits, pool: BlockPool, gate: AdapterGate) -> None:
        self.limits = limits
        self.pool = pool
        self.num_preemptions = 0
        self.num_prefix_queries = 0
        """Prompt tokens looked up in the prefix cache."""
        self.num_prefix_hits = 0
        """Prompt tokens found there."""
        self._gate = gate
        self._requests: dict[str, Request] = {}
        self._running: list[Request] = []
        self._waiting: list[Request] = []
        self._scoring_left = 0

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that hold nothing yet, or nothing any more."""
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """Queue a request. It must fit the pool when alone; the caller has checked that."""
        self._requests[request.request_id] = request
        self._waiting.append(request)

    def get(self, request_id: str) -> Request | None:
        """Return a request that has not ended yet."""
        return self._requests.get(request_id)

    def requests(self) -> Iterator[Request]:
        """Iterate over all requests that have not ended yet."""
        return iter(self._requests.values())

    def remove(self, request: Request) -> None:
        """End a request in whatever phase it is and free what it holds."""
        del self._requests[request.request_id]
        if request in self._running:
            self._running.remove(request)
            self.pool.free(request.blocks)
        else:
            self._waiting.remove(request)

    def schedule(self) -> list[Row]:
        """Choose the next step's rows and give them the blocks they will write to."""
        rows: list[Row] = []
        self._scoring_left = self.limits.max_scored_tokens
        budget = self._schedule_decodes(rows, self.limits.max_batch_tokens)
        has_decodes = bool(rows)
        budget = self._schedule_prompts(rows, budget, has_decodes=has_decodes)
        self._schedule_waiting(rows, budget, has_decodes=has_decodes)
        rows.sort(key=_place)
        return rows

    def complete(self, row: Row) -> None:
        """Record that a row's tokens are in the cache, and name the blocks that are full now."""
        request, size = row.request, self.limits.block_size
        first_new = request.num_computed // size
        request.num_computed += row.num_tokens
        full = request.num_computed // size
        if full > first_new:
            keys = request.block_keys(full, size)
            for index in range(first_new, full):
                self.pool.publish(request.blocks[index], keys[index])

    def forget_history(self) -> None:
        """Start counting from zero."""
        self.num_preemptions = self.num_prefix_queries = self.num_prefix_hits = 0

    def check_integrity(self) -> None:
        """Compare blocks, queues and requests with each other.

        Raises:
            GraftRuntimeError: They disagree.
        """
        self.pool.check_integrity([request.blocks for request in self._running])

    def _schedule_decodes(self, rows: list[Row], budget: int) -> int:
        decodes = [request for request in self._running if request.num_remaining == 1]
        for request in decodes:
            if budget and request.blocks and self._ensure_room(request):
                rows.append(Row(request, 1))
                budget -= 1
        # A later decode may have pushed out a younger one that was already chosen.
        rows[:] = [row for row in rows if row.request.blocks]
        return self.limits.max_batch_tokens - len(rows)

    def _schedule_prompts(self, rows: list[Row], budget: int, *, has_decodes: bool) -> int:
        for request in self._running:
            if request.num_remaining > 1 and budget and self._may_score(request):
                rows.append(self._chunk(request, budget, has_decodes=has_decodes))
                budget -= rows[-1].num_tokens
        return budget

    def _schedule_waiting(self, rows: list[Row], budget: int, *, has_decodes: bool) -> None:
        for request in list(self._waiting):
            if not budget or self.num_running >= self.limits.max_running:
                return
            if not self._may_score(request):
                return
            slot = 0 if request.adapter is None else self._gate(request.adapter)
            if slot is None:
                continue  # its adapter is on the way; others need not wait for it
            if not self._admit(request, slot):
                return  # strictly in order: a small request never overtakes a large one
            rows.append(self._chunk(request, budget, has_decodes=has_decodes))
            budget -= rows[-1].num_tokens

    def _admit(self, request: Request, slot: int) -> bool:
        size = self.limits.block_size
        # The last token is always computed: its logits are what the request came for.
        # Nor may anything come from the cache while the prompt's tokens are scored.
        num_shareable = 0 if request.is_scoring else (len(request.tokens) - 1) // size
        shareable = request.block_keys(num_shareable, size)
        found = self.pool.find(shareable)
        self.pool.share(found)  # before anything is allocated, or it might be evicted for that
        missing = blocks_for(len(request.tokens), size) - len(found)
        # One block beyond the prompt, so that admission is not followed at once by preemption.
        growth = 1 if self._running else 0
        if missing + growth > self.pool.num_free:
            self.pool.free(found)
            return False
        request.blocks = found + self.pool.allocate(missing)
        request.num_computed = len(found) * size
        request.slot = slot
        self._count_hits(request)
        self._waiting.remove(request)
        self._running.append(request)
        self._running.sort(key=_arrival)
        return True

    def _count_hits(self, request: Request) -> None:
        if request.admitted:
            return  # what a preempted request finds again is not a saving
        request.admitted = True
        request.num_cached = request.num_computed
        self.num_prefix_queries += request.num_prompt
        self.num_prefix_hits += request.num_cached

    def _chunk(self, request: Request, budget: int, *, has_decodes: bool) -> Row:
        limit = min(budget, self.limits.max_chunk_tokens) if has_decodes else budget
        if request.is_scoring:
            limit = min(limit, self._scoring_left)
            self._scoring_left -= min(request.num_remaining, limit)
        return Row(request, min(request.num_remaining, limit))

    def _may_score(self, request: Request) -> bool:
        return self._scoring_left > 0 or not request.is_scoring

    def _ensure_room(self, request: Request) -> bool:
        """Give a decoding request the block for its next token, at the youngest's expense."""
        while len(request.blocks) * self.limits.block_size < len(request.tokens):
            try:
                self.pool.extend(request.blocks)
            except OutOfBlocksError:
                victim = self._running[-1]
                self._preempt(victim)
                if victim is request:
                    return False
        return True

    def _preempt(self, request: Request) -> None:
        """Take a request's blocks; it is computed again from the start when there is room."""
        self.num_preemptions += 1
        self._running.remove(request)
        self.pool.free(request.blocks)
        request.num_computed = 0
        request.slot = 0
        self._waiting.append(request)
        self._waiting.sort(key=_arrival)


def _place(row: Row) -> tuple[bool, int]:
    """Keep decodes together, and in them each adapter's rows: then nothing has to be gathered."""
    return row.num_tokens > 1, row.request.slot


def _arrival(request: Request) -> int:
    return request.arrival
