"""Time the decoder on a CPU: a random 0.25B Llama in bfloat16, base and multi-LoRA, no scheduler.

    python -m bench.decoder_cpu --threads 2

Each case decodes n sequences that already hold 128 tokens. Rates are of the median step; the best
step stands beside it, for machines that do other work at the same time.

Shape legend: P pages, R = PAGE_RANK, o features out of one slice.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.checkpoints import LLAMA, VOCAB, write_weights
from graft_runtime.layers.attention.base import KvLayout
from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.layers.lora.base import LoraPool, ResidentAdapter
from graft_runtime.models.decoder import Decoder
from graft_runtime.models.weights import load_decoder

CPU = torch.device("cpu")
BLOCK_SIZE = 32
PROMPT = 128
NEW = 128
CASES = [(1, 0), (8, 0), (32, 0), (1, 1), (8, 1), (8, 8), (32, 8), (32, 32)]
"""Requests, and distinct adapters among them."""


def make_adapters(pool: LoraPool) -> None:
    """Fill one page per adapter with rank-16 updates of all layers but the output projection."""
    for slab in pool.slabs.values():
        slab.a_PGRI.normal_(0.0, 0.02)
        for b_PRo in slab.b_PRo:
            b_PRo.normal_(0.0, 0.02)
    touched = frozenset(key for key in pool.slabs if key[1] != "lm_head")
    for page in range(pool.num_pages):
        pool.bind(page + 1, ResidentAdapter((page,), 16, touched))


def make_batch(counts: list[int], lengths: list[int], slots: list[int]) -> ForwardBatch:
    """Pack the last ``counts`` tokens of sequences that are ``lengths`` long."""
    per_row = -(-(PROMPT + NEW) // BLOCK_SIZE)
    positions: list[int] = []
    mapping: list[int] = []
    starts = [0]
    for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        positions += range(length - count, length)
        base = row * per_row * BLOCK_SIZE
        mapping += range(base + length - count, base + length)
        starts.append(starts[-1] + count)
    return ForwardBatch(
        token_ids_T=torch.randint(0, VOCAB, (starts[-1],)),
        positions_T=torch.tensor(positions),
        slot_mapping_T=torch.tensor(mapping),
        query_starts=starts,
        seq_lens=lengths,
        block_tables=[
            list(range(row * per_row, (row + 1) * per_row)) for row in range(len(counts))
        ],
        adapter_slots=slots,
        rope_variants=[0] * len(counts),
        logits_rows_S=torch.tensor([start - 1 for start in starts[1:]]),
    )


def step_seconds(step: Callable[[int], object], steps: int) -> tuple[float, float]:
    """Run ``step(0..steps)``; return the median and the best time, after a tenth of warm-up."""
    times = []
    for index in range(steps):
        begin = time.perf_counter()
        step(index)
        times.append(time.perf_counter() - begin)
    warm = times[steps // 10 :]
    return statistics.median(warm), min(warm)


@torch.inference_mode()
def run(decoder: Decoder, steps: int) -> None:
    """Print the table."""
    prefill = make_batch([PROMPT] * 4, [PROMPT] * 4, [0] * 4)
    seconds, best = step_seconds(lambda _: decoder.forward(prefill), 10)
    tokens = 4 * PROMPT
    print(f"prefill 4 x {PROMPT}: {tokens / seconds:.0f} tok/s (best {tokens / best:.0f})")
    base: dict[int, float] = {}
    for rows, adapters in CASES:
        # In the order in which the scheduler puts rows: each adapter's together.
        slots = sorted(1 + row % adapters if adapters else 0 for row in range(rows))

        def step(index: int, rows: int = rows, slots: list[int] = slots) -> None:
            decoder.forward(make_batch([1] * rows, [PROMPT + 1 + index % NEW] * rows, slots))

        seconds, best = step_seconds(step, steps)
        base.setdefault(rows, best)
        cost = f"{100 * (best / base[rows] - 1):+.0f} % on base" if adapters else ""
        print(
            f"decode {rows:3} requests, {adapters:2} adapters: {seconds * 1e3:7.1f} ms"
            f" {rows / seconds:7.1f} tok/s (best {best * 1e3:.1f} ms {rows / best:.1f}) {cost}"
        )


def main() -> None:
    """Build the model in a temporary folder, then time it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        arch = write_weights(Path(folder), LLAMA)
        pool = LoraPool(arch, num_pages=32, dtype=torch.bfloat16, device=CPU)
        make_adapters(pool)
        blocks = 32 * -(-(PROMPT + NEW) // BLOCK_SIZE)
        begin = time.perf_counter()
        decoder = load_decoder(
            Path(folder),
            arch,
            dtype=torch.bfloat16,
            device=CPU,
            kv=KvLayout(blocks, BLOCK_SIZE),
            lora=pool,
            on_progress=lambda *_: None,
        )
        print(f"load: {time.perf_counter() - begin:.1f} s, threads: {arguments.threads}")
    run(decoder, arguments.steps)


if __name__ == "__main__":
    main()
