"""Which tokens of which requests the next step computes. Never sees a tensor or a clock.

One token budget per step: decodes first, then chunks of running prompts, then waiting requests by
class and fair share. When blocks run out, the last request by class and age gives its blocks back
and is computed again later, so the first always progresses.

Steps are scheduled ahead: while one runs, the next is chosen as if it had succeeded. What a
launched step names (blocks, slots) is given to nobody before the step has retired.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from graft_runtime.engine.batch import Batch, Row, row_of
from graft_runtime.engine.cohort import Cohort
from graft_runtime.engine.fair_share import FairShare
from graft_runtime.engine.kv_cache import BlockPool, blocks_for, blocks_seen
from graft_runtime.engine.launched import LaunchedSteps
from graft_runtime.engine.request import Request
from graft_runtime.engine.waiting import WaitingQueue
from graft_runtime.errors import GraftRuntimeError


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
    window: int | None = None
    """How many tokens a token sees in any layer, itself included; None is all before it."""


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
        # A token of each step is left for prompts, or a crowd of decodes would hold them up.
        self._seats = max(1, min(limits.max_running, limits.max_batch_tokens - 1))
        self._gate = gate
        self._requests: dict[str, Request] = {}
        self._running: list[Request] = []
        """In the order of their rank."""
        self._apart: list[Request] = []
        """Those of them that are not in the cohort, in the same order."""
        self._share = FairShare()
        self._waiting = WaitingQueue(self._share)
        self._launched = LaunchedSteps(pool, self._share, limits.block_size, limits.window)
        self._cohort = Cohort(limits.block_size)
        self._scoring_left = 0
        self._coming = 0

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
        self._share.enter(request.tenant, request.tenant_weight)
        self._waiting.add(request)

    def get(self, request_id: str) -> Request | None:
        """Return a request that has not ended yet."""
        return self._requests.get(request_id)

    def requests(self) -> Iterator[Request]:
        """Iterate over all requests that have not ended yet."""
        return iter(self._requests.values())

    def slots_in_use(self) -> set[int]:
        """Return the adapters' slots that running requests or launched steps name."""
        slots = {request.slot for request in self._running}
        for batch in self._launched:
            slots.update(batch.decodes.members.slots_D.tolist(), (row.slot for row in batch.others))
        return slots - {0}

    def remove(self, request: Request) -> None:
        """End a request in whatever phase it is; what it holds is free once no step names it."""
        self._leave_cohort(request)
        request.has_ended = True
        self._launched.drop(request)
        del self._requests[request.request_id]
        self._share.leave(request.tenant)
        if request.blocks:
            self._stop_running(request)
            self._let_go(request)
        else:
            self._waiting.remove(request)

    def schedule(self) -> Batch:
        """Choose the next step's rows and take them for launched. Without rows there is no step."""
        self._scoring_left = self.limits.max_scored_tokens
        self._coming = self._launched.num_coming
        self._displace()
        rows: list[Row] = []
        self._ready_cohort()
        joining, prompts = self._schedule_decodes(
            rows, self.limits.max_batch_tokens - len(self._cohort)
        )
        self._join_cohort(joining)
        budget = self.limits.max_batch_tokens - len(self._cohort) - len(rows)
        if self._cohort or rows:
            budget = min(budget, self.limits.max_chunk_tokens)
        budget = self._schedule_prompts(prompts, rows, budget)
        self._schedule_waiting(rows, budget)
        rows.sort(key=_place)
        return self._launched.launch(Batch(rows, self._cohort.march()))

    def launch(self, rows: Sequence[Row]) -> Batch:
        """Advance requests as if a step of these rows had succeeded already."""
        return self._launched.launch(Batch(list(rows)))

    def retire(self, batch: Batch) -> None:
        """End the oldest launched step; see `LaunchedSteps.retire`."""
        shorter = [request for request in self._launched.retire(batch) if request.in_cohort]
        if shorter:
            self._cohort.retable(shorter)

    def is_launched(self, request: Request) -> bool:
        """Whether a step that has not retired computes something of a request."""
        return self._launched.has(request)

    def roll_back(self) -> None:
        """Undo all launched steps, the latest first: none of them brought anything."""
        self._dissolve_cohort()
        self._launched.roll_back()

    def forget_history(self) -> None:
        """Start counting from zero."""
        self.num_preemptions = self.num_prefix_queries = self.num_prefix_hits = 0

    def check_integrity(self) -> None:
        """Compare blocks, queues and requests with each other.

        Raises:
            GraftRuntimeError: They disagree.
        """
        tables = [request.blocks for request in self._running]
        self.pool.check_integrity(tables + self._launched.held)
        for request in self._running:
            request.check_integrity()
        if self._apart != [request for request in self._running if not request.in_cohort]:
            message = "requests are lost between the cohort and the others"
            raise GraftRuntimeError(message)

    # Choosing rows.

    def _ready_cohort(self) -> None:
        """Give the cohort's members the blocks for their next token; where these are few, dissolve.

        Then nobody who decodes has to make room in this step, or everybody is asked in turn.
        """
        for request in self._cohort.complete():
            self._leave_cohort(request)
        short = self._cohort.short()
        others = sum(request.num_remaining == 1 for request in self._apart)
        if len(short) + others > self.pool.num_free:
            self._dissolve_cohort()
            return
        for request in short:
            self.pool.extend(request.blocks)
        if short:
            self._cohort.widen(short)

    def _schedule_decodes(
        self, rows: list[Row], budget: int
    ) -> tuple[list[Request], list[Request]]:
        """Choose the requests that get one more token, and find those whose prompt is under way.

        Returns:
            Requests that may join the cohort, and those with more than one token left. What is a
            row of its own goes to ``rows``.
        """
        size = self.limits.block_size
        decodes: list[Request] = []
        prompts: list[Request] = []
        for request in list(self._apart):
            if request.num_remaining != 1:
                if request.num_remaining > 1:
                    prompts.append(request)
                continue
            if not budget or request.is_complete or not request.blocks:
                continue
            has_room = len(request.blocks) * size > request.num_computed
            if has_room or self._extend(request):
                budget -= 1
                if request.is_plain and request.num_computed >= request.num_prompt:
                    decodes.append(request)
                else:
                    rows.append(row_of(request, 1))
        return decodes, prompts

    def _schedule_prompts(self, prompts: list[Request], rows: list[Row], budget: int) -> int:
        for request in prompts:
            # One that has given up its blocks meanwhile is not running any more.
            if budget and request.blocks and self._may_score(request):
                rows.append(self._chunk(request, budget))
                budget -= rows[-1].num_tokens
        return budget

    def _schedule_waiting(self, rows: list[Row], budget: int) -> None:
        if not budget or self.num_running >= self._seats:
            return
        for request in self._waiting.candidates():
            if not self._may_score(request):
                return
            slot = self._slot(request)
            if slot is None:
                continue  # what it waits for is on the way; others need not wait for that
            if not self._admit(request, slot):
                return  # strictly in order: a small request never overtakes a large one
            rows.append(self._chunk(request, budget))
            budget -= rows[-1].num_tokens
            if not budget or self.num_running >= self._seats:
                return

    def _slot(self, request: Request) -> int | None:
        """Return the slot in which a waiting request may run; None while it cannot."""
        if request.admitted and self._launched.has(request):
            return None  # it was preempted under a step that has not retired
        return 0 if request.adapter is None else self._gate(request.adapter)

    def _admit(self, request: Request, slot: int) -> bool:
        size = self.limits.block_size
        # The last token is always computed: its logits are what the request came for.
        # Nor may anything come from the cache while something is wanted of each of its tokens.
        num_shareable = 0 if request.needs_all else (len(request.tokens) - 1) // size
        shareable = request.block_keys(num_shareable, size)
        window = self.limits.window
        found = self.pool.find(shareable, None if window is None else blocks_seen(window, size))
        self.pool.share(found)  # before anything is allocated, or it might be evicted for that
        missing = blocks_for(len(request.tokens), size) - len(found)
        # One block beyond the prompt, so that admission is not followed at once by preemption.
        growth = 1 if self._running else 0
        if missing + growth > self.pool.num_free:
            self.pool.free(found)
            return False
        self._waiting.remove(request)
        request.num_computed = len(found) * size
        request.take(found, self.pool.allocate(missing))
        request.slot = slot
        request.length_at_admission = request.length
        self._count_hits(request)
        insort(self._running, request, key=_rank)
        insort(self._apart, request, key=_rank)
        return True

    def _count_hits(self, request: Request) -> None:
        if request.admitted:
            return  # what a preempted request finds again is not a saving
        request.admitted = True
        request.num_cached = request.num_charged = request.num_computed
        self.num_prefix_queries += request.num_prompt
        self.num_prefix_hits += request.num_cached

    def _chunk(self, request: Request, budget: int) -> Row:
        if request.is_scoring:
            budget = min(budget, self._scoring_left)
            self._scoring_left -= min(request.num_remaining, budget)
        return row_of(request, min(request.num_remaining, budget))

    def _may_score(self, request: Request) -> bool:
        return self._scoring_left > 0 or not request.is_scoring

    # The cohort.

    def _join_cohort(self, requests: Sequence[Request]) -> None:
        self._cohort.join(requests)
        self._apart = [request for request in self._apart if not request.in_cohort]

    def _leave_cohort(self, request: Request) -> None:
        if request.in_cohort:
            self._cohort.leave(request)
            insort(self._apart, request, key=_rank)

    def _dissolve_cohort(self) -> None:
        if self._cohort:
            self._cohort.dissolve()
            self._apart = self._running.copy()

    def _stop_running(self, request: Request) -> None:
        self._running.remove(request)
        self._apart.remove(request)

    # Making room.

    def _displace(self) -> None:
        """Preempt for the next waiting request what is of a lower class, if that lets it run."""
        if not self._running or self._running[-1].priority <= self._waiting.first_priority:
            return
        self._dissolve_cohort()
        best = next(self._waiting.candidates())
        missing = blocks_for(len(best.tokens), self.limits.block_size) + 1
        lower = [one for one in reversed(self._running) if one.priority > best.priority]
        victims = [one for one in lower if one.may_yield]
        room = self.pool.num_free + self._coming
        if not victims or missing > room + sum(self.pool.num_sole(one.blocks) for one in victims):
            return
        if self._slot(best) is None:
            return
        for victim in victims:
            has_seat = self.num_running < self._seats
            if has_seat and missing <= self.pool.num_free + self._coming:
                return
            self._preempt(victim)

    def _extend(self, request: Request) -> bool:
        """Give a decoding request the block for its next token, at the last one's expense."""
        while not self.pool.num_free:
            if self._coming:
                self._coming -= 1
                return False  # blocks are on the way: it gets one when their step has retired
            victim = self._victim(request)
            if victim is None:
                return False  # those behind it gain a token first
            self._preempt(victim)
            if victim is request:
                return False
        self.pool.extend(request.blocks)
        return True

    def _victim(self, request: Request) -> Request | None:
        """Return the last running request behind this one that may give way, or else itself.

        None if those behind it may not yet: they hold all that they need for their next token.
        """
        if request is self._running[-1]:
            return request
        behind = takewhile(lambda one: one is not request, reversed(self._running))
        return next((one for one in behind if one.may_yield), None)

    def _preempt(self, request: Request) -> None:
        """Take a request's blocks; it is computed again from the start when there is room."""
        self.num_preemptions += 1
        self._stop_running(request)
        self._let_go(request)
        request.epoch += 1
        request.num_computed = 0
        request.slot = 0
        self._waiting.add(request)

    def _let_go(self, request: Request) -> None:
        """Free a request's blocks, or leave them to the last launched step that names them."""
        table, request.blocks = request.blocks, []
        if self._launched.keep(request, table):
            self._coming += self.pool.num_sole(table)
        else:
            self.pool.free(table)


def _place(row: Row) -> tuple[bool, int]:
    """Keep decodes together, and in them each adapter's rows: then nothing has to be gathered."""
    return row.num_tokens > 1, row.slot


def _rank(request: Request) -> tuple[int, int]:
    return request.rank
