"""The gate: every row of the running engine against transformers and peft, row by row.

The engine runs as it does in a pod (scheduler, paged cache, slots, sampler); only its logits are
overheard. The reference gets each finished sequence alone, in one pass, and must agree everywhere.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from graft_protocol.digest import is_adapter_file
from graft_runtime.adapters.convert import write_slot_file
from graft_runtime.adapters.slots import SlotPool
from graft_runtime.adapters.validate import validate_adapter
from graft_runtime.engine.engine import Engine, EngineLimits
from graft_runtime.engine.flight import Flight
from graft_runtime.engine.kv_cache import common_window
from graft_runtime.engine.runner import PoolingModel, Runner
from graft_runtime.engine.scheduler import SchedulerLimits
from graft_runtime.ipc.messages import RegisterAdapter, Sampling, Submit
from graft_runtime.layers.attention.base import AttentionFactory, KvLayout
from graft_runtime.layers.attention.choose import choose_attention
from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.layers.lora.layout import SlotHeader, layout_hash, pages_for
from graft_runtime.models.base import ModelArch
from graft_runtime.models.load import Model, load_model
from graft_runtime.models.read import read_model
from tests.support.peft_adapters import load_with_adapters
from tests.support.routers import watched_routers

# Shape legend: N positions of one sequence, V vocabulary.

TOLERANCE = 1e-4
"""Largest difference of a logit, times max(1, standard deviation): float32 over a few layers."""
MAX_TIES = 0.005
"""Share of rows in which the reference itself cannot tell its two best tokens apart."""
MAX_CLOSE_CALLS = 0.1
"""Share of rows that may be left out because a router could not tell two experts apart."""
MIN_DISTINCT = 20
MIN_EFFECT = 0.1
CPU = torch.device("cpu")


@dataclass(frozen=True)
class GateSettings:
    """How hard the engine is pressed."""

    num_blocks: int = 256
    block_size: int = 8
    max_batch_tokens: int = 48
    max_running: int = 16
    max_chunk_tokens: int = 16
    num_pages: int = 8
    device: torch.device = CPU
    attention: AttentionFactory = choose_attention


class Overheard:
    """A decoder whose logits can be looked at, step by step."""

    def __init__(self, decoder: Model) -> None:
        self._decoder = decoder
        self.steps: deque[Tensor] = deque()

    def forward(self, batch: ForwardBatch) -> Tensor:
        logits = self._decoder.forward(batch)
        self.steps.append(logits)
        return logits

    def forward_pooled(
        self, batch: ForwardBatch, bounds: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(self._decoder, PoolingModel)
        logits, pooled = self._decoder.forward_pooled(batch, bounds)
        self.steps.append(logits)
        return logits, pooled


class GateEngine(Engine):
    """The engine, noting for each sampled row which request and position its logits belong to."""

    overheard: Overheard
    heard: dict[tuple[str, int], Tensor]

    def _retire(self, flight: Flight) -> bool:
        flight.output()  # waits; nothing may fail here
        logits = self.overheard.steps.popleft()
        ending = [row for row in flight.batch.rows if row.samples]
        for row, logits_V in zip(ending, logits, strict=False):  # behind them: scored prompts
            position = row.start + row.num_tokens
            self.heard[row.request.request_id, position] = logits_V.to(CPU, copy=True)
        return super()._retire(flight)


@dataclass
class GateRun:
    """One engine over one model and the adapters it was given."""

    engine: GateEngine
    arch: ModelArch
    requests: dict[str, Submit] = field(default_factory=dict)
    outputs: dict[str, list[int]] = field(default_factory=dict)

    def submit(self, prompt: list[int], max_tokens: int, adapter: str | None = None) -> str:
        name = f"r{len(self.requests)}"
        sampling = Sampling(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        message = Submit(name, prompt, sampling, adapter)
        self.requests[name], self.outputs[name] = message, []
        self.engine.submit(message)
        return name

    def step(self) -> None:
        for output in self.engine.step().outputs:
            assert output.finish_reason != "error", output.error
            self.outputs[output.request_id] += output.token_ids

    def finish(self) -> None:
        while self.engine.has_work:
            self.step()
        self.engine.check_integrity()


def start_engine(
    model_dir: Path, adapters: dict[str, Path], work_dir: Path, settings: GateSettings
) -> GateRun:
    """Build an engine as the pod does and register every adapter from a slot file of its own."""
    arch = read_model(model_dir)
    device = settings.device
    slots = SlotPool(arch, num_pages=settings.num_pages, dtype=torch.float32, device=device)
    decoder = load_model(
        model_dir,
        arch,
        dtype=torch.float32,
        device=device,
        kv=KvLayout(settings.num_blocks, settings.block_size),
        lora=slots.lora,
        on_progress=lambda _done, _total: None,
        attention=settings.attention,
    )
    overheard = Overheard(decoder)
    limits = SchedulerLimits(
        settings.block_size,
        settings.max_batch_tokens,
        settings.max_running,
        settings.max_chunk_tokens,
        window=common_window(arch.windows),
    )
    max_len = min(arch.max_positions, settings.num_blocks * settings.block_size)
    engine = GateEngine(
        EngineLimits(
            limits, settings.num_blocks, max_len, frozenset(arch.eos_token_ids), arch.rope
        ),
        Runner(overheard, device),
        slots,
    )
    engine.overheard, engine.heard = overheard, {}
    for name, folder in adapters.items():
        path, rank = make_slot_file(name, folder, arch, work_dir)
        engine.register(RegisterAdapter(name, str(path), rank))
    return GateRun(engine, arch)


def make_slot_file(name: str, folder: Path, arch: ModelArch, work_dir: Path) -> tuple[Path, int]:
    """Validate and convert a peft adapter as the loader does."""
    fetched = work_dir / f"{name}.files"
    fetched.mkdir()
    for file in folder.iterdir():
        if is_adapter_file(file.name):
            shutil.copy(file, fetched)
    adapter = validate_adapter(fetched, arch, max_rank=64)
    header = SlotHeader(
        digest=name,
        rank=adapter.rank,
        pages=pages_for(adapter.rank),
        dtype="float32",
        arch=layout_hash(arch),
    )
    path = work_dir / f"{name}.slot"
    write_slot_file(adapter, header, path)
    return path, adapter.rank


@dataclass
class Verdict:
    """What the comparison found."""

    rows: int = 0
    ties: int = 0
    close_calls: int = 0
    """Rows left out: they, or tokens they see, had two experts within `routers.MIN_GAP`."""
    worst: float = 0.0
    """Largest difference in units of the tolerance."""
    distinct: set[int] = field(default_factory=set)
    effect: float = float("inf")
    """Smallest change that an adapter made to its rows, as the largest logit difference."""


class GateError(AssertionError):
    """The engine and the reference disagree."""


def compare(run: GateRun, model_dir: Path, adapters: dict[str, Path]) -> Verdict:
    """Compare everything a run computed with the reference.

    Raises:
        GateError: A row differs, or the run could not have shown a difference.
    """
    return compare_with(run, load_with_adapters(model_dir, adapters))


@torch.inference_mode()
def compare_with(run: GateRun, reference: PeftModel) -> Verdict:
    """Compare with a reference that is open already.

    Raises:
        GateError: A row differs, or the run could not have shown a difference.
    """
    verdict = Verdict()
    for name, request in run.requests.items():
        # Dynamic rope in transformers keeps the frequencies of the longest sequence it has seen,
        # until it meets one that is not stretched.
        reference(input_ids=torch.tensor([request.token_ids[:1]]))
        tokens = torch.tensor([request.token_ids + run.outputs[name]])
        with reference.disable_adapter(), watched_routers(reference) as clear:
            base_NV = reference(input_ids=tokens).logits[0]
        expected_NV = base_NV
        if request.adapter is not None:
            reference.set_adapter(request.adapter)
            with watched_routers(reference) as clear:
                expected_NV = reference(input_ids=tokens).logits[0]
            verdict.effect = min(verdict.effect, (expected_NV - base_NV).abs().max().item())
        for index, token in enumerate(run.outputs[name]):
            position = len(request.token_ids) + index
            if position > clear.num_tokens:
                verdict.close_calls += 1
                continue
            actual_V = run.engine.heard[name, position]
            _compare_row(verdict, f"{name}[{index}]", actual_V, expected_NV[position - 1], token)
    if verdict.ties > MAX_TIES * verdict.rows:
        raise GateError(f"{verdict.ties} of {verdict.rows} rows are ties: nothing is proven")
    if verdict.close_calls > MAX_CLOSE_CALLS * (verdict.rows + verdict.close_calls):
        raise GateError(f"{verdict.close_calls} rows are close calls of routers: nothing is proven")
    if len(verdict.distinct) < MIN_DISTINCT or verdict.effect < MIN_EFFECT:
        raise GateError(f"the run proves nothing: {verdict}")
    return verdict


def _compare_row(
    verdict: Verdict, where: str, actual_V: Tensor, expected_V: Tensor, token: int
) -> None:
    allowed = TOLERANCE * max(1.0, expected_V.std().item())
    delta = (actual_V - expected_V).abs().max().item()
    verdict.rows += 1
    verdict.worst = max(verdict.worst, delta / allowed)
    if not delta <= allowed:
        raise GateError(f"{where}: logits differ by {delta:.2e}, {allowed:.2e} is allowed")
    best = expected_V.topk(2)
    if token != best.indices[0].item():
        if best.values[0] - best.values[1] > 2 * allowed:
            raise GateError(f"{where}: token {token}, the reference has {best.indices[0].item()}")
        verdict.ties += 1
    verdict.distinct.add(token)
