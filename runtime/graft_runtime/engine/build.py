"""Put an engine together from a checkpoint: the only place that knows all its parts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from graft_protocol.config import EngineSettings
from graft_protocol.reasons import Reason
from graft_runtime.adapters.file_reader import PageCacheReader
from graft_runtime.adapters.slots import SlotPool
from graft_runtime.engine.engine import Engine, EngineLimits
from graft_runtime.engine.kv_cache import blocks_for, common_window
from graft_runtime.engine.memory import (
    MemoryMeter,
    create_meter,
    pool_blocks,
    run_heaviest,
    trial_blocks,
)
from graft_runtime.engine.runner import PoolingModel, Runner
from graft_runtime.engine.scheduler import SchedulerLimits
from graft_runtime.errors import GrammarError, ReasonedError
from graft_runtime.ipc.messages import EngineProgress, EngineReady, Sampling, Submit
from graft_runtime.layers.attention.base import KvLayout, kv_bytes_per_block
from graft_runtime.models.base import ModelArch
from graft_runtime.models.load import Model, load_model
from graft_runtime.models.read import read_model
from graft_runtime.models.serving_dtype import serving_dtype
from graft_runtime.sampling.grammar import Vocabulary
from graft_runtime.sampling.plugins import Plugins
from graft_runtime.settings import EngineChildSettings

logger = logging.getLogger(__name__)

HOST_KV_BYTES = 256 * 2**20
"""The KV pool on a CPU when nothing is said."""
PROGRESS_BYTES = 32 * 2**20
"""Weights loaded between two reports of progress."""

Tell = Callable[[EngineProgress], None]


def build_engine(settings: EngineChildSettings, tell: Tell) -> tuple[Engine, EngineReady]:
    """Load the model, take the memory and run once.

    Args:
        settings: What the process was told.
        tell: Where reports of progress go.

    Raises:
        ReasonedError: The checkpoint cannot be served, or not within the settings.
    """
    options = settings.engine
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    arch = read_model(settings.model_dir)
    dtype = getattr(torch, serving_dtype(settings.dtype, arch))
    device = _device(options)
    limits = _scheduler_limits(options, arch)
    longest = min(arch.max_positions, settings.max_model_len or arch.max_positions)
    meter = create_meter(device)
    block_bytes = kv_bytes_per_block(arch, options.block_size, dtype)
    num_blocks = _told_blocks(options, meter, block_bytes)
    if num_blocks is not None:
        _max_model_len(settings, arch, num_blocks)  # refuses before hours of loading
    pages, reader = settings.device_pages, PageCacheReader()
    slots = SlotPool(arch, num_pages=pages, dtype=dtype, device=device, reader=reader)
    model = load_model(
        settings.model_dir,
        arch,
        dtype=dtype,
        device=device,
        kv=KvLayout(num_blocks or trial_blocks(limits, longest), options.block_size),
        lora=slots.lora,
        on_progress=_Progress(tell),
    )
    tell(EngineProgress("warming up"))
    if num_blocks is None:
        parts = _Parts(arch, model, limits, slots, device, longest)
        num_blocks = _measured_blocks(parts, meter, block_bytes)
        model.kv.resize(num_blocks)
    max_model_len = _max_model_len(settings, arch, num_blocks)
    eos_ids, can_pool = frozenset(arch.eos_token_ids), isinstance(model, PoolingModel)
    engine = Engine(
        EngineLimits(limits, num_blocks, max_model_len, eos_ids, arch.rope, can_pool),
        Runner(model, device),
        slots,
        _vocabulary(settings.model_dir, arch),
        Plugins(),
    )
    _warm_up(engine)
    sizes = (max_model_len, arch.vocab_size, options.block_size, num_blocks, settings.device_pages)
    ready = EngineReady(*sizes, str(dtype).removeprefix("torch."), device.type)
    logger.info("engine ready", extra={"kv_blocks": num_blocks, "max_model_len": max_model_len})
    return engine, ready


def _scheduler_limits(options: EngineSettings, arch: ModelArch) -> SchedulerLimits:
    return SchedulerLimits(
        options.block_size,
        options.max_batch_tokens,
        options.max_running,
        options.max_chunk_tokens,
        window=common_window(arch.windows),
    )


class _Parts(NamedTuple):
    """What an engine for a trial is made of."""

    arch: ModelArch
    model: Model
    limits: SchedulerLimits
    slots: SlotPool
    device: torch.device
    max_model_len: int


def _told_blocks(options: EngineSettings, meter: MemoryMeter, block_bytes: int) -> int | None:
    """Return the pool's size as far as it needs no measurement."""
    if options.kv_blocks is not None:
        return options.kv_blocks
    if options.kv_bytes is not None:
        return options.kv_bytes // block_bytes
    # Nobody said how much, and nothing limits it: not the whole machine.
    return None if meter.free_bytes() is not None else max(1, HOST_KV_BYTES // block_bytes)


def _measured_blocks(parts: _Parts, meter: MemoryMeter, block_bytes: int) -> int:
    """Run the heaviest step over a small pool; return how many blocks fit beside it.

    Raises:
        ReasonedError: None does.
    """
    arch, model, limits, slots, device, longest = parts
    blocks = trial_blocks(limits, longest)
    trial = EngineLimits(limits, blocks, longest, frozenset(), arch.rope)
    meter.begin()
    run_heaviest(Engine(trial, Runner(model, device), slots), arch.vocab_size)
    growth_bytes = meter.growth_bytes()
    model.kv.resize(0)
    free_bytes = meter.free_bytes() or 0
    blocks = pool_blocks(free_bytes, growth_bytes, block_bytes)
    logger.info(
        "memory measured",
        extra={"free_bytes": free_bytes, "step_bytes": growth_bytes, "kv_blocks": blocks},
    )
    if device.type == "cpu":
        return _host_blocks(blocks, block_bytes, limits)
    if blocks < 1:
        message = (
            f"beside the model and a step ({growth_bytes} bytes) no memory is left for the KV pool"
        )
        raise ReasonedError(Reason.INSUFFICIENT_CAPACITY, message)
    return blocks


def _host_blocks(room: int, block_bytes: int, limits: SchedulerLimits) -> int:
    """Return the usual pool on a CPU, or what of it there is room for, but enough for a step.

    The limit's memory is shared with processes that come and go, so a tight one is no refusal.
    """
    least = blocks_for(limits.max_batch_tokens, limits.block_size)
    usual = HOST_KV_BYTES // block_bytes
    if room < least:
        logger.warning("little memory is left for the KV pool", extra={"kv_blocks": least})
    return max(1, least, min(usual, room))


class _Progress:
    """Report loaded bytes now and then, not for every tensor."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._next = 0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        if done_bytes >= self._next or done_bytes >= total_bytes:
            self._next = done_bytes + PROGRESS_BYTES
            self._tell(EngineProgress("loading weights", done_bytes, total_bytes))


def _device(options: EngineSettings) -> torch.device:
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(options.device)


def _vocabulary(model_dir: Path, arch: ModelArch) -> Vocabulary | None:
    """Read the tokenizer for grammars; a model without a fitting one serves all else."""
    try:
        serialized = (model_dir / "tokenizer.json").read_text(encoding="utf-8")
        return Vocabulary(serialized, vocab_size=arch.vocab_size, eos_ids=arch.eos_token_ids)
    except (OSError, UnicodeDecodeError, GrammarError) as error:
        logger.warning("no structured output with this model", extra={"problem": str(error)})
        return None


def _max_model_len(settings: EngineChildSettings, arch: ModelArch, num_blocks: int) -> int:
    """Return the longest sequence that fits the model and, alone, the whole KV pool."""
    fits = num_blocks * settings.engine.block_size
    asked = settings.max_model_len
    if asked is None:
        return min(arch.max_positions, fits)
    if asked > arch.max_positions:
        message = f"maxModelLen {asked} is beyond the model's own limit of {arch.max_positions}"
        raise ReasonedError(Reason.INVALID_SPEC, message)
    if asked > fits:
        message = f"maxModelLen {asked} needs more than the KV pool's {fits} tokens"
        raise ReasonedError(Reason.INVALID_SPEC, message)
    return asked


def _warm_up(engine: Engine) -> None:
    """Run one prompt and one decode, so that the first request pays for nothing special."""
    engine.submit(Submit("warm-up", [0, 0, 0, 0], Sampling(max_tokens=2, ignore_eos=True)))
    while engine.has_work:
        engine.step()
    engine.forget_history()
