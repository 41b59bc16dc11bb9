"""The gate for models whose layers all have a window: blocks are given back while requests run.

What is given back becomes not a number at once, as if the worst had been written there since.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from graft_runtime.engine.kv_cache import FREE, RELEASED, BlockPool, next_key, root_key
from graft_runtime.layers.attention.base import AttentionFactory, AttentionTraits, PagedKv
from graft_runtime.layers.attention.choose import choose_attention
from graft_runtime.layers.attention.gather import GatherAttention
from graft_runtime.layers.attention.varlen import VarlenAttention
from tests.support.family_case import ATTENTION, WINDOW, Case, CaseMaker
from tests.support.gate import GateRun, GateSettings, compare_with, start_engine
from tests.support.varlen_kernel import varlen_attn

BLOCK_SIZE = 8
PROMPTS = (2, 9, 30, 41, 16, 50)
NEW_TOKENS = 60
WHOLE = sum(-(-(length + NEW_TOKENS) // BLOCK_SIZE) for length in PROMPTS)
"""Blocks of all contexts at their ends."""
NUM_BLOCKS = 40
"""Enough for the prompts and what grows behind them, and far from enough for the whole."""

CASES: dict[str, Case] = {
    "mistral": Case("mistral", {"sliding_window": WINDOW}),
    "mixtral": Case(
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
        all_linear=ATTENTION,
        ends=("o_proj", "v_proj", "lm_head"),
    ),
    "transformers' own code": Case(
        "starcoder2",
        {"sliding_window": WINDOW, "hidden_act": "gelu_pytorch_tanh"},
        all_linear=(*ATTENTION, "c_fc", "c_proj"),
        ends=("o_proj", "c_proj", "lm_head"),
    ),
}


def varlen(kv: PagedKv, traits: AttentionTraits, page_multiple: int) -> VarlenAttention:
    return VarlenAttention(kv, traits, varlen_attn, page_multiple)


BACKENDS: dict[str, AttentionFactory] = {
    "gather": GatherAttention,
    "varlen, gathered": partial(varlen, page_multiple=256),
    "varlen, in place": partial(varlen, page_multiple=BLOCK_SIZE),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> CaseMaker:
    return CaseMaker(CASES, tmp_path_factory)


def spoil(pool: BlockPool, kv: PagedKv) -> None:
    """Write over all blocks that nobody holds and that hold no known prefix."""
    empty = [block for block, state in enumerate(pool._state) if state == FREE]
    kv._both[:, :, empty] = float("nan")


def forget(pool: BlockPool, blocks: Sequence[int]) -> None:
    """Let the pool need cached blocks."""
    for block in blocks:
        pool._cached.move_to_end(block, last=False)
        pool._evict()


def keep_only_ends(pool: BlockPool, prompt: list[int], models: Sequence[str | None]) -> None:
    """Forget all but the last two full blocks of a prompt: the window of the token after them."""
    kept: set[int] = set()
    for model in models:
        keys = [root_key(model)]
        for start in range(0, len(prompt) - BLOCK_SIZE, BLOCK_SIZE):
            keys.append(next_key(keys[-1], prompt[start : start + BLOCK_SIZE]))
        kept |= {pool._by_key[key] for key in keys[-2:]}
    forget(pool, [block for block in pool._cached if block not in kept])


def run_all(run: GateRun, adapters: dict[str, Path]) -> int:
    """Run requests whose outputs are five windows long; return the most blocks they had."""
    most = 0
    models = [None, *adapters]
    scheduler = run.engine._scheduler
    for number, length in enumerate(PROMPTS):
        prompt = [3 + (number * 31 + place * 7) % 150 for place in range(length)]
        run.submit(prompt, NEW_TOKENS, models[number % len(models)])
    while run.engine.has_work:
        run.step()
        run.engine.check_integrity()
        forget(scheduler.pool, list(scheduler.pool._cached))
        spoil(scheduler.pool, run.engine.overheard._decoder.kv)
        most = max(most, scheduler.pool.num_used)
    return most


@pytest.mark.parametrize("name", CASES)
def test_long_outputs_agree_though_what_is_behind_the_window_is_gone(
    name: str, made: CaseMaker, tmp_path: Path
) -> None:
    holds_windows(made, name, tmp_path, choose_attention)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_backend_sees_what_is_behind_the_window(
    backend: str, made: CaseMaker, tmp_path: Path
) -> None:
    holds_windows(made, "mistral", tmp_path, BACKENDS[backend])


def holds_windows(made: CaseMaker, name: str, work_dir: Path, attention: AttentionFactory) -> None:
    case = made(name)
    settings = GateSettings(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, attention=attention)
    run = start_engine(case.model_dir, case.adapters, work_dir, settings)
    most = run_all(run, case.adapters)
    verdict = compare_with(run, case.reference)
    assert verdict.rows >= len(PROMPTS) * NEW_TOKENS - verdict.close_calls
    assert run.engine.stats().preemptions == 0
    assert most <= NUM_BLOCKS < WHOLE


def test_a_prompt_whose_start_is_gone_is_found_by_what_its_next_token_sees(
    made: CaseMaker, tmp_path: Path
) -> None:
    case = made("mistral")
    run = start_engine(case.model_dir, case.adapters, tmp_path, GateSettings())
    scheduler = run.engine._scheduler
    prompt = [3 + place * 7 % 150 for place in range(50)]
    models = [None, *case.adapters]
    for adapter in models:
        run.submit(prompt, 3, adapter)
        run.finish()
    assert run.engine.stats().prefix_hits == 0, "nothing is shared between models"
    keep_only_ends(scheduler.pool, prompt, models)
    spoil(scheduler.pool, run.engine.overheard._decoder.kv)
    for adapter in models:
        run.submit([*prompt, 9, 8, 7], 30, adapter)
    while run.engine.has_work:
        run.step()
        assert all(
            RELEASED in request.blocks for request in scheduler._running if request.num_cached
        )
    run.engine.check_integrity()
    assert run.engine.stats().prefix_hits == 48 * len(models)
    compare_with(run, case.reference)
