"""How much memory the cache may take: what is free, less what the heaviest step needs.

Called once at start. A pool that takes what is free before a large step has run ends in memory
running out while serving; so that step is run first, over a small pool, and measured.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final, Protocol

import torch

from graft_protocol.reasons import Reason
from graft_runtime.engine.engine import Engine
from graft_runtime.engine.kv_cache import blocks_for
from graft_runtime.engine.scheduler import SchedulerLimits
from graft_runtime.errors import ReasonedError
from graft_runtime.ipc.messages import Sampling, Submit

GROWTH_MARGIN: Final = 1.25
"""On what the heaviest step took: allocators fragment, and contexts grow longer than here."""
SPARE_SHARE: Final = 0.05
"""Part of what is free that is left to others: the driver, the libraries, the pod's processes."""
SPARE_BYTES: Final = 64 * 2**20
NEW_TOKENS: Final = 2


class MemoryMeter(Protocol):
    """Measures one device's memory, as far as this process may use it."""

    def begin(self) -> None:
        """Measure growth from here on."""

    def growth_bytes(self) -> int:
        """Return how far the highest use since `begin` was above the use at that time."""

    def free_bytes(self) -> int | None:
        """Return what may still be taken; None when nothing limits it."""


class CudaMeter:
    """Memory of a CUDA device, as torch's allocator reserves it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rest_bytes = 0

    def begin(self) -> None:
        """Measure growth from here on."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        self._rest_bytes = torch.cuda.memory_allocated(self._device)

    def growth_bytes(self) -> int:
        """Return the highest reservation since `begin`, above what was in use then."""
        torch.cuda.synchronize(self._device)
        return int(torch.cuda.max_memory_reserved(self._device)) - self._rest_bytes

    def free_bytes(self) -> int:
        """Return what is free on the device, other processes considered."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self._device)[0])


class HostMeter:
    """Memory of this process on a CPU, within the limit of its control group."""

    def __init__(
        self,
        process: Path = Path("/proc/self"),
        group: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        self._process = process
        self._group = group
        self._rest_bytes = 0

    def begin(self) -> None:
        """Measure growth from here on."""
        with contextlib.suppress(OSError):  # then the highest use ever counts, which is no less
            (self._process / "clear_refs").write_text("5")
        self._rest_bytes = self._status_bytes("VmRSS")

    def growth_bytes(self) -> int:
        """Return the largest resident size since `begin`, above what it was then."""
        return max(0, self._status_bytes("VmHWM") - self._rest_bytes)

    def free_bytes(self) -> int | None:
        """Return what the group's limit leaves; file pages that nobody maps count as free.

        The files that the model was read from are among them, however often they were read.
        """
        try:
            limit = (self._group / "memory.max").read_text().strip()
            used = int((self._group / "memory.current").read_text())
            names = ("inactive_file", "active_file", "file_mapped")
            idle, active, mapped = (_number(self._group / "memory.stat", name) for name in names)
        except (OSError, ValueError):
            return None
        return None if limit == "max" else int(limit) - used + max(0, idle + active - mapped)

    def _status_bytes(self, name: str) -> int:
        try:
            return 1024 * _number(self._process / "status", f"{name}:")
        except OSError:
            return 0


def create_meter(device: torch.device) -> MemoryMeter:
    """Return what measures a device."""
    return CudaMeter(device) if device.type == "cuda" else HostMeter()


def pool_blocks(free_bytes: int, growth_bytes: int, block_bytes: int) -> int:
    """Return how many blocks fit beside the heaviest step; 0 or less when none does.

    Args:
        free_bytes: What is free while no step runs and the pool takes nothing.
        growth_bytes: What the heaviest step takes on top.
        block_bytes: A block's keys and values in all layers.
    """
    spare = SPARE_BYTES + int(SPARE_SHARE * free_bytes)
    return (free_bytes - int(GROWTH_MARGIN * growth_bytes) - spare) // block_bytes


def trial_blocks(limits: SchedulerLimits, max_model_len: int) -> int:
    """Return the blocks that `run_heaviest` needs at most."""
    prompts = _prompt_lengths(limits, max_model_len)
    return sum(blocks_for(length + NEW_TOKENS, limits.block_size) + 1 for length in prompts)


def run_heaviest(engine: Engine, vocab_size: int) -> None:
    """Run steps that take as much memory as any: all tokens, all rows, all of sampling, scores.

    Args:
        engine: One that nothing else uses, over at least `trial_blocks`.
        vocab_size: Of its model.

    Raises:
        ReasonedError: They do not fit; smaller steps would. Not retried: the settings must change.
    """
    limits = engine.limits.scheduler
    for number, length in enumerate(_prompt_lengths(limits, engine.limits.max_model_len)):
        sampling = Sampling(
            max_tokens=NEW_TOKENS,
            ignore_eos=True,
            temperature=1.0,
            top_p=0.9,
            typical_p=0.9,
            min_p=0.01,
            repetition_penalty=1.1,
            logprobs=True,
            top_logprobs=5,
            processed_logprobs=True,
            prompt_logprobs=5 if number == 0 else None,
        )
        prompt = [(number + place) % vocab_size for place in range(length)]
        engine.submit(Submit(f"trial-{number}", prompt, sampling))
    while engine.has_work:
        for output in engine.step().outputs:
            if output.finish_reason == "error":
                message = (
                    f"a step of maxBatchTokens {limits.max_batch_tokens} and maxRunning"
                    f" {limits.max_running} does not run: {output.error}"
                )
                raise ReasonedError(Reason.INSUFFICIENT_CAPACITY, message)


def _prompt_lengths(limits: SchedulerLimits, max_model_len: int) -> list[int]:
    """Return prompts that fill a step with tokens and rows; the first one is to be scored."""
    longest = max(1, max_model_len - NEW_TOKENS)
    rows = max(1, min(limits.max_running, limits.max_batch_tokens - 1))
    each = min(longest, max(1, limits.max_batch_tokens // rows))
    scored = min(longest, limits.max_scored_tokens + 1, limits.max_batch_tokens)
    return [max(scored, each), *[each] * (rows - 1)]


def _number(path: Path, name: str) -> int:
    """Return the number behind a name in a file of such lines; 0 without it."""
    for line in path.read_text().splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return 0
