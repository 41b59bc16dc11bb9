"""The engine: takes requests and adapters, and turns each step into tokens.

It knows nothing of text, sockets or time; the same object runs in its own process
(`graft_runtime.engine.process`), in tests and offline.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from graft_runtime.engine.batch import Batch, Row
from graft_runtime.engine.compilations import Compilations
from graft_runtime.engine.counts import CountSlots
from graft_runtime.engine.delivery import Delivery
from graft_runtime.engine.flight import Flight, Launcher
from graft_runtime.engine.kv_cache import BlockPool
from graft_runtime.engine.outputs import StepOutput, ended, impossible
from graft_runtime.engine.plan import build_plan, build_sample_plan
from graft_runtime.engine.report import Counters, StepReport, step_facts
from graft_runtime.engine.request import Request
from graft_runtime.engine.residency import Residency, Slots
from graft_runtime.engine.sampling_plan import SamplingPlanner
from graft_runtime.engine.scheduler import Scheduler, SchedulerLimits
from graft_runtime.engine.thoughts import ThoughtWatch
from graft_runtime.engine.token_rules import TokenRules
from graft_runtime.errors import PluginError
from graft_runtime.ipc.messages import (
    AdapterResidency,
    EngineStats,
    FinishReason,
    RegisterAdapter,
    Submit,
    TokenOutput,
)
from graft_runtime.layers.rope_spec import PLAIN_ROPE, RopeSpec
from graft_runtime.sampling.grammar import Vocabulary
from graft_runtime.sampling.plugins import Plugins

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLimits:
    """What the engine was built for."""

    scheduler: SchedulerLimits
    num_blocks: int
    max_model_len: int
    eos_ids: frozenset[int]
    rope: RopeSpec = PLAIN_ROPE
    """The model's rotary embedding; for most it is the same whatever a sequence's length."""
    can_pool: bool = False
    """Whether the model gives hidden states."""


class Engine:
    """Continuous batching over one model and many adapters."""

    def __init__(
        self,
        limits: EngineLimits,
        runner: Launcher,
        slots: Slots,
        vocabulary: Vocabulary | None = None,
        plugins: Plugins | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            limits: What the engine was built for.
            runner: What runs the steps.
            slots: The adapters' place on the device.
            vocabulary: The tokens as grammars see them; None where there can be none.
            plugins: Logits processors that requests may name; None has none.
        """
        self.limits = limits
        self._vocabulary = vocabulary
        self._compilations = Compilations(vocabulary)
        self._count_slots = CountSlots()
        self._planner = SamplingPlanner()
        self._plugins = Plugins(()) if plugins is None else plugins
        self._runner = runner
        self._delivery = Delivery()
        self._arrivals = 0
        self._has_hopeless = False
        """Whether an adapter may have failed under requests since that was last looked at."""
        self._residency = Residency(slots, self._tell)
        self._slots = slots
        pool = BlockPool(limits.num_blocks)
        self._scheduler = Scheduler(limits.scheduler, pool, self._residency.slot_for)
        self._flight: Flight | None = None

    def submit(self, message: Submit) -> None:
        """Take a request. One that can never run is answered with an error in the next report."""
        problem = self._problem_with(message)
        if problem is not None:
            self._say(ended(message.request_id, "error", problem))
            return
        sampling = message.sampling
        limit, vocabulary = sampling.thought_limit, self._vocabulary
        if sampling.pooling is not None and not self.limits.can_pool:
            problem = "this model gives no embeddings"
        elif limit is not None and vocabulary is None:
            problem = "this model's tokenizer does not support a limit of its thoughts"
        if problem is not None:
            self._say(impossible(message.request_id, problem))
            return
        self._arrivals += 1
        eos_ids = frozenset() if sampling.ignore_eos else self.limits.eos_ids
        stop_ids = eos_ids | frozenset(sampling.stop_token_ids)
        # A request samples one token at least, whatever it was told.
        longest = len(message.token_ids) + max(1, sampling.max_tokens)
        longest = min(longest, self.limits.max_model_len)
        request = Request(
            request_id=message.request_id,
            tokens=list(message.token_ids),
            num_prompt=len(message.token_ids),
            sampling=sampling,
            adapter=message.adapter,
            arrival=self._arrivals,
            max_length=longest,
            tenant=message.tenant,
            tenant_weight=message.tenant_weight,
            priority=message.priority,
            salt=f"{message.tenant} {message.cache_salt}" if message.cache_salt else message.tenant,
            stop_ids=stop_ids,
            rope_variant=self.limits.rope.variant(longest),
            rules=TokenRules.of(sampling, message.token_ids, stop_ids, self._count_slots),
            processors=self._plugins.bind(sampling.processors),
            thought=ThoughtWatch.of(limit, vocabulary),
        )
        if request.adapter is not None:
            self._residency.acquire(request.adapter)
            request.holds_adapter = True
        if sampling.grammar is None:
            self._scheduler.add(request)
        else:
            self._compilations.add(request)

    def abort(self, request_id: str) -> None:
        """Forget a request and free what it holds, whatever phase it is in."""
        request = self._find(request_id)
        if request is not None:
            self._end(request)

    def register(self, message: RegisterAdapter) -> None:
        """Make a revision known; its weights come to the device between steps."""
        self._residency.register(message)

    def unregister(self, revision: str) -> None:
        """Take no new requests for a revision; the running ones finish with it."""
        self._residency.unregister(revision)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something now."""
        return bool(
            self._flight is not None
            or self._scheduler.num_running
            or self._scheduler.num_waiting
            or self._compilations
            or self._residency.has_work
            or self._delivery.report.said
            or self._delivery.report.adapters
        )

    @property
    def is_copying(self) -> bool:
        """Whether an adapter's weights are on their way to the device."""
        return self._residency.is_copying

    def step(self) -> StepReport:
        """Launch the next step, then retire the one before it; return what that one produced.

        The device goes from one to the other while the host does all the rest: it hands over the
        tokens of the step before, and starts the sampling of the launched one once these are known.
        """
        self._admit_compiled()
        self._fail_hopeless()
        wants_room = self._residency.has_work  # else nobody asks which slots are in use
        self._residency.advance(self._scheduler.slots_in_use() if wants_room else frozenset())
        batch = self._scheduler.schedule()
        flight = self._launch(batch) if batch.num_rows else None
        if self._flight is not None and not self._retire(self._flight):
            self._recover(self._flight, flight)
            flight = None
        if flight is not None:
            self._sample(flight)
        self._flight = flight
        return self._delivery.take_report()

    def forget_history(self) -> None:
        """Start counting from zero, as after a warm-up."""
        self._delivery.counters = Counters()
        self._scheduler.forget_history()

    def stats(self) -> EngineStats:
        """Return gauges and counters as of now."""
        pool, counters = self._scheduler.pool, self._delivery.counters
        return EngineStats(
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting,
            deferred=self._residency.num_waiting,
            kv_blocks_used=pool.num_used,
            kv_blocks_total=pool.num_blocks,
            device_pages_free=self._slots.free_pages,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            preemptions=self._scheduler.num_preemptions,
            prefix_queries=self._scheduler.num_prefix_queries,
            prefix_hits=self._scheduler.num_prefix_hits,
            steps=counters.steps,
        )

    def check_integrity(self) -> None:
        """Check that nothing is lost or shared; called when the engine is idle.

        Raises:
            GraftRuntimeError: Blocks, slots or counts disagree.
        """
        self._scheduler.check_integrity()
        self._residency.check_integrity()

    def _tell(self, event: AdapterResidency) -> None:
        self._delivery.report.adapters.append(event)
        self._has_hopeless = self._has_hopeless or event.state in ("failed", "removed")

    def _problem_with(self, message: Submit) -> str | None:
        if not message.token_ids:
            return "the prompt has no tokens"
        if len(message.token_ids) >= self.limits.max_model_len:
            return f"the prompt leaves no room in a context of {self.limits.max_model_len} tokens"
        if message.adapter is not None and not self._residency.knows(message.adapter):
            return f"adapter {message.adapter} is not registered"
        if self._find(message.request_id) is not None:
            return "a request with this id is running"
        try:
            self._plugins.bind(message.sampling.processors)
        except PluginError as error:
            return str(error)
        return None

    def _find(self, request_id: str) -> Request | None:
        return self._scheduler.get(request_id) or self._compilations.get(request_id)

    def _admit_compiled(self) -> None:
        """Queue the requests whose grammar is ready."""
        for request, error in self._compilations.take():
            self._scheduler.add(request)
            self._has_hopeless = True  # its adapter may have failed meanwhile
            if error is not None:
                self._end(request)
                self._say(impossible(request.request_id, error))

    def _fail_hopeless(self) -> None:
        """Answer requests whose adapter could not be loaded."""
        if not self._has_hopeless:
            return
        self._has_hopeless = False
        for request in list(self._scheduler.requests()):
            if request.adapter is not None and self._residency.failed(request.adapter):
                self._end(request, "error", f"adapter {request.adapter} could not be loaded")

    def _launch(self, batch: Batch) -> Flight:
        self._delivery.report.num_tokens += batch.num_tokens
        self._delivery.report.started += batch.first_time()
        try:
            plan = build_plan(batch, self.limits.scheduler.block_size)
            return Flight(batch, self._runner.launch(plan))
        except Exception as error:  # noqa: BLE001 - raised when the step is to retire
            return Flight(batch, error=error)

    def _sample(self, flight: Flight) -> None:
        """Start sampling. Every token of every earlier step must have been recorded."""
        try:
            flight.plan = build_sample_plan(flight.batch, self._planner)
            if flight.handle is not None:
                flight.handle.sample(flight.plan)
        except Exception as error:  # noqa: BLE001 - raised when the step is to retire
            flight.error = flight.error or error

    def _retire(self, flight: Flight) -> bool:
        """Wait for a step and record what it brought; False when it failed, and nothing was."""
        batch = flight.batch
        try:
            output = flight.output()
        except Exception as error:  # noqa: BLE001 - one request must never take others down
            logger.warning("step of %d rows failed: %s", batch.num_rows, error)
            self._delivery.report.steps.append(step_facts(batch, failed=True))
            return False
        self._delivery.report.steps.append(step_facts(batch, failed=False))
        self._delivery.counters.steps += 1
        self._record(batch, output)
        self._conclude(batch)
        return True

    def _record(self, batch: Batch, output: StepOutput) -> None:
        if output.decoded_D is None:
            rows = batch.rows
        else:
            rows = batch.others
            for request in self._delivery.decoded(batch, output.decoded_D):
                self._end(request)
        for row, given in zip(rows, output.rows, strict=True):
            if self._delivery.row(row, given):
                self._end(row.request)

    def _conclude(self, batch: Batch) -> None:
        self._delivery.report.num_tokens += batch.num_tokens
        self._scheduler.retire(batch)
        for request in batch.ended:
            self._give_back(request)

    def _recover(self, failed: Flight, following: Flight | None) -> None:
        """Run a failed step's rows one by one; what was launched upon it is scheduled anew."""
        flights = [failed] if following is None else [failed, following]
        for flight in flights:
            flight.abandon()
        self._scheduler.roll_back()
        for flight in flights:
            self._planner.forget(flight.batch.requests())
            for request in flight.batch.requests():
                self._give_back(request)
        for row in failed.batch.rows:
            if row.is_current:
                self._run_alone(row)

    def _run_alone(self, row: Row) -> None:
        flight = self._launch(self._scheduler.launch([row]))
        self._sample(flight)
        try:
            output = flight.output()
        except Exception:  # this request's fault, or at least its fate
            logger.exception("step failed", extra={"request_id": row.request.request_id})
            flight.abandon()
            self._scheduler.roll_back()
            self._end(row.request, "error", "the engine failed on this request")
            return
        self._record(flight.batch, output)
        self._conclude(flight.batch)

    def _end(
        self, request: Request, finish: FinishReason | None = None, error: str | None = None
    ) -> None:
        if self._compilations.get(request.request_id) is request:
            self._compilations.remove(request)
            request.has_ended = True
        else:
            self._scheduler.remove(request)
        if request.rules is not None:
            request.rules.release()
        self._give_back(request)
        if finish is not None:
            self._say(ended(request.request_id, finish, error))

    def _say(self, output: TokenOutput) -> None:
        self._delivery.report.said.append(output)

    def _give_back(self, request: Request) -> None:
        """Let go of an ended request's adapter, once no launched step names its slot."""
        if request.adapter is None or not request.has_ended or self._scheduler.is_launched(request):
            return
        if request.holds_adapter:
            request.holds_adapter = False
            self._residency.give_back(request.adapter)
