"""An engine over the echo model, with what it was asked and what it answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from graft_runtime.engine.batch import Batch
from graft_runtime.engine.engine import Engine, EngineLimits
from graft_runtime.engine.scheduler import SchedulerLimits
from graft_runtime.ipc.messages import RegisterAdapter, Sampling, StepFacts, Submit, TokenOutput
from tests.support.echo_model import EchoModel, next_token
from tests.support.memory_slots import MemorySlots

BLOCK_SIZE = 4
MAX_MODEL_LEN = 48


class Bench:
    """An engine, what it was asked and what it answered."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        num_pages: int = 4,
        max_running: int = 8,
        max_batch_tokens: int = 16,
        max_chunk_tokens: int = 5,
        window: int | None = None,
    ) -> None:
        self.slots = MemorySlots(num_pages)
        self.model = EchoModel(BLOCK_SIZE, self.slots.keys, window=window)
        limits = SchedulerLimits(
            BLOCK_SIZE,
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
            max_chunk_tokens=max_chunk_tokens,
            window=window,
        )
        self.engine = Engine(
            EngineLimits(limits, num_blocks, MAX_MODEL_LEN, frozenset({0})), self.model, self.slots
        )
        self.asked: dict[str, Submit] = {}
        self.tokens: dict[str, list[int]] = {}
        self.finished: dict[str, TokenOutput] = {}
        self.cached: dict[str, int] = {}
        self.started: list[str] = []
        self.steps: list[StepFacts] = []
        self.preempted: dict[str, int] = {}
        self.residency: list[tuple[str, str]] = []

    def on_schedule(self, check: Callable[[Batch], None]) -> None:
        """Have each step's rows checked before anything of the step before is known."""
        schedule = self.engine._scheduler.schedule

        def scheduled() -> Batch:
            batch = schedule()
            if batch.num_rows:
                check(batch)
            return batch

        self.engine._scheduler.schedule = scheduled  # type: ignore[method-assign]

    def submit(
        self,
        prompt: list[int],
        max_tokens: int,
        adapter: str | None = None,
        *,
        tenant: str = "",
        tenant_weight: float = 1.0,
        priority: int = 0,
        cache_salt: str = "",
        **sampling: object,
    ) -> str:
        name = f"r{len(self.asked)}"
        message = Submit(
            name,
            prompt,
            Sampling(max_tokens=max_tokens, temperature=0.0, **sampling),  # type: ignore[arg-type] # test shorthand
            adapter,
            tenant=tenant,
            tenant_weight=tenant_weight,
            priority=priority,
            cache_salt=cache_salt,
        )
        self.asked[name] = message
        self.tokens[name] = []
        self.engine.submit(message)
        return name

    def register(
        self, key: int, *, name: str = "a", prefetch: bool = True, pinned: bool = False
    ) -> str:
        revision = f"ns/{name}{key}@{key:012d}"
        path = str(Path("/x") / str(key))
        self.engine.register(RegisterAdapter(revision, path, 8, prefetch, pinned))
        return revision

    def step(self) -> None:
        report = self.engine.step()
        self.started += report.started
        self.steps += report.steps
        for output in report.outputs:
            self.tokens[output.request_id] += output.token_ids
            self.cached.setdefault(output.request_id, output.num_cached)
            self.preempted[output.request_id] = output.num_preemptions
            if output.finish_reason is not None:
                self.finished[output.request_id] = output
        self.residency += [(event.revision, event.state) for event in report.adapters]

    def drain(self) -> None:
        for _ in range(2_000):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, "the engine never came to rest"
        self.engine.check_integrity()
        stats = self.engine.stats()
        assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)

    def expected(self, name: str) -> list[int]:
        asked = self.asked[name]
        key = 0 if asked.adapter is None else int(asked.adapter.rpartition("@")[2])
        tokens = list(asked.token_ids)
        while True:
            tokens.append(next_token(tokens[-(self.model.window or MAX_MODEL_LEN) :], key))
            output = tokens[len(asked.token_ids) :]
            is_end = tokens[-1] == 0 and not asked.sampling.ignore_eos
            if is_end or len(output) >= asked.sampling.max_tokens:
                return output
            if len(tokens) >= MAX_MODEL_LEN:
                return output

    def assert_all_right(self) -> None:
        for name in self.asked:
            assert self.tokens[name] == self.expected(name)
            assert self.finished[name].finish_reason in ("stop", "length")
